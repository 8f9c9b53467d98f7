//! Servers of hyper, with HTTP/1.1 and HTTP/2.

use std::error::Error as StdError;

use ::hyper::body::{Body, Incoming};
use ::hyper::service::Service;
use ::hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;

use super::announce::Announcing;
use crate::embed::Life;
use crate::error::Error;

/// Serves the listener called `name` with a hyper service. Reports that the server is ready, and
/// returns when the generation has retired and the connections have ended.
///
/// From the retirement on, each reply in HTTP/1.1 announces the end of its connection. Connections
/// without a request are closed after
/// [`Config::keep_alive_grace`](crate::Config::keep_alive_grace). In HTTP/2, GOAWAY tells the
/// clients to open another connection.
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
    let (server, graceful) = (auto::Builder::new(TokioExecutor::new()), GracefulShutdown::new());
    life.ready();
    while let Some((stream, peer)) = acceptor.accept().await {
        let connection =
            server.serve_connection_with_upgrades(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection.into_owned());
        // The task ends with its connection, which the drain waits for, or with the runtime.
        drop(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(
                    event = "connection.http_failed", %peer, error,
                    "a connection of an HTTP client has ended with an error: {error}"
                );
            }
        }));
    }
    drop(acceptor);
    closing.await;
    graceful.shutdown().await;
    Ok(())
}
