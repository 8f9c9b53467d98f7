//! This module binds a TCP address that overlaps with the address of an older socket of this
//! service.
//!
//! For example, the kernel refuses to bind `0.0.0.0:80` while a socket listens on `127.0.0.1:80`.
//! It allows both sockets if both have `SO_REUSEPORT` and the same user created them (see
//! socket(7)). So this module sets the option on the old sockets and the new one before the bind.
//! It clears the option as soon as the new socket listens, because the option lets any process of
//! the same user listen on the port. [`Listener::divert`] explains what happens to the clients of
//! the old sockets.

use std::collections::HashMap;
use std::io;

use super::bind::{BACKLOG, new_socket};
use super::listener::Listener;
use super::origin::Origin;
use super::passed::Passed;
use super::socket_address::TryFromAddress;
use crate::address::Address;
use crate::error::Error;
use socket2::{SockAddr, Socket};

/// Sockets that an older generation bound and that no configured listener uses any more, grouped by
/// port.
#[derive(Debug)]
pub(super) struct OldSockets<'a>(HashMap<u16, Vec<&'a Passed>>);

impl<'a> OldSockets<'a> {
    pub(super) fn new(unclaimed: &'a [Passed]) -> Self {
        let mut by_port: HashMap<u16, Vec<&Passed>> = HashMap::new();
        for socket in unclaimed.iter().filter(|socket| socket.origin != Origin::Inherited) {
            if let Some(port) = socket.port() {
                by_port.entry(port).or_default().push(socket);
            }
        }
        Self(by_port)
    }

    /// Returns all old sockets on the port of `address`, including those whose address does not
    /// overlap with it. Such a socket may have replaced one that overlaps, and an older process may
    /// still hold the replaced socket.
    pub(super) fn beside(&self, address: &Address) -> &[&'a Passed] {
        let port = match address {
            Address::Tcp(socket) => socket.port(),
            Address::Tcp6Only(socket) => socket.port(),
            Address::UnixPath(_) | Address::UnixAbstract(_) => return &[],
        };
        self.0.get(&port).map_or(&[], Vec::as_slice)
    }
}

/// Binds `address` and listens, even though the sockets in `old` overlap with `address`.
///
/// # Errors
/// [`Error::Bind`] if a socket of another program overlaps with `address`, or if another user
/// created a socket in `old`.
pub(super) fn bind(name: &str, address: &Address, old: &[&Passed]) -> Result<Listener, Error> {
    let bound = SharedPort::of(old).and_then(|_shared| {
        let socket = new_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SockAddr::try_from_address(address)?)?;
        // Keep `SO_REUSEPORT` set until the socket listens, because listen(2) checks again for
        // conflicts with all other sockets of the port.
        socket.listen(BACKLOG)?;
        socket.set_reuse_port(false)?;
        Ok(socket)
    });
    let refuse =
        |source| Error::Bind { name: name.to_owned(), address: address.to_string(), source };
    bound.map(|socket: Socket| Listener::bound(name, address, socket, None)).map_err(refuse)
}

/// A guard that keeps `SO_REUSEPORT` set on the given sockets. While the guard exists, another
/// socket of this user can bind the same port. Dropping the guard clears the option.
struct SharedPort<'a>(&'a [&'a Passed]);

impl<'a> SharedPort<'a> {
    fn of(old: &'a [&'a Passed]) -> io::Result<Self> {
        let shared = Self(old);
        old.iter().try_for_each(|socket| socket.share_port(true)).map(|()| shared)
    }
}

impl Drop for SharedPort<'_> {
    fn drop(&mut self) {
        for socket in self.0 {
            if let Err(error) = socket.share_port(false) {
                tracing::warn!(
                    event = "socket.port_shared", reason = %error,
                    "cannot clear SO_REUSEPORT of {socket}, so other sockets may share its port: \
                    {error}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::unistd::{Uid, setfsuid};

    use super::*;

    /// Binds a socket to a port outside the kernel's ephemeral port range, so that no outgoing
    /// connection of another process uses the port.
    fn old(address: &str) -> (Passed, u16) {
        let start = std::process::id() % 20_000 + 5_000;
        let ports = (start..start + 1_000).map(|port| u16::try_from(port).unwrap());
        let bind = |port| {
            let is_free = TcpListener::bind(("::", port)).is_ok();
            let address = format!("{address}:{port}").parse().ok().filter(|_| is_free)?;
            Some((Listener::bind("old", &address, super::super::bind::Access::Owner).ok()?, port))
        };
        let (listener, port) = ports.into_iter().find_map(bind).unwrap();
        let passed =
            Passed::check(listener.try_clone().unwrap(), None, listener.origin().clone()).unwrap();
        (passed, port)
    }

    #[test]
    fn the_port_is_shared_for_the_bind_alone() {
        let (old, port) = old("127.0.0.1");
        let (at, unclaimed) =
            (|ip: &str| format!("{ip}:{port}").parse::<Address>().unwrap(), [old]);
        let sockets = OldSockets::new(&unclaimed);
        let new = bind("web", &at("0.0.0.0"), sockets.beside(&at("0.0.0.0"))).unwrap();
        for socket in [new.try_clone().unwrap(), unclaimed[0].try_clone().unwrap()] {
            assert!(!Socket::from(socket).reuse_port().unwrap());
        }
        let stranger = new_socket(&at("0.0.0.0")).unwrap();
        let refused =
            stranger.bind(&SockAddr::try_from_address(&at("0.0.0.0")).unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(sockets.beside(&"127.0.0.1:1".parse().unwrap()).is_empty());
    }

    #[test]
    fn another_user_cannot_bind_while_the_port_is_shared() {
        assert!(
            nix::unistd::geteuid().is_root(),
            "only root can be another user: run the tests as root"
        );
        let (old, port) = old("127.0.0.1");
        let old = [&old];
        let _shared = SharedPort::of(&old).unwrap();
        let address: Address = format!("0.0.0.0:{port}").parse().unwrap();
        std::thread::scope(|scope| {
            let stranger = scope.spawn(|| {
                // Change the user of this thread only. The kernel takes the owner of a new socket
                // from the thread that creates it.
                setfsuid(Uid::from_raw(65_534));
                let socket = new_socket(&address).unwrap();
                socket.set_reuse_port(true).unwrap();
                socket.bind(&SockAddr::try_from_address(&address).unwrap())
            });
            assert_eq!(stranger.join().unwrap().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        });
        bind("web", &address, &old).unwrap();
    }
}
