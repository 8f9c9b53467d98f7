//! Detection of a peer that disappears while nothing is read from its socket.
//!
//! Normally a read reports a broken connection. But a proxy stops reading from a socket after end
//! of file, and while the last bytes from that socket wait for a slow receiver.
//!
//! This module detects the loss of the peer through events of the tokio runtime. The runtime can
//! wake a task when a socket becomes readable or writable. Waiting until the socket is readable is
//! useless, because it stays readable after end of file. Instead, the task clears the runtime's
//! record that the socket is writable, and then waits until the socket is writable. Every event on
//! the socket then wakes the task, including an error.
//!
//! After that, the runtime's record may be wrong, because the socket may still be writable. So
//! [`Stream`] tries to write even if the record says that the socket is not writable.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::Interest;

use super::super::stream::{Family, Stream};

/// How a peer disappeared.
#[derive(Debug)]
pub(crate) enum Gone {
    /// The connection broke, with this error.
    Broken(io::Error),
    /// The peer closed its Unix socket, so it will read nothing more. Unlike a TCP socket, a Unix
    /// socket does not report this with a reset.
    Closed,
}

impl Stream {
    /// Returns `Ready` when the peer is gone. Otherwise, the task is woken when the peer may be
    /// gone. Call this function only while nothing else reads from the peer. Bytes that the peer
    /// sent before it disappeared may still be unread.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        loop {
            if !self.is_writable(cx) {
                return Poll::Pending;
            }
            self.forget_writable();
            if !self.is_writable(cx) {
                return Poll::Pending;
            }
            // Check for an error, because the runtime reports the socket as writable after any
            // event, such as the end of the connection.
            if let Ok(Some(error)) = SockRef::from(&*self).take_error() {
                return Poll::Ready(Gone::Broken(error));
            }
            if self.has_hung_up() {
                return match self.socket {
                    // Do not wait for an error, because both sides have closed the connection
                    // normally.
                    Family::Tcp(_) => Poll::Pending,
                    Family::Unix(_) => Poll::Ready(Gone::Closed),
                };
            }
        }
    }

    fn is_writable(&self, cx: &mut Context<'_>) -> bool {
        let ready = match &self.socket {
            Family::Tcp(socket) => socket.poll_write_ready(cx),
            Family::Unix(socket) => socket.poll_write_ready(cx),
        };
        // An error means that the tokio runtime is shutting down. Treat the socket as not writable.
        matches!(ready, Poll::Ready(Ok(())))
    }

    fn forget_writable(&mut self) {
        self.tries_writes = true;
        let forget = |_: BorrowedFd<'_>| Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.socket.try_io(Interest::WRITABLE, forget);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::time::timeout;

    use super::super::super::peer::Peer;
    use super::super::super::stream::tests::connected;
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn reset(client: TcpStream) {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }

    async fn gone(stream: &mut Stream) -> Gone {
        timeout(DEADLINE, poll_fn(|cx| stream.poll_gone(cx))).await.unwrap()
    }

    async fn is_there(stream: &mut Stream) {
        let is_pending = poll_fn(|cx| Poll::Ready(stream.poll_gone(cx).is_pending())).await;
        assert!(is_pending);
    }

    #[tokio::test]
    async fn a_peer_that_resets_after_its_end_is_gone() {
        for is_watched_before in [true, false] {
            let (mut stream, mut client) = connected().await;
            client.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
            if is_watched_before {
                is_there(&mut stream).await;
            }
            let watch = async {
                match gone(&mut stream).await {
                    Gone::Broken(error) => error.kind(),
                    Gone::Closed => panic!("expected a reset"),
                }
            };
            let (kind, ()) = tokio::join!(watch, async { reset(client) });
            assert_eq!(kind, io::ErrorKind::BrokenPipe);
        }
    }

    #[tokio::test]
    async fn a_peer_that_resets_before_its_bytes_are_read_is_gone() {
        let (mut stream, mut client) = connected().await;
        client.write_all(b"unread").await.unwrap();
        stream.readable().await.unwrap();
        is_there(&mut stream).await;
        reset(client);
        assert!(matches!(gone(&mut stream).await, Gone::Broken(_)));
        // The bytes that the peer sent before it disappeared can still be read.
        let mut said = [0; 6];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"unread");
    }

    #[tokio::test]
    async fn a_peer_is_written_to_while_it_is_watched() {
        let (mut stream, mut client) = connected().await;
        client.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        let long = vec![7; 8 * 1024 * 1024];
        for said in [&b"short"[..], &long, b"short"] {
            is_there(&mut stream).await;
            let write = async {
                stream.write_all(said).await.unwrap();
                is_there(&mut stream).await;
            };
            let mut heard = vec![0; said.len()];
            let (both, ()) = tokio::join!(timeout(DEADLINE, client.read_exact(&mut heard)), write);
            both.unwrap().unwrap();
            assert!(heard == said);
        }
    }

    #[tokio::test]
    async fn an_end_in_order_on_both_sides_is_no_break() {
        let (mut stream, mut client) = connected().await;
        stream.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        drop(client);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        is_there(&mut stream).await;
    }

    #[tokio::test]
    async fn a_peer_that_closes_its_unix_socket_is_gone() {
        let (client, accepted) = UnixStream::pair().unwrap();
        let socket = socket2::Socket::from(accepted.into_std().unwrap());
        let mut stream = Stream::new(socket, Peer::Unix).unwrap();
        is_there(&mut stream).await;
        let (gone, ()) = tokio::join!(gone(&mut stream), async { drop(client) });
        assert!(matches!(gone, Gone::Closed));
    }
}
