//! Support for axum servers.
//!
//! A handler gets the client's address from [`ConnectInfo<Peer>`](axum::extract::ConnectInfo). A
//! handler with a long reply, such as a websocket, must end the reply when [`Life::draining`]
//! resolves. To give handlers access to the [`Life`], put a clone of it into the state of the app.

use std::future::pending;
use std::io;

use ::axum::Router;
use ::axum::extract::Request;
use ::axum::extract::connect_info::Connected;
use ::axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_layer::Layer;

use super::tower::AnnounceClose;
use crate::embed::{Acceptor, Handshakes, Life};
use crate::error::Error;
use crate::listen::{Peer, Stream};

/// Serves the listener called `name` with an axum app. Reports that the server is ready. Returns
/// when this generation has stopped accepting and all connections have ended.
///
/// Once this generation stops accepting, each HTTP/1.1 reply announces the end of its connection.
/// Idle connections are closed after [`Config::keep_alive_grace`](crate::Config::keep_alive_grace).
///
/// ```no_run
/// use axum::Router;
/// use axum::routing::get;
/// use handoffd::{Builder, Error};
///
/// fn main() -> Result<(), Error> {
///     Builder::from_env()?.listen("http=127.0.0.1:7001")?.serve_with(async |life| {
///         let app = Router::new().route("/", get(|| async { "hello\n" }));
///         handoffd::axum::serve(&life, "http", app).await
///     })?;
///     Ok(())
/// }
/// ```
///
/// # Errors
/// Returns [`Error::NoSuchListener`] if the name is unknown, or an [`Error::System`] if the socket
/// cannot be registered for events or the server of axum fails.
pub async fn serve(life: &Life, name: &str, app: Router) -> Result<(), Error> {
    serve_on(life, name, life.acceptor(name)?, app).await
}

/// Serves an axum app as [`serve`] does, on connections that begin with a handshake, such as TLS.
/// As `listener`, pass the result of [`Acceptor::handshakes`] for the listener called `name`.
///
/// # Errors
/// Returns the same errors as [`serve`].
pub async fn serve_on<L>(life: &Life, name: &str, listener: L, app: Router) -> Result<(), Error>
where
    L: Listener<Addr = Peer>,
    Peer: for<'a> Connected<IncomingStream<'a, L>>,
{
    let app = AnnounceClose::new(life).layer(app);
    let app = ::axum::ServiceExt::<Request>::into_make_service_with_connect_info::<Peer>(app);
    let closing = life.closing_of(name)?;
    life.ready();
    let served = ::axum::serve(listener, app).with_graceful_shutdown(closing).await;
    served.map_err(Error::system("run the server of axum"))
}

impl Listener for Acceptor {
    type Io = Stream;
    type Addr = Peer;

    /// Waits for the next connection. Waits forever once the generation has stopped accepting,
    /// because the trait has no way to report this. The shutdown signal then ends the server.
    async fn accept(&mut self) -> (Stream, Peer) {
        match Self::accept(self).await {
            Some(accepted) => accepted,
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        self.local_address()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Listener for Handshakes<T> {
    type Io = T;
    type Addr = Peer;

    async fn accept(&mut self) -> (T, Peer) {
        match Self::accept(self).await {
            Some(accepted) => accepted,
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        self.local_address()
    }
}

impl Connected<IncomingStream<'_, Acceptor>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Acceptor>) -> Self {
        *stream.remote_addr()
    }
}

impl<T> Connected<IncomingStream<'_, Handshakes<T>>> for Peer
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn connect_info(stream: IncomingStream<'_, Handshakes<T>>) -> Self {
        *stream.remote_addr()
    }
}
