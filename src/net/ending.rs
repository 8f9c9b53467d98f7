//! This module ends a connection. An orderly close lets the peer receive the whole reply. A reset
//! tells the peer that the connection did not end normally.
//!
//! The kernel sends a reset if received bytes are still unread when the socket is closed, or if
//! more bytes arrive later. A reset destroys a reply that is still on its way (see RFC 2525, 2.17).
//! If another process also holds the socket, closing it here sends nothing to the peer. Only
//! [`Stream::finish`] performs an orderly close.

use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::stream::{Family, Stream};
use crate::sys;

/// A peer counts as gone if it acknowledges no further bytes for this time. Even a segment that TCP
/// loses four times arrives earlier, after about 3 s: TCP retransmits after 0.2 s and doubles the
/// delay each time.
pub(crate) const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);

impl Stream {
    /// Performs an orderly close. This function first half-closes the connection. Then it waits for
    /// the peer as long as closing the socket could destroy data that was already sent.
    ///
    /// Returns at once if a reset cannot destroy any data. This is the case if the peer has already
    /// half-closed, or if the peer has acknowledged all data and nothing is left to read. Otherwise
    /// this function reads and discards all further bytes from the peer, until the peer closes or
    /// `linger` has passed. A peer that has not acknowledged all data gets more time, as long as it
    /// acknowledges some more within each [`ACKNOWLEDGE_TIMEOUT`].
    ///
    /// Returns the number of discarded bytes, which arrived too late to be answered.
    pub(crate) async fn finish(&mut self, linger: Duration) -> u64 {
        if self.peer_finished {
            // Do not wait, because the peer has half-closed and will send no more bytes. Normally,
            // closing the socket ends the connection. A socket that another process shares needs an
            // explicit half-close.
            self.half_close_if_shared();
            return 0;
        }
        let nothing_at_risk =
            !self.has_input() && matches!(sys::socket::unacknowledged(self.as_fd()), Ok(0));
        if self.shutdown().await.is_err() || nothing_at_risk {
            return 0;
        }
        // Box this future, because few connections reach this point. Without the box, every
        // connection's future would be larger.
        Box::pin(self.discard_for(linger)).await
    }

    /// Reads and discards bytes for [`Stream::finish`], and returns the number of discarded bytes.
    async fn discard_for(&mut self, linger: Duration) -> u64 {
        let (mut late, mut left) = (0, usize::MAX);
        let mut until = Instant::now() + ACKNOWLEDGE_TIMEOUT;
        while timeout(linger, self.discard(&mut late)).await.is_err() {
            match sys::socket::unacknowledged(self.as_fd()) {
                Ok(now @ 1..) if now < left => {
                    (left, until) = (now, Instant::now() + ACKNOWLEDGE_TIMEOUT);
                }
                Ok(1..) if Instant::now() < until => {}
                Ok(_) | Err(_) => break,
            }
        }
        late
    }

    /// Half-closes the connection if another process may also hold the socket. Otherwise the peer
    /// would not notice that this process closes the socket.
    pub(crate) fn half_close_if_shared(&self) {
        if self.is_shared {
            // Ignore an error, which means that the socket is already half-closed or broken.
            let _ = SockRef::from(self).shutdown(Shutdown::Write);
        }
    }

    /// Reads and discards bytes until the peer closes. Counts these bytes in `late` and not as
    /// received, because the service does not answer them.
    async fn discard(&mut self, late: &mut u64) {
        let mut waste = [0; 8 * 1024];
        let mut read = async || match &mut self.socket {
            Family::Tcp(socket) => socket.read(&mut waste).await,
            Family::Unix(socket) => socket.read(&mut waste).await,
        };
        while let Ok(count @ 1..) = read().await {
            *late += count as u64;
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
