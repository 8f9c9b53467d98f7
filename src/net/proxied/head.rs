//! This module reads a header from the start of a connection, and no byte beyond the header.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tokio::io::{AsyncReadExt, Interest};

use super::super::stream::{Family, Stream};
use crate::sys;

impl Stream {
    /// Reads a header from the start of the received bytes, and leaves all bytes after it unread.
    ///
    /// Each time more bytes arrive, this function calls `look` with all bytes received so far, up
    /// to the size of `buffer`. `look` returns the length of the header and its meaning, or `None`
    /// if it needs more bytes. Cancel safe.
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
                    // passed to `look` so far stay unread in the socket.
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

impl Family {
    /// Makes a system call on the socket. If the call would block, the tokio runtime regards the
    /// socket as not ready until the next event.
    pub(super) fn try_io<T>(
        &self,
        interest: Interest,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(socket) => socket.try_io(interest, || call(socket.as_fd())),
            Self::Unix(socket) => socket.try_io(interest, || call(socket.as_fd())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::super::super::stream::tests::connected;
    use super::*;

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
