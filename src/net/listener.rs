//! A listening socket: how connections are accepted, and how its path is removed at the end.
//!
//! A predecessor, a successor or the service manager may share the socket at any time. Changes to
//! the shared open file description affect all of them. So this module never shuts a listener down,
//! shrinks its backlog or makes it blocking. Another process may make it blocking, so the flag is
//! checked before every accept. [`super::ListenerSet`] decides which listener gets which name.
//! [`super::bind`] and [`super::passed`] create listeners.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::origin::{Binding, Origin};
use super::peer::Peer;
use super::shortage::Shortage;
use super::stream::Stream;
use crate::sys;
use crate::sys::reserve::Earmark;

/// A named, bound, listening, non-blocking socket. Clones share it.
#[derive(Clone, Debug)]
pub struct Listener {
    pub(super) name: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) origin: Arc<Origin>,
    pub(super) socket: Arc<Socket>,
    /// The current shortage, shared by all accept loops of the listener so that only one of them
    /// reports it.
    pub(super) shortage: Arc<Shortage>,
    /// Whether another listener of this lineage takes over the clients when this one stops
    /// accepting.
    pub(super) is_replaced: Arc<AtomicBool>,
}

/// An accepted connection that is not registered with a runtime yet.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    pub(super) earmark: Option<Earmark>,
}

impl AsFd for Accepted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Accepted {
    /// Registers the connection with the current runtime. If the kernel has no memory for that,
    /// closes the connection and returns `None`.
    pub(crate) fn into_stream(self, listener: &Listener) -> Option<(Stream, Peer)> {
        match Stream::new(self.socket, self.peer) {
            Ok(mut stream) => {
                stream.earmark = self.earmark;
                Some((stream, self.peer))
            }
            Err(error) => {
                let listener = listener.name();
                tracing::error!(
                    event = "connection.unwatched", %listener, reason = %error,
                    "lost a connection on {listener}, cannot register it with the runtime: {error}"
                );
                None
            }
        }
    }
}

impl Listener {
    /// Returns the name of the listener.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the actual address, with the port that the kernel chose for port 0.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns where the socket comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns another descriptor of the same socket, for your own server. Never call `shutdown` on
    /// it: that affects every process that holds the socket, shutdown(2).
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone().map(Into::into)
    }

    /// Returns the cookie of the socket (`SO_COOKIE`, socket(7)), which identifies it in every
    /// process.
    pub(crate) fn cookie(&self) -> io::Result<u64> {
        self.socket.cookie()
    }

    /// Registers the socket with the runtime, to learn when there is something to accept. Must be
    /// called within a tokio runtime.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<Arc<Socket>>> {
        sys::interrupt::start_watcher();
        sys::fd::watch(Arc::clone(&self.socket), Interest::READABLE)
    }

    /// Accepts one connection without waiting.
    ///
    /// Another holder may have made the socket blocking (systemd does, for a unit without
    /// `NonBlocking=`), and then accept would block the thread. So the socket is first made
    /// non-blocking again. If it becomes blocking between the check and the accept, the watcher
    /// interrupts the accept.
    ///
    /// # Errors
    /// `WouldBlock` when the backlog is empty, and `Interrupted` when the caller has to try again.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        self.set_back_nonblocking()?;
        let accept = || self.socket.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        match sys::interrupt::unless_it_blocks(accept) {
            Ok((socket, address)) => {
                Ok(Accepted { socket, peer: Peer::new(&address), earmark: None })
            }
            Err(error) => {
                // Not WouldBlock after EINTR: a client may wait, and nothing would wake us for it.
                if error.kind() == io::ErrorKind::Interrupted {
                    self.set_back_nonblocking()?;
                }
                Err(error)
            }
        }
    }

    fn set_back_nonblocking(&self) -> io::Result<()> {
        if !self.socket.nonblocking()? {
            self.socket.set_nonblocking(true)?;
            tracing::warn!(
                event = "listener.blocking", listener = %self.name,
                "another process made the listener blocking: made it non-blocking again"
            );
        }
        Ok(())
    }

    /// Records whether another listener of this lineage takes over the clients when this one stops
    /// accepting.
    pub(super) fn set_replaced(&self, is_replaced: bool) {
        self.is_replaced.store(is_replaced, Ordering::Relaxed);
    }

    /// Returns whether another listener of this lineage takes over the clients when this one stops
    /// accepting.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Relaxed)
    }

    /// Sends new clients to the listener that has replaced this one. This cannot be undone.
    ///
    /// Closing the socket would reset clients in the middle of their handshake. So it is bound to a
    /// nonexistent interface instead: it gets no new clients, but handshakes already begun still
    /// complete into its backlog. `SO_REUSEPORT` lets other sockets be bound to its port meanwhile.
    pub(crate) fn divert(&self) {
        let diverted = self
            .socket
            .set_reuse_port(true)
            .and_then(|()| sys::socket::bind_to_no_interface(&*self.socket));
        if let Err(error) = diverted {
            let (listener, address) = (self.name(), self.address());
            tracing::warn!(
                event = "listener.divert_failed", %listener, address, reason = %error,
                "cannot divert new clients from {address}, handshakes may be reset: {error}"
            );
        }
    }

    /// Clears `SO_REUSEPORT`.
    pub(super) fn restore(&self) {
        if let Err(error) = self.socket.set_reuse_port(false) {
            tracing::debug!(
                event = "listener.port_shared", listener = %self.name, %error,
                "cannot clear SO_REUSEPORT: {error}"
            );
        }
    }

    /// Removes the path of a Unix socket that this lineage bound, if the path still leads to the
    /// same file.
    pub(crate) fn unlink(&self) {
        let Origin::Bound(Binding { address, file: Some(file) }) = self.origin() else { return };
        let Some(path) = address.path() else { return };
        if file.is_at(path) {
            match std::fs::remove_file(path) {
                // Ignore a missing file: when the daemon stops, all generations do this at once,
                // and another one was faster.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(
                        event = "socket.unlink_failed", listener = %self.name,
                        path = %path.display(), reason = %error,
                        "cannot unlink the socket: {error}"
                    );
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
