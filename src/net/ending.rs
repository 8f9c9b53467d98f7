//! Ends a connection: in order, so that no reply is destroyed by it, or by a reset, so that nobody
//! takes it for an end in order.
//!
//! `close` with unread bytes, or bytes that come after it, makes the kernel send a reset, which
//! destroys a reply that is still on its way (RFC 2525, 2.17); and while another process holds the
//! socket it says nothing. [`Stream::finish`] is the one place that ends a connection in order.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{Family, Stream};
use crate::sys;

impl Stream {
    /// Ends the connection: half-closes, and stays for the peer's end as long as closing could
    /// destroy what was sent.
    ///
    /// Returns at once when the peer has half-closed already, or when everything that was sent is
    /// acknowledged and nothing waits to be read: then there is no reply that a reset could
    /// destroy. Otherwise reads and drops what the peer still sends until it closes, at most for
    /// `linger`.
    ///
    /// Returns how many bytes came too late to be answered.
    pub(crate) async fn finish(&mut self, linger: Duration) -> u64 {
        if self.peer_finished {
            // Both ends are said, or the close that follows says ours: no call is needed for it.
            self.say_end();
            return 0;
        }
        let nothing_at_risk =
            !self.has_input() && matches!(sys::socket::unacknowledged(self.as_fd()), Ok(0));
        if self.shutdown().await.is_err() || nothing_at_risk {
            return 0;
        }
        let mut late = 0;
        // In a box: every connection would be as large as this, and few come here.
        let _ = Box::pin(tokio::time::timeout(linger, self.discard(&mut late))).await;
        late
    }

    /// Says the end ahead of a close that may say nothing.
    pub(crate) fn say_end(&self) {
        if self.is_shared {
            // Where it is said already, or cannot be said any more, there is nothing to do.
            let _ = SockRef::from(self).shutdown(Shutdown::Write);
        }
    }

    /// Reads until the peer closes, and counts the bytes in `late`, not among those received: they
    /// are not served.
    async fn discard(&mut self, late: &mut u64) {
        let mut waste = [0; 512];
        let mut read = async || match &mut self.socket {
            Family::Tcp(socket) => socket.read(&mut waste).await,
            Family::Unix(socket) => socket.read(&mut waste).await,
        };
        while let Ok(count @ 1..) = read().await {
            *late += count as u64;
        }
    }

    /// Has the connection reset when it is dropped: the peer learns that this is no end in order.
    /// What it has not acknowledged by then is lost, see [`Stream::acknowledged`]. A Unix socket
    /// knows no reset.
    pub(crate) fn reset_on_drop(&self) {
        if let Family::Tcp(socket) = &self.socket {
            // If the socket is not to be told any more, there is nobody to be reset either.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::super::stream::tests::connected;
    use super::*;

    #[tokio::test]
    async fn a_reply_survives_a_client_that_goes_on_sending() {
        let (mut stream, mut client) = connected().await;
        stream.write_all(b"reply").await.unwrap();
        client.write_all(b"too late").await.unwrap();
        stream.readable().await.unwrap();
        let finish = tokio::spawn(async move {
            (stream.finish(Duration::from_secs(30)).await, stream.received())
        });
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"reply");
        drop(client);
        // They are no part of what was served.
        assert_eq!(finish.await.unwrap(), (8, 0));
    }

    #[tokio::test]
    async fn an_idle_connection_is_finished_without_waiting_for_its_peer() {
        let (mut stream, mut client) = connected().await;
        assert_eq!(stream.finish(Duration::MAX).await, 0);
        drop(stream);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
