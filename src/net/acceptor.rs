//! Accepts connections on one listener, and bears what goes wrong with that.
//!
//! The listener is registered with the runtime for as long as the acceptor lives and no longer: one that stayed
//! registered would be woken for connections that another generation accepts, and a closed one stays registered while
//! another process holds it (epoll(7), questions 6). When descriptors or memory run out it waits and tries again; the
//! clients wait in the queue meanwhile. When to stop is not decided here: drop it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::listener::Listener;
use super::stream::{Peer, Stream};

/// How long to wait when nothing can be accepted: doubled from the first to the last, as Go's net/http does. There is no
/// event to wait for: a descriptor may come free anywhere in the process, or in the system.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts on one listener.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: Listener,
    watch: AsyncFd<Arc<Socket>>,
    /// How long to wait before the next try, while trying is in vain.
    pause: Option<Duration>,
}

impl Acceptor {
    /// Registers the listener. Must be called in a tokio runtime.
    pub(crate) fn new(listener: Listener) -> io::Result<Self> {
        Ok(Self { watch: listener.watch()?, listener, pause: None })
    }

    /// The listener.
    pub(crate) const fn listener(&self) -> &Listener {
        &self.listener
    }

    /// The next connection. Cancel safe: what was accepted has been returned.
    pub(crate) async fn accept(&mut self) -> (Stream, Peer) {
        loop {
            match self.watch.async_io(Interest::READABLE, |_| self.listener.accept()).await {
                Ok(accepted) => {
                    if self.pause.take().is_some() {
                        tracing::info!(listener = %self.listener.name(), "accepting again");
                    }
                    return accepted;
                }
                Err(error) if is_the_peers_affair(&error) => {
                    tracing::debug!(listener = %self.listener.name(), %error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    let pause = self.pause.map_or(FIRST_PAUSE, |last| LAST_PAUSE.min(last * 2));
                    if self.pause.replace(pause).is_none() {
                        tracing::error!(listener = %self.listener.name(), %error, "cannot accept; trying again");
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
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
