//! Accepts connections that begin with a handshake, such as TLS.
//!
//! Handshakes run at the same time, so that a slow client does not hold up other clients. The bytes
//! of a handshake do not count as the first request: after the handshake, a drain still waits for
//! the client's first request.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::acceptor::Acceptor;
use crate::net::{Peer, Stream};

/// How long a handshake may take. A client that sends nothing must not hold a descriptor forever.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// A source of connections on which a handshake has succeeded. Made by [`Acceptor::handshakes`].
pub struct Handshakes<T> {
    acceptor: Acceptor,
    begin: Arc<Begin<T>>,
    running: JoinSet<io::Result<(T, Peer)>>,
}

type Begin<T> = dyn Fn(Stream) -> Pin<Box<dyn Future<Output = io::Result<T>> + Send>> + Send + Sync;

impl<T> std::fmt::Debug for Handshakes<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let running = self.running.len();
        f.debug_struct("Handshakes")
            .field("acceptor", &self.acceptor)
            .field("running", &running)
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Performs a handshake on each accepted connection. A connection is closed if its handshake
    /// fails or takes longer than 30 s.
    ///
    /// ```ignore
    /// let tls = tokio_rustls::TlsAcceptor::from(config);
    /// let connections = acceptor.handshakes(move |stream| tls.accept(stream));
    /// ```
    #[must_use]
    pub fn handshakes<T, F>(
        self,
        handshake: impl Fn(Stream) -> F + Send + Sync + 'static,
    ) -> Handshakes<T>
    where
        T: Send + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
    {
        let begin: Arc<Begin<T>> = Arc::new(move |stream| Box::pin(handshake(stream)));
        Handshakes { acceptor: self, begin, running: JoinSet::new() }
    }
}

impl<T: Send + 'static> Handshakes<T> {
    /// Waits for the next connection on which the handshake has succeeded. Returns `None` once the
    /// generation has stopped accepting and all handshakes have ended. Cancel safe.
    pub async fn accept(&mut self) -> Option<(T, Peer)> {
        let mut is_accepting = true;
        loop {
            tokio::select! {
                Some(done) = self.running.join_next() => match done {
                    Ok(Ok(connection)) => return Some(connection),
                    Ok(Err(error)) => {
                        tracing::debug!(
                            event = "connection.handshake_failed",
                            listener = %self.name(), %error,
                            "closed a client connection, because its handshake failed: {error}"
                        );
                    }
                    Err(error) => tracing::error!(
                        event = "connection.handshake_panicked",
                        listener = %self.name(), reason = %error,
                        "closed a client connection, because the code for its handshake panicked: \
                        {error}"
                    ),
                },
                accepted = self.acceptor.accept(), if is_accepting => match accepted {
                    Some((mut stream, peer)) => {
                        let handshake = stream.begin_handshake();
                        let begun = (self.begin)(stream);
                        self.running.spawn(async move {
                            let connection = timeout(HANDSHAKE_TIMEOUT, begun).await??;
                            drop(handshake);
                            Ok((connection, peer))
                        });
                    }
                    None => is_accepting = false,
                },
                else => return None,
            }
        }
    }

    /// Returns the name of the listener.
    #[must_use]
    pub fn name(&self) -> &str {
        self.acceptor.name()
    }

    /// Returns the address on which the listener listens.
    #[must_use]
    pub fn address(&self) -> &str {
        self.acceptor.address()
    }

    #[cfg(feature = "axum")]
    pub(crate) fn local_address(&self) -> io::Result<Peer> {
        self.acceptor.local_address()
    }
}
