//! Gives a server the addresses of its listeners, and copies of their sockets as listeners of the
//! standard library. A server such as actix-web accepts connections on these copies by itself.
//!
//! The library does not see the connections of such a server. The server itself must wait until
//! they end, and must drop them when [`Life::cut`] resolves.

#[cfg(feature = "actix")]
use std::future::poll_fn;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
#[cfg(feature = "actix")]
use std::task::Poll;

use socket2::{Domain, SockRef};

use crate::error::Error;
use crate::lifecycle::life::Life;
#[cfg(feature = "actix")]
use crate::lifecycle::life::ServedListeners;
use crate::net::Listener;

impl Life {
    /// Returns the address on which the listener called `name` listens. If port 0 is configured,
    /// the address contains the port that the kernel chose. If several passed sockets have this
    /// name, returns the address of the first one.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown.
    pub fn address(&self, name: &str) -> Result<String, Error> {
        self.served(name).map(|served| served.address.to_string())
    }

    /// Returns a new descriptor of the TCP listener called `name`. The socket is non-blocking and
    /// must stay so, because other generations share it. Stop accepting on it when
    /// [`Life::retired`] resolves.
    ///
    /// The library does not see the connections of such a socket. When the service stops and no
    /// other generation accepts, clients that connect before the process ends are reset. Prefer
    /// [`Life::acceptor`] or [`Life::private_listener`], which serve these clients.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, and [`Error::ListenerClosed`] if
    /// the listener is closed. Returns [`Error::ListenerKind`] if it has no TCP socket, and
    /// [`Error::SeveralSockets`] if it has several. Returns the kernel's error if no descriptor is
    /// free.
    pub fn tcp_listener(&self, name: &str) -> Result<TcpListener, Error> {
        self.copy_of(name, "TCP", |domain| domain != Domain::UNIX).map(Into::into)
    }

    /// Returns a new descriptor of the Unix listener called `name`, as [`Life::tcp_listener`] does.
    ///
    /// # Errors
    /// Returns the same errors as [`Life::tcp_listener`], for Unix sockets.
    pub fn unix_listener(&self, name: &str) -> Result<UnixListener, Error> {
        self.copy_of(name, "Unix", |domain| domain == Domain::UNIX).map(Into::into)
    }

    /// Waits until the drain has begun and a client is left that only this server can accept. Such
    /// a client waits on a listener of which the server has a copy, and on which no other
    /// generation accepts. Must be called in a tokio runtime. Cancel safe.
    #[cfg(feature = "actix")]
    pub(crate) async fn client_left(&self) {
        self.term().drain_begun().await;
        let left = self.left_to_server();
        let watched: Vec<_> = left.iter().map(Listener::watch).filter_map(Result::ok).collect();
        poll_fn(|cx| {
            for watch in &watched {
                while let Poll::Ready(Ok(mut ready)) = watch.poll_read_ready(cx) {
                    if self.has_client_left() {
                        return Poll::Ready(());
                    }
                    ready.clear_ready();
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Returns whether a client is left that only this server can accept; see
    /// [`Life::client_left`].
    #[cfg(feature = "actix")]
    pub(crate) fn has_client_left(&self) -> bool {
        self.left_to_server().iter().any(Listener::has_clients)
    }

    #[cfg(feature = "actix")]
    fn left_to_server(&self) -> Vec<Listener> {
        let served = self.state.served.get();
        served.map(ServedListeners::left_to_server).unwrap_or_default()
    }

    fn copy_of(
        &self,
        name: &str,
        kind: &'static str,
        is_wanted: impl Fn(Domain) -> bool,
    ) -> Result<OwnedFd, Error> {
        let all = self.served_all(name)?;
        let open: Vec<_> = all.iter().filter_map(|one| Some((one, one.socket()?))).collect();
        if open.is_empty() {
            return Err(Error::ListenerClosed { name: name.to_owned() });
        }
        let is_wanted = |socket: &Listener| SockRef::from(socket).domain().is_ok_and(&is_wanted);
        let wanted: Vec<_> = open.iter().filter(|(_, socket)| is_wanted(socket)).collect();
        match wanted[..] {
            [] => {
                let (name, address) = (name.to_owned(), all[0].address.to_string());
                Err(Error::ListenerKind { name, kind, address })
            }
            [(served, socket)] => {
                let failed = Error::system("duplicate the file descriptor of a listener");
                let copy = socket.try_clone().map_err(failed)?;
                served.set_copied();
                Ok(copy)
            }
            ref several => {
                Err(Error::SeveralSockets { name: name.to_owned(), count: several.len() })
            }
        }
    }
}
