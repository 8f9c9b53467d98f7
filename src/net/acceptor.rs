//! An accept loop for one listener. Errors of accept(2) do not end the loop.
//!
//! The listener is registered with the tokio runtime only while the [`WatchedListener`] lives. A
//! longer registration would wake this process for connections that another generation accepts.
//! Closing the listener would not end the registration, because other processes may hold the same
//! socket (see epoll(7), question 6).
//!
//! When file descriptors or memory run out, the loop waits and retries, and clients wait in the
//! backlog. The caller stops the loop by dropping the [`WatchedListener`].

use std::io;
use std::os::fd::OwnedFd;
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
use crate::sys::reserve::ReserveAccess;

/// The delay before the first retry when descriptors or memory have run out. The delay doubles with
/// each retry, as in Go's net/http. The loop has to retry on a timer, because the kernel does not
/// signal when a descriptor or memory is free again.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The maximum delay between two retries when descriptors or memory have run out.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// The maximum duration of a TCP handshake. The kernel resends a lost packet after one second (see
/// tcp(7)), so this timeout allows for one lost packet. When a new listening socket replaces an old
/// one, clients that have begun their handshake still arrive on the old socket during this time.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// An accept loop for one listener.
#[derive(Debug)]
pub(crate) struct WatchedListener {
    listener: Listener,
    watch: AsyncFd<Arc<Socket>>,
    /// The last retry delay during a shortage of file descriptors or memory, or `None` without a
    /// shortage. A shortage ends when the backlog is empty. An accepted connection does not end it,
    /// because the connection may have taken the only free descriptor.
    shortage: Option<Duration>,
    /// How many of the reserved file descriptors this listener may use.
    access: ReserveAccess,
}

impl WatchedListener {
    /// Creates an accept loop and registers the listener with the tokio runtime. Must be called
    /// within a tokio runtime.
    pub(crate) fn new(listener: Listener) -> io::Result<Self> {
        let access = match &**listener.name() {
            CONTROL => ReserveAccess::All,
            METRICS_LISTENER => ReserveAccess::Half,
            _ => ReserveAccess::Nothing,
        };
        Ok(Self { watch: listener.watch()?, listener, shortage: None, access })
    }

    /// Returns the listener whose connections this loop accepts.
    pub(crate) const fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Waits until a client is in the backlog. Cancel safe.
    pub(crate) async fn client_waits(&self) {
        // An error means that the runtime shuts down, and the accept then fails too.
        while let Ok(mut ready) = self.watch.readable().await {
            if self.listener.has_clients() {
                return;
            }
            ready.clear_ready();
        }
    }

    /// Waits until the runtime believes that a client is in the backlog. Another process or accept
    /// loop may have accepted this client, which [`WatchedListener::attempt`] finds out. Makes no
    /// system call. Cancel safe.
    pub(crate) async fn client_may_wait(&self) {
        // Ignore an error, which means that the runtime shuts down. The accept then fails too.
        let _ = self.watch.readable().await;
    }

    /// Accepts the next connection and registers it with the current tokio runtime. Cancel safe: an
    /// accepted connection is never lost. Calls `on_shortage` as [`WatchedListener::accept`] does.
    pub(crate) async fn accept_here(&mut self, on_shortage: impl Fn()) -> (Stream, Peer) {
        loop {
            if let Some(accepted) = self.accept(&on_shortage).await.into_stream(&self.listener) {
                return accepted;
            }
        }
    }

    /// Accepts the next connection. Cancel safe: an accepted connection is never lost.
    ///
    /// Calls `on_shortage` once at the beginning of each shortage of file descriptors or memory.
    pub(crate) async fn accept(&mut self, on_shortage: impl Fn()) -> Accepted {
        loop {
            if let Some(accepted) = self.attempt(&on_shortage).await {
                return accepted;
            }
        }
    }

    /// Tries to accept a client after [`WatchedListener::client_waits`] has returned, and registers
    /// the connection with the current tokio runtime. Returns `None` if this fails, for example
    /// because another process has accepted the client. Calls `on_shortage` as
    /// [`WatchedListener::accept`] does. Cancel safe.
    pub(crate) async fn accept_waiting(
        &mut self,
        on_shortage: impl Fn(),
    ) -> Option<(Stream, Peer)> {
        self.attempt(&on_shortage).await?.into_stream(&self.listener)
    }

    /// Waits until a client is in the backlog, and tries once to accept it. Returns `None` if this
    /// fails. If file descriptors or memory have run out, waits before it returns. Cancel safe.
    pub(crate) async fn attempt(&mut self, on_shortage: &impl Fn()) -> Option<Accepted> {
        match self.look().await {
            Ok(Some(accepted)) => {
                self.shortage = self.shortage.map(|_| Duration::ZERO);
                return Some(accepted);
            }
            Ok(None) => {
                if self.shortage.take().is_some() {
                    self.listener.shortage.end(self.listener.name());
                }
            }
            Err(error) if is_the_peers_affair(&error) => log_aborted(&self.listener, &error),
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
        None
    }

    /// Waits until the listener is readable and tries to accept one connection. Returns `None` if
    /// the backlog turns out to be empty. Cancel safe.
    async fn look(&self) -> io::Result<Option<Accepted>> {
        let mut ready = self.watch.readable().await?;
        let accept =
            || sys::reserve::accept(self.access, &self.listener, || self.listener.accept());
        let accepted =
            ready.try_io(|_| accept()).map_or(Ok(None), |accepted| accepted.map(Some))?;
        Ok(accepted.map(|(accepted, descriptor_claim)| Accepted {
            descriptor_claim: Some(descriptor_claim),
            ..accepted
        }))
    }
}

/// Accepts one connection without waiting, and makes its socket blocking. For a thread that waits
/// for clients with poll(2). Returns `None` if the backlog is empty or the client has gone. Calls
/// `on_shortage` once at the beginning of each shortage of file descriptors or memory.
///
/// # Errors
/// Fails during such a shortage, which is logged. The caller must pause before it tries again.
pub(crate) fn accept_blocking(
    listener: &Listener,
    on_shortage: impl Fn(),
) -> io::Result<Option<(OwnedFd, Peer)>> {
    let shortage = &listener.shortage;
    let accept = || listener.accept();
    match sys::reserve::accept(ReserveAccess::Nothing, listener, accept) {
        Ok((accepted, _)) => {
            // The thread does not accept on an empty backlog, so a shortage ends here.
            if shortage.is_on() && !listener.has_clients() {
                shortage.end(listener.name());
            }
            accepted.into_blocking().map(Some)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if is_the_peers_affair(&error) => {
            log_aborted(listener, &error);
            Ok(None)
        }
        Err(error) => {
            if shortage.begin(listener.name(), &error) {
                on_shortage();
            }
            Err(error)
        }
    }
}

fn log_aborted(listener: &Listener, error: &io::Error) {
    tracing::debug!(
        event = "connection.aborted", listener = %listener.name(), %error,
        "a client aborted its connection before it was accepted: {error}"
    );
}

/// Accepts the connections that are left in the backlog of a listener, after all processes have
/// stopped accepting on it. Registers them with the current tokio runtime.
pub(crate) fn pending(listener: &Listener) -> impl Iterator<Item = (Stream, Peer)> {
    left_in_backlog(listener).filter_map(|accepted| accepted.into_stream(listener))
}

/// Accepts the connections that are left in the backlog of a listener, as [`pending`] does, and
/// makes their sockets blocking.
pub(crate) fn pending_blocking(listener: &Listener) -> impl Iterator<Item = (OwnedFd, Peer)> {
    left_in_backlog(listener).filter_map(|accepted| accepted.into_blocking().ok())
}

/// Accepts the connections that are left in the backlog of a listener.
///
/// The number of connections is limited to about the length of a backlog. Without this limit, the
/// iterator might never end, because new connections may keep arriving.
fn left_in_backlog(listener: &Listener) -> impl Iterator<Item = Accepted> {
    let attempts = (0..=BACKLOG).map_while(|_| match listener.accept() {
        Ok(accepted) => Some(Some(accepted)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) if is_the_peers_affair(&error) => Some(None),
        Err(error) => {
            let listener = listener.name();
            tracing::error!(
                event = "listener.backlog_lost", %listener, reason = %error,
                "cannot accept the last clients in the backlog of {listener}, so their connections \
                are reset: {error}"
            );
            None
        }
    });
    attempts.flatten()
}

/// Returns whether an error of accept(2) concerns only one connection, so that the next call may
/// succeed.
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
