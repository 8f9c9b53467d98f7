//! This module moves bytes between a socket and a pipe without copying them (see splice(2)).

use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;

use super::super::stream::{Family, Stream};
use super::pipe::Pipe;
use crate::sys;

impl Stream {
    /// Moves received bytes into an empty pipe. Returns the number of bytes; 0 means that the peer
    /// has half-closed.
    ///
    /// # Errors
    /// The error of splice(2). `InvalidInput` also means that splice(2) cannot move these bytes,
    /// and the caller must read them instead.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        let fill = |socket: BorrowedFd<'_>| match pipe.fill(socket) {
            // Check for urgent data, because splice(2) stops at such data. It then reports end of
            // file or `WouldBlock`, although bytes have arrived.
            Ok(0) | Err(_) if matches!(sys::socket::peek(socket, &mut [0]), Ok(1..)) => {
                Err(io::ErrorKind::InvalidInput.into())
            }
            filled => filled,
        };
        let count = ready!(self.socket.poll_io(cx, Interest::READABLE, fill))?;
        self.count_read(count);
        Poll::Ready(Ok(count))
    }

    /// Moves as many bytes from a pipe to the peer as the socket accepts. Returns the number of
    /// bytes.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        let count = ready!(match self
            .socket
            .poll_io(cx, Interest::WRITABLE, |socket| pipe.drain(socket))
        {
            Poll::Pending => self.try_write(|socket| pipe.drain(socket)),
            drained => drained,
        })?;
        self.traffic.count_sent(count as u64);
        Poll::Ready(Ok(count))
    }
}

impl Family {
    /// Makes a system call on the socket as soon as the tokio runtime regards the socket as ready.
    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(match (self, interest.is_readable()) {
                (Self::Tcp(socket), true) => socket.poll_read_ready(cx),
                (Self::Tcp(socket), false) => socket.poll_write_ready(cx),
                (Self::Unix(socket), true) => socket.poll_read_ready(cx),
                (Self::Unix(socket), false) => socket.poll_write_ready(cx),
            })?;
            let done = self.try_io(interest, &mut call);
            if !matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Poll::Ready(done);
            }
        }
    }
}
