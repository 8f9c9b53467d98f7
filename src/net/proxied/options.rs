//! The socket options that a proxy sets, and the socket state that it reads.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::time::Instant;

use super::super::stream::{Delay, Family, Stream};
use crate::sys;

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

    /// Disables Nagle's algorithm (`TCP_NODELAY`, see tcp(7)), because a proxy does not know
    /// whether more bytes will follow. Does nothing for a Unix socket.
    ///
    /// To save a system call, this stream sets the option just before the second write. The kernel
    /// never delays the first write, and many connections write only once.
    pub(crate) fn set_nodelay(&mut self) {
        if matches!(self.socket, Family::Tcp(_)) {
            self.delay = Delay::FromTheFirst;
        }
    }

    /// Makes the kernel reset the connection when the stream is dropped, so that the peer does not
    /// mistake the end for an orderly close. The reset may destroy data that the peer has not
    /// acknowledged yet (see [`Stream::acknowledged`]). Unix sockets have no resets.
    pub(crate) fn reset_on_drop(&self) {
        if let Family::Tcp(socket) = &self.socket {
            // Ignore an error, because it can only mean that the connection has already ended.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
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

    /// Returns the number of bytes transferred in both directions so far. A caller can compare two
    /// results to see whether the connection was idle in between.
    pub(crate) fn carried(&self) -> u64 {
        self.received() + self.sent()
    }

    /// Returns whether the kernel knows that the peer is gone: the connection was reset, or both
    /// sides have closed it. A peer that has only closed its own side does not count as gone. It
    /// may still read, because TCP cannot distinguish a half-close from a full close.
    pub(crate) fn has_hung_up(&self) -> bool {
        sys::socket::has_hung_up(self.as_fd())
    }

    /// Waits until the peer's kernel has acknowledged all data. Gives up if no further data is
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

    /// Removes the socket from the tokio runtime and returns it, without closing the connection.
    ///
    /// # Errors
    /// Fails if the kernel cannot remove the socket from the runtime.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        match self.socket {
            Family::Tcp(socket) => socket.into_std().map(OwnedFd::from),
            Family::Unix(socket) => socket.into_std().map(OwnedFd::from),
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
