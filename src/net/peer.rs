//! The other end of a connection: its address, whether it is still connected, which data it has
//! acknowledged, and the first bytes that it sends.
//!
//! A proxy connects two peers and must pass on to each of them that the other one has closed or
//! lost its connection. So it needs details from the kernel that an ordinary server does not need.
//! [`super::stream`] transfers the bytes, and `ending` closes the connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockAddr, SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, Interest};
use tokio::time::Instant;

use super::stream::{Family, Stream};
use crate::sys;

/// The kind of peer at the other end of a connection, and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Stream {
    /// Makes the kernel send keep-alive probes when the peer has been silent for `time`
    /// (`TCP_KEEPIDLE`, see tcp(7)).
    ///
    /// # Errors
    /// An error such as `ENOPROTOOPT` from a socket that does not support the option.
    pub(crate) fn set_keep_alive(&self, time: Duration) -> io::Result<()> {
        match &self.socket {
            Family::Tcp(socket) => {
                SockRef::from(socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(time))
            }
            // A Unix socket needs no probes, because a local peer cannot disappear unnoticed.
            Family::Unix(_) => Ok(()),
        }
    }

    /// Makes the kernel give up on a peer that acknowledges nothing for `time` (`TCP_USER_TIMEOUT`,
    /// see tcp(7)).
    ///
    /// # Errors
    /// An error such as `ENOPROTOOPT` from a socket that does not support the option, for example
    /// an MPTCP socket.
    pub(crate) fn set_user_timeout(&self, time: Duration) -> io::Result<()> {
        match &self.socket {
            Family::Tcp(socket) => SockRef::from(socket).set_tcp_user_timeout(Some(time)),
            Family::Unix(_) => Ok(()),
        }
    }

    /// Returns the local TCP address of this connection. Returns `None` for a Unix socket, because
    /// its address is of no use to other hosts.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        match &self.socket {
            Family::Tcp(socket) => socket.local_addr().ok(),
            Family::Unix(_) => None,
        }
    }

    /// Returns whether the kernel knows that the peer is gone: the connection was reset, or both
    /// sides have closed it. If only the peer has closed, it does not count as gone, because it may
    /// still read: TCP cannot distinguish a half-close from a full close.
    pub(crate) fn has_hung_up(&self) -> bool {
        sys::socket::has_hung_up(self.as_fd())
    }

    /// Waits until the peer's kernel has acknowledged all data. Gives up when no more data is
    /// acknowledged for `patience`. Polls the state of the socket every 5 ms, because the kernel
    /// has no event for this.
    pub(crate) async fn acknowledged(&self, patience: Duration) {
        const PAUSE: Duration = Duration::from_millis(5);
        let mut left = usize::MAX;
        let mut until = Instant::now() + patience;
        while let Ok(now @ 1..) = sys::socket::unacknowledged(self.as_fd()) {
            if now < left {
                (left, until) = (now, Instant::now() + patience);
            } else if Instant::now() >= until {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads a header from the start of the received bytes, and leaves all bytes after it unread.
    ///
    /// Each time more bytes arrive, calls `look` with all bytes received so far, up to the size of
    /// `buffer`. `look` returns the length of the header and its meaning, or `None` if it needs
    /// more bytes. Cancel safe.
    ///
    /// # Errors
    /// `UnexpectedEof` if the peer half-closes before the header is complete, and any error from
    /// `look`.
    pub(crate) async fn read_head<T>(
        &mut self,
        buffer: &mut [u8],
        mut look: impl FnMut(&[u8]) -> io::Result<Option<(usize, T)>>,
    ) -> io::Result<T> {
        let (length, value) = loop {
            let is_at_end = match &self.socket {
                Family::Tcp(socket) => socket.ready(Interest::READABLE).await,
                Family::Unix(socket) => socket.ready(Interest::READABLE).await,
            }?
            .is_read_closed();
            let found = self.socket.try_io(Interest::READABLE, |socket| {
                let count = sys::socket::peek(socket, buffer)?;
                match look(&buffer[..count])? {
                    Some(found) => Ok(found),
                    None if is_at_end || count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    // Return `WouldBlock`, so that the runtime waits for new bytes. The bytes
                    // looked at so far stay unread.
                    None => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            match found {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                found => break found?,
            }
        };
        let head = &mut buffer[..length];
        self.read_exact(head).await?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::super::stream::tests::connected;
    use super::*;

    #[tokio::test]
    async fn the_kernel_is_told_when_a_silent_peer_counts_as_gone() {
        let (stream, _client) = connected().await;
        let socket = SockRef::from(&stream);
        assert_eq!(
            (socket.keepalive().unwrap(), socket.tcp_user_timeout().unwrap()),
            (false, None)
        );
        stream.set_keep_alive(Duration::from_secs(77)).unwrap();
        stream.set_user_timeout(Duration::from_millis(4321)).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(4321)));
    }

    #[tokio::test]
    async fn a_head_is_read_to_the_byte() {
        let (mut stream, mut client) = connected().await;
        client.write_all(b"head;rest").await.unwrap();
        let look = |bytes: &[u8]| {
            Ok(bytes.iter().position(|byte| *byte == b';').map(|end| (end + 1, end)))
        };
        assert_eq!(stream.read_head(&mut [0; 64], look).await.unwrap(), 4);
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest");
        client.write_all(b"no end").await.unwrap();
        client.shutdown().await.unwrap();
        let error = stream.read_head(&mut [0; 64], look).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
