//! The end of a connection: either an orderly close that does not destroy a reply, or a reset that
//! cannot be mistaken for one.
//!
//! If bytes are unread at the `close`, or arrive after it, the kernel sends a reset. A reset
//! destroys a reply that is still on its way (RFC 2525, 2.17). While another process also holds the
//! socket, `close` sends nothing at all. [`Stream::finish`] is the only function that closes a
//! connection in order.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{Family, Stream};
use crate::sys;

impl Stream {
    /// Closes the connection in order: half-closes it, and waits for the peer while closing could
    /// destroy data already sent.
    ///
    /// Returns at once if the peer has already half-closed, or if everything sent is acknowledged
    /// and nothing is left to read. Then no reply is left that a reset could destroy. Otherwise
    /// reads and discards what the peer still sends, until the peer closes or `linger` has passed.
    ///
    /// Returns the number of bytes that arrived too late to be answered.
    pub(crate) async fn finish(&mut self, linger: Duration) -> u64 {
        if self.peer_finished {
            // The peer has half-closed, so the close that follows ends the connection. Only a
            // shared socket needs an explicit half-close.
            self.say_end();
            return 0;
        }
        let nothing_at_risk =
            !self.has_input() && matches!(sys::socket::unacknowledged(self.as_fd()), Ok(0));
        if self.shutdown().await.is_err() || nothing_at_risk {
            return 0;
        }
        let mut late = 0;
        // Boxed, because otherwise the future of every connection would grow by this much, and few
        // connections get here.
        let _ = Box::pin(tokio::time::timeout(linger, self.discard(&mut late))).await;
        late
    }

    /// Half-closes a shared socket. Another process may hold the socket too, and then the close
    /// that follows sends nothing.
    pub(crate) fn say_end(&self) {
        if self.is_shared {
            // The error is ignored: the socket is already half-closed or broken.
            let _ = SockRef::from(self).shutdown(Shutdown::Write);
        }
    }

    /// Reads until the peer closes. Counts the bytes in `late` and not as received, because they
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

    /// Makes the kernel reset the connection when the stream is dropped, so that the peer does not
    /// mistake it for an orderly close. Data that the peer has not acknowledged by then is lost,
    /// see [`Stream::acknowledged`]. Unix sockets have no resets.
    pub(crate) fn reset_on_drop(&self) {
        if let Family::Tcp(socket) = &self.socket {
            // Setting the option fails only if the connection is already gone.
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
        // The late bytes do not count as received.
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
