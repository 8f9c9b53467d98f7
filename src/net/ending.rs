//! The end of a connection. A connection ends either with an orderly close that does not destroy a
//! reply, or with a reset that the peer cannot mistake for an orderly close.
//!
//! The kernel sends a reset if bytes are unread at the `close`, or if bytes arrive after it. A
//! reset destroys a reply that is still on its way (see RFC 2525, 2.17). If another process also
//! holds the socket, `close` sends nothing at all. [`Stream::finish`] is the only function that
//! closes a connection in order.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{Family, Stream};
use crate::sys;

impl Stream {
    /// Closes the connection in order. It first half-closes the connection, and then waits for the
    /// peer while closing could destroy data that was already sent.
    ///
    /// Returns at once if no reply is left that a reset could destroy. This is so if the peer has
    /// already half-closed, or if everything sent is acknowledged and nothing is left to read.
    /// Otherwise this function reads and discards what the peer still sends, until the peer closes
    /// or `linger` has passed.
    ///
    /// Returns the number of bytes that arrived too late to be answered.
    pub(crate) async fn finish(&mut self, linger: Duration) -> u64 {
        if self.peer_finished {
            // The peer has half-closed, so closing the socket ends the connection. Only a socket
            // that another process shares needs an explicit half-close.
            self.say_end();
            return 0;
        }
        let nothing_at_risk =
            !self.has_input() && matches!(sys::socket::unacknowledged(self.as_fd()), Ok(0));
        if self.shutdown().await.is_err() || nothing_at_risk {
            return 0;
        }
        let mut late = 0;
        // Box this future, because it would make the future of every connection larger, and few
        // connections reach this point.
        let _ = Box::pin(tokio::time::timeout(linger, self.discard(&mut late))).await;
        late
    }

    /// Half-closes the connection if another process may hold the socket too. Without this, closing
    /// the socket here would send nothing to the peer.
    pub(crate) fn say_end(&self) {
        if self.is_shared {
            // Ignore the error, because the socket is then already half-closed or broken.
            let _ = SockRef::from(self).shutdown(Shutdown::Write);
        }
    }

    /// Reads and discards bytes until the peer closes. Adds these bytes to `late` and not to the
    /// received bytes, because no reply is sent for them.
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
    /// mistake the end for an orderly close. Data that the peer has not acknowledged by then is
    /// lost (see [`Stream::acknowledged`]). Unix sockets have no resets.
    pub(crate) fn reset_on_drop(&self) {
        if let Family::Tcp(socket) = &self.socket {
            // Ignore the error: setting this option fails only if the connection has already ended.
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
        // Bytes that arrive too late to be answered do not count as received.
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
