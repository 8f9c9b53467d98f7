//! Accepts connections on one listener until it is told to stop.
//!
//! The listener is registered with the runtime for as long as the loop runs and no longer: one that stayed registered
//! would be woken for connections that another generation accepts, and a closed one stays registered while another
//! process holds it (epoll(7), questions 6). When descriptors or memory run out it waits and tries again; the clients
//! wait in the queue meanwhile.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::connection::Connections;
use crate::drain::DrainEntry;
use crate::error::Error;
use crate::net::Listener;
use crate::service::Service;

/// How long to wait when nothing can be accepted: doubled from the first to the last, as Go's net/http does. There is no
/// event to wait for: a descriptor may come free anywhere in the process, or in the system.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// The loop of one listener.
#[derive(Debug)]
pub(super) struct AcceptLoop<S> {
    listener: Listener,
    watch: AsyncFd<Arc<Socket>>,
    connections: Connections<S>,
    entry: DrainEntry,
}

impl<S: Service> AcceptLoop<S> {
    /// Registers the listener.
    pub(super) fn new(listener: Listener, connections: Connections<S>, entry: DrainEntry) -> Result<Self, Error> {
        let watch = listener.watch().map_err(Error::system("watch a listener"))?;
        Ok(Self { listener, watch, connections, entry })
    }

    /// Accepts until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let name = self.listener.name();
        let mut pause = None;
        while let Some(accepted) = stop.run_until_cancelled(self.accept()).await {
            match accepted {
                Ok(()) => {
                    if pause.take().is_some() {
                        tracing::info!(listener = %name, "accepting again");
                    }
                }
                Err(error) if is_the_peers_affair(&error) => {
                    tracing::debug!(listener = %name, %error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    let wait = pause.map_or(FIRST_PAUSE, |last: Duration| LAST_PAUSE.min(last * 2));
                    if pause.replace(wait).is_none() {
                        tracing::error!(listener = %name, %error, "cannot accept; trying again");
                    }
                    let _ = stop.run_until_cancelled(tokio::time::sleep(wait)).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<()> {
        let (stream, peer) = self.watch.async_io(Interest::READABLE, |_| self.listener.accept()).await?;
        self.connections.spawn(stream, peer, &self.listener, &self.entry);
        Ok(())
    }
}

/// Errors of one connection that the kernel reports by accept, accept(2): the next one may be well.
fn is_the_peers_affair(error: &io::Error) -> bool {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    matches!(
        errno,
        Errno::ECONNABORTED
            | Errno::EINTR
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENONET
            | Errno::EOPNOTSUPP
    )
}
