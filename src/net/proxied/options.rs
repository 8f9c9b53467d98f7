//! The socket options that a proxy sets, and the socket state that it reads. They work for a socket
//! that the tokio runtime watches, and for one that a relay watches outside of the runtime.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::super::no_delay::Delay;
use super::super::stream::{Family, Stream};
use super::relay_socket::RelaySocket;
use crate::sys;

/// A connected socket whose bytes a proxy moves.
pub(crate) trait ProxiedSocket: AsFd + Sized {
    /// Returns whether the socket is a TCP socket. Otherwise it is a Unix socket.
    fn is_tcp(&self) -> bool;

    /// Disables Nagle's algorithm (`TCP_NODELAY`, see tcp(7)), because a proxy does not know
    /// whether more bytes will follow. Does nothing for a Unix socket.
    ///
    /// To save a system call, the socket sets the option just before the second write. The kernel
    /// never delays the first write, and many connections write only once.
    fn set_nodelay(&mut self);

    /// Makes the kernel send keep-alive probes when the peer has been silent for `time`
    /// (`TCP_KEEPIDLE`, see tcp(7)). A Unix socket needs no probes, because a local peer cannot
    /// disappear unnoticed.
    ///
    /// # Errors
    /// An error such as `ENOPROTOOPT` from a socket that does not support the option.
    fn set_keep_alive(&self, time: Duration) -> io::Result<()> {
        if !self.is_tcp() {
            return Ok(());
        }
        SockRef::from(self).set_tcp_keepalive(&TcpKeepalive::new().with_time(time))
    }

    /// Makes the kernel give up on a peer that acknowledges nothing for `time` (`TCP_USER_TIMEOUT`,
    /// see tcp(7)).
    ///
    /// # Errors
    /// An error such as `ENOPROTOOPT` from a socket that does not support the option, for example
    /// an MPTCP socket.
    fn set_user_timeout(&self, time: Duration) -> io::Result<()> {
        if !self.is_tcp() {
            return Ok(());
        }
        SockRef::from(self).set_tcp_user_timeout(Some(time))
    }

    /// Makes the kernel reset the connection when the socket is closed, so that the peer does not
    /// mistake the end for an orderly close. The reset may destroy data that the peer has not
    /// acknowledged yet (see [`RelaySocket::acknowledged`]). Unix sockets have no resets.
    fn reset_on_drop(&self) {
        if self.is_tcp() {
            // Ignore an error, because it can only mean that the connection has already ended.
            let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
        }
    }

    /// Returns the local TCP address of this connection. Returns `None` for a Unix socket, because
    /// its address is of no use to other hosts.
    fn local(&self) -> Option<SocketAddr> {
        if !self.is_tcp() {
            return None;
        }
        SockRef::from(self).local_addr().ok()?.as_socket()
    }

    /// Returns whether the kernel knows that the peer is gone: the connection was reset, or both
    /// sides have closed it. A peer that has only closed its own side does not count as gone. It
    /// may still read, because TCP cannot distinguish a half-close from a full close.
    fn has_hung_up(&self) -> bool {
        sys::socket::has_hung_up(self.as_fd())
    }

    /// Returns whether the peer is gone and has left no bytes to pass on. The peer of a Unix socket
    /// may have sent bytes just before it closed the socket.
    fn has_left(&self) -> bool {
        let has_bytes = || matches!(sys::socket::peek(self.as_fd(), &mut [0]), Ok(1..));
        self.has_hung_up() && (self.is_tcp() || !has_bytes())
    }
}

impl ProxiedSocket for Stream {
    fn is_tcp(&self) -> bool {
        matches!(self.socket, Family::Tcp(_))
    }

    fn set_nodelay(&mut self) {
        if self.is_tcp() {
            self.delay = Delay::FromTheFirst;
        }
    }
}

impl ProxiedSocket for RelaySocket {
    fn is_tcp(&self) -> bool {
        !self.is_unix
    }

    fn set_nodelay(&mut self) {
        if self.is_tcp() {
            self.delay = Delay::FromTheFirst;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::stream::tests::connected;
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
}
