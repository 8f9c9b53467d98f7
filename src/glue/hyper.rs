//! Support for hyper servers, with HTTP/1.1 and HTTP/2.

use std::error::Error as StdError;
use std::pin::pin;

use ::hyper::body::{Body, Incoming};
use ::hyper::service::{Service, service_fn};
use ::hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announce::Announcing;
use crate::embed::Life;
use crate::error::Error;

/// Serves the listener called `name` with a hyper service. Reports that the server is ready.
/// Returns when this generation has stopped accepting and all connections have ended.
///
/// Once this generation stops accepting, each HTTP/1.1 reply announces the end of its connection.
/// Idle connections are closed after [`Config::keep_alive_grace`](crate::Config::keep_alive_grace).
/// In HTTP/2, GOAWAY tells the clients at once to open another connection. No request is lost,
/// because the server still handles the requests that the client sends before it receives GOAWAY.
///
/// # Errors
/// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the socket
/// cannot be registered for events.
pub async fn serve<S, B>(life: &Life, name: &str, service: S) -> Result<(), Error>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut acceptor = life.acceptor(name)?;
    let closing = life.closing_of(name)?;
    let service = Announcing::new(service, life.clone());
    let (server, open) = (auto::Builder::new(TokioExecutor::new()), TaskTracker::new());
    let ends = ConnectionEnds::default();
    life.ready();
    while let Some((stream, peer)) = acceptor.accept().await {
        let speaks_http2 = CancellationToken::new();
        let (service, speaks) = (service.clone(), speaks_http2.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            if request.version() == Version::HTTP_2 && !speaks.is_cancelled() {
                speaks.cancel();
            }
            service.call(request)
        });
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let (connection, ends) = (connection.into_owned(), ends.clone());
        open.spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = ends.of(&speaks_http2) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(
                    event = "connection.http_failed", %peer, error,
                    "a connection of an HTTP client has ended with an error: {error}"
                );
            }
        });
    }
    ends.http2.cancel();
    closing.await;
    ends.all.cancel();
    open.close();
    open.wait().await;
    Ok(())
}

/// Two signals that tell connections to end: one only for HTTP/2, one for all connections.
#[derive(Clone, Default)]
struct ConnectionEnds {
    /// Cancelled when HTTP/2 connections must end.
    http2: CancellationToken,
    /// Cancelled when all connections must end.
    all: CancellationToken,
}

impl ConnectionEnds {
    /// Waits until a connection must end. The token `speaks_http2` is cancelled when the client
    /// sends its first HTTP/2 request.
    async fn of(&self, speaks_http2: &CancellationToken) {
        let both = async { tokio::join!(self.http2.cancelled(), speaks_http2.cancelled()) };
        tokio::select! {
            ((), ()) = both => {}
            () = self.all.cancelled() => {}
        }
    }
}
