//! The other end of a connection: its kind and its address.

use std::fmt;
use std::net::SocketAddr;

use socket2::SockAddr;

/// The kind of peer at the other end of a connection, and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP client, with its address.
    Tcp(SocketAddr),
    /// A client on a Unix socket. Such a client has no address.
    Unix,
}

impl Peer {
    pub(crate) fn new(address: &SockAddr) -> Self {
        address.as_socket().map_or(Self::Unix, Self::Tcp)
    }

    /// Returns the address of the peer. Returns `None` for a client on a Unix socket.
    pub(crate) const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}
