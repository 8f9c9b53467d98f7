//! Holds a listening socket: accepts on it, and removes its path at the end.
//!
//! A listener may be shared with other processes at any time: with a predecessor, a successor, the
//! service manager. What lives in the shared description acts on all of them. So nothing here shuts
//! a listener down, shrinks its backlog or sets it blocking; and because somebody else may set it
//! blocking, the flag is looked at before every accept. Which listener goes with which name is
//! decided in [`super::ListenerSet`]; how one comes about is in [`super::bind`] and
//! [`super::passed`].

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

/// A bound, listening, non-blocking socket with a name. Clones share it.
#[derive(Clone, Debug)]
pub struct Listener {
    pub(super) name: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) origin: Arc<Origin>,
    pub(super) socket: Arc<Socket>,
    /// The shortage under way, shared by all accept loops of the listener: one of them reports it.
    pub(super) shortage: Arc<Shortage>,
    /// Whether another listener of the line gets its clients when it takes no more.
    pub(super) is_replaced: Arc<AtomicBool>,
}

/// A connection that was accepted, before a runtime watches it.
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
    /// Has the runtime watch it that this is called in. None when the kernel has no memory for
    /// that: then it is closed.
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
                    "cannot watch a connection on {listener}, it is lost: {error}"
                );
                None
            }
        }
    }
}

impl Listener {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it really listens: the port that the kernel chose for port 0.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Another descriptor of the same socket, for a server of your own. Never `shutdown` it: that
    /// acts on every process that holds it, shutdown(2).
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone().map(Into::into)
    }

    /// What no other socket has, in whichever process: `SO_COOKIE`, socket(7).
    pub(crate) fn cookie(&self) -> io::Result<u64> {
        self.socket.cookie()
    }

    /// Has the runtime tell when there is something to accept. Must be called in a tokio runtime.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<Arc<Socket>>> {
        sys::interrupt::start_watcher();
        sys::fd::watch(Arc::clone(&self.socket), Interest::READABLE)
    }

    /// Accepts one connection without waiting: `WouldBlock` when there is none.
    ///
    /// Another holder may have set the socket blocking (systemd does, for a unit without
    /// `NonBlocking=`); then accept would hang the thread. It is set back. When that happens
    /// between the look and the accept, the accept is interrupted: it has waited, so there was
    /// none.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        self.set_back_nonblocking()?;
        let accept = || self.socket.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        match sys::interrupt::unless_it_blocks(accept) {
            Ok((socket, address)) => {
                Ok(Accepted { socket, peer: Peer::new(&address), earmark: None })
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.set_back_nonblocking()?;
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error),
        }
    }

    fn set_back_nonblocking(&self) -> io::Result<()> {
        if !self.socket.nonblocking()? {
            self.socket.set_nonblocking(true)?;
            tracing::warn!(
                event = "listener.blocking", listener = %self.name,
                "another process set the listener blocking; set back"
            );
        }
        Ok(())
    }

    /// Notes whether another listener of the line gets its clients when it takes no more.
    pub(super) fn set_replaced(&self, is_replaced: bool) {
        self.is_replaced.store(is_replaced, Ordering::Relaxed);
    }

    /// Whether another listener of the line gets its clients when it takes no more.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Relaxed)
    }

    /// Sends new clients to the listener that has replaced this one. Cannot be undone.
    ///
    /// A socket that is closed resets the clients in the middle of their handshake. One that is
    /// bound to another interface gets no new clients, and those of before still come into its
    /// queue. It is no obstacle to a socket that is bound beside it meanwhile.
    pub(crate) fn divert(&self) {
        let diverted = self
            .socket
            .set_reuse_port(true)
            .and_then(|()| sys::socket::bind_to_no_interface(&*self.socket));
        if let Err(error) = diverted {
            let (listener, address) = (self.name(), self.address());
            tracing::warn!(
                event = "listener.divert_failed", %listener, address, reason = %error,
                "cannot divert new clients from {address}, those in a handshake may be reset: {error}"
            );
        }
    }

    /// Clears `SO_REUSEPORT`.
    pub(super) fn restore(&self) {
        if let Err(error) = self.socket.set_reuse_port(false) {
            tracing::debug!(
                event = "listener.port_shared", listener = %self.name, %error,
                "cannot take the port back"
            );
        }
    }

    /// Removes the path of a Unix socket that the line bound, if it is still the same file.
    pub(crate) fn unlink(&self) {
        let Origin::Bound(Binding { address, file: Some(file) }) = self.origin() else { return };
        let Some(path) = address.path() else { return };
        if file.is_at(path) {
            match std::fs::remove_file(path) {
                // When the line stops, all its generations do this at once: another one was faster.
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
