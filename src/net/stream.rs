//! A connection that transfers bytes and counts them.
//!
//! `ending` closes it, and `hangup` detects a peer that is gone. [`super::peer`] has what is known
//! about the peer, and the socket options that affect it.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::peer::Peer;
use super::pipe::Pipe;
use super::traffic::Traffic;
use crate::sys;
use crate::sys::reserve::Earmark;

/// A TCP or Unix connection.
#[derive(Debug)]
pub struct Stream {
    pub(super) socket: Family,
    traffic: Arc<Traffic>,
    /// Whether the peer has half-closed, so that nothing can arrive that the kernel would answer
    /// with a reset.
    pub(super) peer_finished: bool,
    /// Whether another process (a predecessor that hangs) may still hold the socket. Then closing
    /// it here sends nothing to the peer.
    pub(super) is_shared: bool,
    /// Whether writes are tried even if the runtime does not know the socket to be writable.
    pub(super) tries_writes: bool,
    delay: Delay,
    /// Held until the first byte has been read, so that a drain can wait for first requests.
    awaiting_first_byte: Option<TaskTrackerToken>,
    /// Held until this stream is dropped, so that a drain can wait for open connections.
    open: Option<TaskTrackerToken>,
    /// A claim to a descriptor for the upstream of this client.
    pub(super) earmark: Option<Earmark>,
}

/// The write before which `TCP_NODELAY` must be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    /// The option is set, or not wanted.
    None,
    FromTheFirst,
    FromTheSecond,
}

#[derive(Debug)]
pub(super) enum Family {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Wraps a non-blocking socket that is connected or connecting. Must be called within a tokio
    /// runtime.
    pub(crate) fn new(socket: Socket, peer: Peer) -> io::Result<Self> {
        let fd = OwnedFd::from(socket);
        let socket = match peer {
            Peer::Tcp(_) => Family::Tcp(TcpStream::from_std(fd.into())?),
            Peer::Unix => Family::Unix(UnixStream::from_std(fd.into())?),
        };
        Ok(Self {
            socket,
            traffic: Arc::default(),
            peer_finished: false,
            is_shared: false,
            tries_writes: false,
            delay: Delay::None,
            awaiting_first_byte: None,
            open: None,
            earmark: None,
        })
    }

    /// Restores a connection that another process has served until now. `traffic` counts the bytes
    /// that it transferred, and `peer_finished` says whether it has read the peer's half-close.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` when the socket is not a stream socket of the peer's family.
    pub(crate) fn taken_up(
        socket: OwnedFd,
        peer: Peer,
        traffic: Traffic,
        peer_finished: bool,
    ) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let is_unix = socket.domain()? == Domain::UNIX;
        // A Unix socket may have a peer with an address, if a PROXY header named one.
        if socket.r#type()? != Type::STREAM || (peer == Peer::Unix && !is_unix) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no stream socket of its family",
            ));
        }
        // Do not rely on the other process to have made the socket non-blocking. A blocking one
        // would stall a whole thread.
        socket.set_nonblocking(true)?;
        let stream = Self::new(socket, if is_unix { Peer::Unix } else { peer })?;
        Ok(Self { traffic: Arc::new(traffic), peer_finished, is_shared: true, ..stream })
    }

    /// Returns the socket without closing the connection. The runtime stops watching it.
    ///
    /// # Errors
    /// When the kernel fails to end the registration with the runtime.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        match self.socket {
            Family::Tcp(socket) => socket.into_std().map(OwnedFd::from),
            Family::Unix(socket) => socket.into_std().map(OwnedFd::from),
        }
    }

    /// Returns whether the peer's half-close has been read.
    pub(crate) const fn peer_has_finished(&self) -> bool {
        self.peer_finished
    }

    /// Holds `token` until the first byte or the peer's half-close has been read.
    pub(crate) fn awaiting_first_byte(&mut self, token: TaskTrackerToken) {
        self.awaiting_first_byte = Some(token);
    }

    /// Holds `token` until the stream is dropped.
    pub(crate) fn open(&mut self, token: TaskTrackerToken) {
        self.open = Some(token);
    }

    /// Takes the claim to a descriptor for the upstream of this client. A server without upstreams
    /// drops it.
    pub(crate) const fn take_earmark(&mut self) -> Option<Earmark> {
        self.earmark.take()
    }

    /// Returns the number of bytes read so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.traffic.received()
    }

    /// Returns the number of bytes written so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.traffic.sent()
    }

    /// Returns the number of bytes in both directions. Two calls show whether anything was
    /// transferred in between.
    pub(crate) fn carried(&self) -> u64 {
        self.received() + self.sent()
    }

    /// Returns the byte counters of this connection.
    pub(crate) const fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Disables Nagle's algorithm (`TCP_NODELAY`, tcp(7)), because a relay does not know what comes
    /// next. Does nothing for a Unix socket.
    ///
    /// The option is set before the second write. The first write is never delayed, and many
    /// connections have only one.
    pub(crate) fn set_nodelay(&mut self) {
        if matches!(self.socket, Family::Tcp(_)) {
            self.delay = Delay::FromTheFirst;
        }
    }

    /// Sets `TCP_NODELAY` if this is the second write.
    fn before_write(&mut self) {
        self.delay = match self.delay {
            Delay::None => return,
            Delay::FromTheFirst => Delay::FromTheSecond,
            Delay::FromTheSecond => {
                if let Family::Tcp(socket) = &self.socket {
                    // A failure only makes the connection slower.
                    let _ = socket.set_nodelay(true);
                }
                Delay::None
            }
        };
    }

    /// Waits until a pending connect(2) completes.
    pub(super) async fn connected(&self) -> io::Result<()> {
        let interest = Interest::WRITABLE | Interest::ERROR;
        let ready = match &self.socket {
            Family::Tcp(socket) => socket.ready(interest).await?,
            Family::Unix(socket) => socket.ready(interest).await?,
        };
        // Asks for the error only if the kernel has signalled one.
        let error = if ready.is_error() { SockRef::from(self).take_error()? } else { None };
        error.map_or(Ok(()), Err)
    }

    /// Moves received bytes into an empty pipe. Returns how many; 0 means that the peer has
    /// half-closed.
    ///
    /// # Errors
    /// `InvalidInput` also when the received bytes cannot be spliced and must be read instead.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        let fill = |socket: BorrowedFd<'_>| match pipe.fill(socket) {
            // A splice stops at a byte of urgent data. It reports end of file or `WouldBlock` even
            // though bytes have arrived.
            Ok(0) | Err(_) if matches!(sys::socket::peek(socket, &mut [0]), Ok(1..)) => {
                Err(io::ErrorKind::InvalidInput.into())
            }
            filled => filled,
        };
        let count = ready!(self.socket.poll_io(cx, Interest::READABLE, fill))?;
        self.count_read(count);
        Poll::Ready(Ok(count))
    }

    /// Moves bytes from a pipe to the peer, as many as the socket accepts. Returns how many.
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

    /// Waits until there are bytes to read or the peer has half-closed. Cancel safe.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        // Avoids the runtime's own future, which is ten times as large: each idle connection holds
        // one.
        poll_fn(|cx| match &self.socket {
            Family::Tcp(socket) => socket.poll_read_ready(cx),
            Family::Unix(socket) => socket.poll_read_ready(cx),
        })
        .await
    }

    /// Returns whether received bytes or a half-close wait to be read. Asks the kernel, because the
    /// runtime may not know yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let flags = nix::libc::MSG_PEEK | nix::libc::MSG_DONTWAIT;
        let peeked = SockRef::from(self).recv_with_flags(&mut byte, flags);
        !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn count_read(&mut self, count: usize) {
        self.awaiting_first_byte = None;
        self.earmark = None;
        self.traffic.count_received(count as u64);
        self.peer_finished |= count == 0;
    }
}

impl Family {
    /// Makes a system call. If the call would block, the runtime waits for the socket to become
    /// ready again.
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

    /// Makes a system call when the runtime considers the socket ready for it.
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

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Family::Tcp(socket) => socket.as_fd(),
            Family::Unix(socket) => socket.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining();
        ready!(match &mut self.socket {
            Family::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Family::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        })?;
        if room > 0 {
            self.count_read(buffer.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        let written = match &mut self.socket {
            Family::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Family::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
        };
        let send = |socket: BorrowedFd<'_>| {
            SockRef::from(&socket).send_with_flags(bytes, nix::libc::MSG_NOSIGNAL)
        };
        let count = ready!(match written {
            Poll::Pending => self.try_write(send),
            written => written,
        })?;
        self.traffic.count_sent(count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Family::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Family::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Family::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Family::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Creates a loopback connection: our end and the client's.
    pub(in crate::net) async fn connected() -> (Stream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let socket = Socket::from(accepted.into_std().unwrap());
        (Stream::new(socket, Peer::Tcp(peer)).unwrap(), client)
    }
}
