//! A listening socket. This module accepts connections on it, and removes its path when the service
//! ends.
//!
//! A predecessor, a successor or the service manager may share the socket at any time. These
//! processes share one open file description, so each change to the socket affects all of them.
//! Therefore this module never shuts the socket down, shrinks its backlog or makes it blocking.
//! Another process may make the socket blocking, so this module checks the flag before every
//! accept.
//!
//! [`super::ListenerSet`] gives each listener its name. [`super::bind`] and [`super::passed`]
//! create listeners.

use std::io;
#[cfg(feature = "proxy")]
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::origin::{Binding, Origin};
use super::peer::Peer;
#[cfg(feature = "proxy")]
use super::proxied::RelaySocket;
use super::shortage::Shortage;
use super::stream::Stream;
use crate::sys;
use crate::sys::reserve::DescriptorClaim;

/// A named listening socket, bound and non-blocking. Clones share the same socket.
#[derive(Clone, Debug)]
pub struct Listener {
    pub(super) name: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) origin: Arc<Origin>,
    pub(super) socket: Arc<Socket>,
    /// Whether accepting fails because file descriptors or memory have run out. All accept loops of
    /// the listener share this state, so that only one of them logs the shortage.
    pub(super) shortage: Arc<Shortage>,
    /// Whether another listener of this service gets the new clients when this listener stops
    /// accepting.
    pub(super) is_replaced: Arc<AtomicBool>,
}

/// An accepted connection that has not been registered with a tokio runtime yet.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    pub(super) descriptor_claim: Option<DescriptorClaim>,
}

impl AsFd for Accepted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Accepted {
    /// Returns the address of the client.
    #[cfg(feature = "proxy")]
    pub(crate) const fn peer(&self) -> Peer {
        self.peer
    }

    /// Returns the client's address and the address that it has connected to. Returns `None` for a
    /// Unix socket.
    #[cfg(feature = "proxy")]
    pub(crate) fn route(&self) -> Option<(SocketAddr, SocketAddr)> {
        let destination = self.socket.local_addr().ok()?.as_socket()?;
        Some((self.peer.address()?, destination))
    }

    /// Converts the connection into a [`RelaySocket`], which no tokio runtime watches.
    #[cfg(feature = "proxy")]
    pub(crate) fn into_relay_socket(self) -> RelaySocket {
        RelaySocket::new(self.socket, self.peer == Peer::Unix)
    }

    /// Makes the socket of the connection blocking, for a server of threads.
    pub(crate) fn into_blocking(self) -> io::Result<(OwnedFd, Peer)> {
        self.socket.set_nonblocking(false)?;
        Ok((self.socket.into(), self.peer))
    }

    /// Registers the connection with the current tokio runtime. If the kernel has no memory left,
    /// closes the connection and returns `None`.
    pub(crate) fn into_stream(self, listener: &Listener) -> Option<(Stream, Peer)> {
        match Stream::new(self.socket, self.peer) {
            Ok(mut stream) => {
                stream.descriptor_claim = self.descriptor_claim;
                Some((stream, self.peer))
            }
            Err(error) => {
                let listener = listener.name();
                tracing::error!(
                    event = "connection.unwatched", %listener, reason = %error,
                    "closed a new client connection on {listener}, because it cannot be watched \
                    for events: {error}"
                );
                None
            }
        }
    }
}

impl Listener {
    /// Returns the name of the listener in the configuration.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the address on which the socket listens. If port 0 is configured, the address
    /// contains the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the address of the socket itself, not of a client.
    #[cfg(feature = "axum")]
    pub(crate) fn local_address(&self) -> io::Result<Peer> {
        self.socket.local_addr().map(|address| Peer::new(&address))
    }

    /// Returns who created the socket: this service, or a parent such as systemd.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns a duplicate descriptor of the listening socket, for use in your own server. Never
    /// call `shutdown` on it, because that affects every process that holds the socket (see
    /// shutdown(2)).
    ///
    /// # Errors
    /// Fails if no file descriptor is free.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone().map(Into::into)
    }

    /// Returns the cookie of the socket, a number that identifies it in every process (`SO_COOKIE`,
    /// see socket(7)).
    pub(crate) fn cookie(&self) -> io::Result<u64> {
        self.socket.cookie()
    }

    /// Returns whether a client waits in the backlog.
    pub(crate) fn has_clients(&self) -> bool {
        let mut watched = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Registers the socket with the tokio runtime, which then reports when a connection can be
    /// accepted. Must be called within a tokio runtime.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<Arc<Socket>>> {
        sys::interrupt::start_watcher();
        match sys::fd::watch(Arc::clone(&self.socket), Interest::READABLE) {
            // A runtime watches each descriptor only once, so a second accept loop needs a copy.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                sys::fd::watch(Arc::new(self.socket.try_clone()?), Interest::READABLE)
            }
            watched => watched,
        }
    }

    /// Accepts one connection without waiting.
    ///
    /// Another process that holds the socket may have made it blocking, and accept(2) would then
    /// block the thread. For example, systemd makes it blocking for a unit without `NonBlocking=`.
    /// So this function first makes the socket non-blocking again. If another process makes it
    /// blocking just before the accept, a watcher thread interrupts the accept.
    ///
    /// # Errors
    /// `WouldBlock` when the backlog is empty, and `Interrupted` when the caller must call this
    /// function again.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        self.set_back_nonblocking()?;
        let accept = || self.socket.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        match sys::interrupt::unless_it_blocks(accept) {
            Ok((socket, address)) => {
                Ok(Accepted { socket, peer: Peer::new(&address), descriptor_claim: None })
            }
            Err(error) => {
                // Return EINTR unchanged, so that the caller tries again. After `WouldBlock`, the
                // caller would wait for the next event, although a client may already be in the
                // backlog.
                if error.kind() == io::ErrorKind::Interrupted {
                    self.set_back_nonblocking()?;
                }
                Err(error)
            }
        }
    }

    /// Returns whether `other` is a clone of this listener.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.socket, &other.socket)
    }

    /// Returns whether this process has another clone of this listener, which keeps the socket
    /// open.
    pub(crate) fn is_cloned(&self) -> bool {
        Arc::strong_count(&self.socket) > 1
    }

    fn set_back_nonblocking(&self) -> io::Result<()> {
        if !self.socket.nonblocking()? {
            self.socket.set_nonblocking(true)?;
            tracing::warn!(
                event = "listener.blocking", listener = %self.name,
                "the socket of the listener {} is non-blocking again: another process had made it \
                blocking",
                self.name
            );
        }
        Ok(())
    }

    /// Records whether another listener of this service gets the new clients when this listener
    /// stops accepting.
    pub(super) fn set_replaced(&self, is_replaced: bool) {
        self.is_replaced.store(is_replaced, Ordering::Relaxed);
    }

    /// Returns whether the successor has replaced this listener with another one, which will get
    /// the new clients.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Relaxed)
    }

    /// Directs new clients to the listener that has replaced this one, without losing clients of
    /// this listener. This cannot be undone.
    ///
    /// Closing the socket would reset clients that are in the middle of the TCP handshake. Instead,
    /// this function binds the socket to a nonexistent network interface. New clients then no
    /// longer reach the socket, but handshakes that have already begun still complete. This
    /// function also sets `SO_REUSEPORT`, so that other sockets of this service can bind the port
    /// while this socket is open.
    pub(crate) fn divert(&self) {
        let diverted = self
            .socket
            .set_reuse_port(true)
            .and_then(|()| sys::socket::bind_to_no_interface(&*self.socket));
        if let Err(error) = diverted {
            let (listener, address) = (self.name(), self.address());
            tracing::warn!(
                event = "listener.divert_failed", %listener, address, reason = %error,
                "cannot keep new clients away from a socket on {address} that is about to close, \
                so some may be reset: {error}"
            );
        }
    }

    /// Clears `SO_REUSEPORT`, so that no other socket can bind the port.
    pub(super) fn restore(&self) {
        if let Err(error) = self.socket.set_reuse_port(false) {
            tracing::debug!(
                event = "listener.port_shared", listener = %self.name, %error,
                "cannot clear SO_REUSEPORT of the listener {}, so other sockets may share its \
                port: {error}",
                self.name
            );
        }
    }

    /// Removes the path of a Unix socket that this service bound. Does nothing if the path no
    /// longer leads to the same file.
    pub(crate) fn unlink(&self) {
        let Origin::Bound(Binding { address, file: Some(file) }) = self.origin() else { return };
        let Some(path) = address.path() else { return };
        if file.is_at(path) {
            match std::fs::remove_file(path) {
                // Ignore a missing file, because another generation may have removed it first. When
                // the service stops, all generations remove the path at the same time.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(
                        event = "socket.unlink_failed", listener = %self.name,
                        path = %path.display(), reason = %error,
                        "cannot remove {}, the path of a Unix socket: {error}",
                        path.display()
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
