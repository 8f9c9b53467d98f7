//! Carries bytes over one connection, and counts them.
//!
//! How it ends is in `ending`, how a peer that is gone is noticed in `hangup`. What is known of the
//! other end, and told to it, is in [`super::peer`].

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

/// One connection.
#[derive(Debug)]
pub struct Stream {
    pub(super) socket: Family,
    traffic: Arc<Traffic>,
    /// Whether the peer has half-closed: nothing can come that a reset would answer.
    pub(super) peer_finished: bool,
    /// Whether another process may hold the socket as well, for as long as it hangs: then closing
    /// it here says nothing.
    pub(super) is_shared: bool,
    /// Whether a write is tried although the runtime does not know the socket to be writable.
    pub(super) tries_writes: bool,
    delay: Delay,
    /// Held until the first byte has been read, for whoever waits for first requests.
    unheard: Option<TaskTrackerToken>,
    /// Held until this is dropped, by the same.
    open: Option<TaskTrackerToken>,
    /// Keeps a descriptor for the upstream, if there is one.
    pub(super) earmark: Option<Earmark>,
}

/// From which write on the kernel has to be told that none may wait for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    /// It has been told, or need not be.
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
    /// Takes a non-blocking socket, accepted or connecting. Must be called in a tokio runtime.
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
            unheard: None,
            open: None,
            earmark: None,
        })
    }

    /// Takes up a connection that another process has served until now: what that one had read and
    /// written, and whether it had read the peer's end. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a stream socket of the peer's family.
    pub(crate) fn taken_up(
        socket: OwnedFd,
        peer: Peer,
        traffic: Traffic,
        peer_finished: bool,
    ) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let is_unix = socket.domain()? == Domain::UNIX;
        // A client of a Unix socket may have an address, by the word of a proxy.
        if socket.r#type()? != Type::STREAM || (peer == Peer::Unix && !is_unix) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no stream socket of its family",
            ));
        }
        // Here it is by no word but the other process's that it does not block; one that did would
        // hold up a whole thread.
        socket.set_nonblocking(true)?;
        let stream = Self::new(socket, if is_unix { Peer::Unix } else { peer })?;
        Ok(Self { traffic: Arc::new(traffic), peer_finished, is_shared: true, ..stream })
    }

    /// Gives the socket up, as it stands: nothing is closed, and nobody watches it any more.
    ///
    /// # Errors
    /// When the kernel will not end the watch.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        match self.socket {
            Family::Tcp(socket) => socket.into_std().map(OwnedFd::from),
            Family::Unix(socket) => socket.into_std().map(OwnedFd::from),
        }
    }

    /// Whether the peer's end has been read.
    pub(crate) const fn peer_has_finished(&self) -> bool {
        self.peer_finished
    }

    /// Has `token` dropped when the first byte, or the peer's end, has been read.
    pub(crate) fn unheard(&mut self, token: TaskTrackerToken) {
        self.unheard = Some(token);
    }

    /// Counts as open until it is dropped.
    pub(crate) fn open(&mut self, token: TaskTrackerToken) {
        self.open = Some(token);
    }

    /// Takes what keeps a descriptor for an upstream of this client. A server without upstreams
    /// drops it.
    pub(crate) const fn take_earmark(&mut self) -> Option<Earmark> {
        self.earmark.take()
    }

    /// Bytes read so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.traffic.received()
    }

    /// Bytes written so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.traffic.sent()
    }

    /// Bytes both ways: whoever looks twice sees whether anything has moved.
    pub(crate) fn carried(&self) -> u64 {
        self.received() + self.sent()
    }

    /// What it has carried, for whoever keeps count.
    pub(crate) const fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Has each write go out at once, tcp(7): whoever relays does not know what comes next. A Unix
    /// socket knows no delay.
    ///
    /// The kernel is told before the second write: the first has nothing to wait for, and many
    /// connections have but one.
    pub(crate) fn set_nodelay(&mut self) {
        if matches!(self.socket, Family::Tcp(_)) {
            self.delay = Delay::FromTheFirst;
        }
    }

    /// Tells the kernel, if it is time.
    fn before_write(&mut self) {
        self.delay = match self.delay {
            Delay::None => return,
            Delay::FromTheFirst => Delay::FromTheSecond,
            Delay::FromTheSecond => {
                if let Family::Tcp(socket) = &self.socket {
                    // It is only slower if that fails.
                    let _ = socket.set_nodelay(true);
                }
                Delay::None
            }
        };
    }

    /// Waits for the end of a connect(2) that is under way.
    pub(super) async fn connected(&self) -> io::Result<()> {
        let interest = Interest::WRITABLE | Interest::ERROR;
        let ready = match &self.socket {
            Family::Tcp(socket) => socket.ready(interest).await?,
            Family::Unix(socket) => socket.ready(interest).await?,
        };
        // Only if the kernel says that there is an error is it asked which.
        let error = if ready.is_error() { SockRef::from(self).take_error()? } else { None };
        error.map_or(Ok(()), Err)
    }

    /// Moves what has arrived into an empty pipe: how many bytes it were, none at the peer's end.
    ///
    /// # Errors
    /// `InvalidInput` also when what has arrived has to be read.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        let fill = |socket: BorrowedFd<'_>| match pipe.fill(socket) {
            // A splice takes nothing beyond a byte of urgent data, and calls that the end, or says
            // that nothing has arrived.
            Ok(0) | Err(_) if matches!(sys::socket::peek(socket, &mut [0]), Ok(1..)) => {
                Err(io::ErrorKind::InvalidInput.into())
            }
            filled => filled,
        };
        let count = ready!(self.socket.poll_io(cx, Interest::READABLE, fill))?;
        self.count_read(count);
        Poll::Ready(Ok(count))
    }

    /// Moves what is in a pipe to the peer, as much as it takes: how many bytes it were.
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

    /// Waits until there is something to read, or the peer has half-closed. Cancel safe.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        // Not by a future of the runtime's: that is ten times as large, and each idle connection
        // has one.
        poll_fn(|cx| match &self.socket {
            Family::Tcp(socket) => socket.poll_read_ready(cx),
            Family::Unix(socket) => socket.poll_read_ready(cx),
        })
        .await
    }

    /// Whether bytes or the peer's end wait to be read, by the kernel's word: the runtime may not
    /// have heard of them yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let flags = nix::libc::MSG_PEEK | nix::libc::MSG_DONTWAIT;
        let peeked = SockRef::from(self).recv_with_flags(&mut byte, flags);
        !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn count_read(&mut self, count: usize) {
        self.unheard = None;
        self.earmark = None;
        self.traffic.count_received(count as u64);
        self.peer_finished |= count == 0;
    }
}

impl Family {
    /// Performs a system call; one that would block has the runtime wait for the socket to become
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

    /// Performs a system call when the runtime finds the socket ready for it.
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

    /// A connection over loopback: our end, and the client's.
    pub(in crate::net) async fn connected() -> (Stream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let socket = Socket::from(accepted.into_std().unwrap());
        (Stream::new(socket, Peer::Tcp(peer)).unwrap(), client)
    }
}
