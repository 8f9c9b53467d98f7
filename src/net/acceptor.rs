//! Accepts connections on one listener, and bears what goes wrong with that.
//!
//! The listener is registered with the runtime for as long as the acceptor lives and no longer: one
//! that stayed registered would be woken for connections that another generation accepts, and a
//! closed one stays registered while another process holds it (epoll(7), questions 6). When
//! descriptors or memory run out it waits and tries again; the clients wait in the queue meanwhile.
//! When to stop is not decided here: drop it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;
use tokio::io::unix::AsyncFd;

use super::bind::BACKLOG;
use super::listener::{Accepted, Listener};
use super::peer::Peer;
use super::stream::Stream;
use crate::config::{CONTROL, METRICS_LISTENER};
use crate::sys;
use crate::sys::reserve::Share;

/// How long to wait when nothing can be accepted: doubled from the first to the last, as Go's
/// net/http does. There is no event to wait for: a descriptor may come free anywhere in the
/// process, or in the system.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Accepts on one listener.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: Listener,
    watch: AsyncFd<Arc<Socket>>,
    /// The last pause, from the first failure until nobody waits any more. One that is accepted
    /// ends no shortage: it may have taken the one descriptor that came free, and the log would
    /// tell the same story for each of them.
    shortage: Option<Duration>,
    /// What it may use of the descriptors that are kept in reserve.
    share: Share,
}

impl Acceptor {
    /// Registers the listener. Must be called in a tokio runtime.
    pub(crate) fn new(listener: Listener) -> io::Result<Self> {
        let share = match &**listener.name() {
            CONTROL => Share::All,
            METRICS_LISTENER => Share::Half,
            _ => Share::Nothing,
        };
        Ok(Self { watch: listener.watch()?, listener, shortage: None, share })
    }

    /// The listener.
    pub(crate) const fn listener(&self) -> &Listener {
        &self.listener
    }

    /// The next connection, watched by the runtime that this is called in. Cancel safe: what was
    /// accepted has been returned.
    pub(crate) async fn accept_here(&mut self) -> (Stream, Peer) {
        loop {
            if let Some(accepted) = self.accept(|| {}).await.into_stream(&self.listener) {
                return accepted;
            }
        }
    }

    /// The next connection. Cancel safe: what was accepted has been returned.
    ///
    /// `on_shortage` is called when none can be accepted from then on, for want of descriptors or
    /// memory.
    pub(crate) async fn accept(&mut self, on_shortage: impl Fn()) -> Accepted {
        loop {
            match self.look().await {
                Ok(Some(accepted)) => {
                    self.shortage = self.shortage.map(|_| Duration::ZERO);
                    return accepted;
                }
                Ok(None) => {
                    if self.shortage.take().is_some() {
                        self.listener.shortage.end(self.listener.name());
                    }
                }
                Err(error) if is_the_peers_affair(&error) => {
                    tracing::debug!(
                        event = "connection.aborted", listener = %self.listener.name(), %error,
                        "a connection was gone before it was accepted"
                    );
                }
                Err(error) => {
                    let pause = self
                        .shortage
                        .map_or(FIRST_PAUSE, |last| (last * 2).clamp(FIRST_PAUSE, LAST_PAUSE));
                    if self.shortage.replace(pause).is_none()
                        && self.listener.shortage.begin(self.listener.name(), &error)
                    {
                        on_shortage();
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Waits until somebody may wait in the queue, and looks once: none when nobody does. Cancel
    /// safe.
    async fn look(&self) -> io::Result<Option<Accepted>> {
        let mut ready = self.watch.readable().await?;
        let accept = || sys::reserve::accept(self.share, &self.listener, || self.listener.accept());
        let accepted =
            ready.try_io(|_| accept()).map_or(Ok(None), |accepted| accepted.map(Some))?;
        Ok(accepted.map(|(accepted, earmark)| Accepted { earmark: Some(earmark), ..accepted }))
    }
}

/// Accepts what waits in the queue of a listener on which nobody will accept any more.
///
/// No more than a queue can hold: who comes after that has come too late, and there may be no end
/// of them.
pub(crate) fn waiting(listener: &Listener) -> impl Iterator<Item = (Stream, Peer)> {
    let attempts = (0..=BACKLOG).map_while(|_| match listener.accept() {
        Ok(accepted) => Some(accepted.into_stream(listener)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) if is_the_peers_affair(&error) => Some(None),
        Err(error) => {
            let listener = listener.name();
            tracing::error!(
                event = "listener.backlog_lost", %listener, reason = %error,
                "cannot accept those that still wait on {listener}, they are lost: {error}"
            );
            None
        }
    });
    attempts.flatten()
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
