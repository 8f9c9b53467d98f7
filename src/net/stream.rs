//! A connection that transfers bytes and counts them.
//!
//! The module `ending` closes a connection. The module `proxied` adds the operations that only a
//! proxy needs: connecting, socket options, splice(2), and the detection of a peer that is gone.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::no_delay::Delay;
use super::peer::Peer;
use super::traffic::Traffic;
use crate::sys::reserve::DescriptorClaim;

/// A TCP or Unix connection that counts the bytes that it transfers.
#[derive(Debug)]
pub struct Stream {
    pub(super) socket: Family,
    pub(super) traffic: Arc<Traffic>,
    /// Whether the peer has half-closed the connection. If so, closing the socket cannot cause a
    /// reset, because no more bytes arrive.
    pub(super) peer_finished: bool,
    /// Whether another process may still hold the socket, such as a predecessor that hangs. If so,
    /// the peer does not notice when this process closes the socket.
    pub(super) is_shared: bool,
    pub(super) delay: Delay,
    /// How a server that embeds this library counts this connection. `None` if the built-in server
    /// serves it.
    counted: Option<Box<CountedByServer>>,
    /// A claim to one file descriptor, which this process will need to connect to an upstream for
    /// this client.
    pub(super) descriptor_claim: Option<DescriptorClaim>,
}

/// How a server that embeds this library counts a connection.
#[derive(Debug)]
#[cfg_attr(not(feature = "tonic"), expect(dead_code, reason = "tonic asks for the peer"))]
struct CountedByServer {
    /// The address of the client. The kernel forgets the address when the client resets the
    /// connection.
    peer: Peer,
    /// This value is dropped when the client sends its first byte after the handshake, if there is
    /// one. A drain waits until all these values are dropped, so that each client can send its
    /// first request.
    awaiting_first_byte: Option<TaskTrackerToken>,
    /// The handshake that runs on the connection, if any.
    handshake: Option<Weak<()>>,
    /// This value is dropped together with the stream. A drain waits until all these values are
    /// dropped, so it waits for all open connections.
    open: Box<dyn Any + Send + Sync>,
}

/// A handshake on a [`Stream`]. Dropping this value tells the stream that the handshake is over.
#[derive(Debug)]
pub struct Handshake {
    _runs: Arc<()>,
}

impl CountedByServer {
    fn count_read(&mut self) {
        let runs_handshake =
            self.handshake.as_ref().is_some_and(|handshake| handshake.strong_count() > 0);
        if !runs_handshake {
            self.awaiting_first_byte = None;
        }
    }
}

#[derive(Debug)]
pub(super) enum Family {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Wraps a non-blocking socket that is connected or is still connecting. Must be called within
    /// a tokio runtime.
    pub(crate) fn new(socket: Socket, peer: Peer) -> io::Result<Self> {
        let fd = OwnedFd::from(socket);
        let socket = match peer {
            Peer::Tcp(_) => Family::Tcp(TcpStream::from_std(fd.into())?),
            Peer::Unix => Family::Unix(UnixStream::from_std(fd.into())?),
        };
        Ok(Self::counted_by(socket, Arc::default()))
    }

    /// Wraps a socket that is registered with the tokio runtime. `traffic` counts its bytes.
    pub(super) const fn counted_by(socket: Family, traffic: Arc<Traffic>) -> Self {
        Self {
            socket,
            traffic,
            peer_finished: false,
            is_shared: false,
            delay: Delay::None,
            counted: None,
            descriptor_claim: None,
        }
    }

    /// Continues a connection that another process has served until now. `traffic` counts the bytes
    /// that the other process transferred. `peer_finished` says whether the other process has
    /// already read the peer's half-close. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` when the socket is not a stream socket of the peer's address family.
    pub(crate) fn taken_up(
        socket: OwnedFd,
        peer: Peer,
        traffic: Traffic,
        peer_finished: bool,
    ) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let is_unix = socket.domain()? == Domain::UNIX;
        // Allow a Unix socket whose peer has a TCP address, because the address may come from a
        // PROXY header.
        if socket.r#type()? != Type::STREAM || (peer == Peer::Unix && !is_unix) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the passed descriptor is not a stream socket of the expected address family",
            ));
        }
        // Make the socket non-blocking, because the other process may have made it blocking. A
        // blocking socket would stall a whole thread.
        socket.set_nonblocking(true)?;
        let stream = Self::new(socket, if is_unix { Peer::Unix } else { peer })?;
        Ok(Self { traffic: Arc::new(traffic), peer_finished, is_shared: true, ..stream })
    }

    /// Returns whether the peer's half-close has been read from this connection.
    pub(crate) const fn peer_has_finished(&self) -> bool {
        self.peer_finished
    }

    /// Makes a drain of the server wait for this connection. The drain waits until
    /// `awaiting_first_byte` and `open` are dropped. The stream drops the first when it has read a
    /// byte or the peer's half-close, and the second when the stream itself is dropped.
    pub(crate) fn belongs_to_server(
        &mut self,
        peer: Peer,
        awaiting_first_byte: Option<TaskTrackerToken>,
        open: impl Any + Send + Sync,
    ) {
        self.counted = Some(Box::new(CountedByServer {
            peer,
            awaiting_first_byte,
            handshake: None,
            open: Box::new(open),
        }));
    }

    /// Takes the value `open` given to [`Stream::belongs_to_server`], if it is of type `T`.
    pub(crate) fn take_count<T: 'static>(&mut self) -> Option<Box<T>> {
        self.counted.take()?.open.downcast().ok()
    }

    /// Marks the beginning of a handshake, such as TLS. Until the returned value is dropped, the
    /// bytes that the stream reads do not count as the client's first request. So a drain still
    /// gives the client `first_request_grace` for its first request after the handshake.
    ///
    /// ```ignore
    /// let handshake = stream.begin_handshake();
    /// let stream = tls.accept(stream).await?;
    /// drop(handshake);
    /// ```
    #[must_use = "the handshake ends when this value is dropped"]
    pub fn begin_handshake(&mut self) -> Handshake {
        let runs = Arc::new(());
        if let Some(counted) = &mut self.counted {
            counted.handshake = Some(Arc::downgrade(&runs));
        }
        Handshake { _runs: runs }
    }

    /// Takes the claim to the file descriptor that this client's upstream connection will need. A
    /// server without upstreams drops the claim.
    pub(crate) const fn take_descriptor_claim(&mut self) -> Option<DescriptorClaim> {
        self.descriptor_claim.take()
    }

    /// Returns the address of the client, if a server that embeds this library serves the
    /// connection.
    #[cfg(feature = "tonic")]
    pub(crate) fn peer(&self) -> Option<Peer> {
        self.counted.as_ref().map(|counted| counted.peer)
    }

    /// Returns the number of bytes read from the peer so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.traffic.received()
    }

    /// Returns the number of bytes written to the peer so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.traffic.sent()
    }

    /// Returns the byte counters of this connection.
    pub(crate) const fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Sets `TCP_NODELAY` if the next write is the second one.
    fn before_write(&mut self) {
        let socket = &self.socket;
        self.delay = self.delay.before_write(|| {
            if let Family::Tcp(socket) = socket {
                // Ignore an error, because without the option the connection is only slower.
                let _ = socket.set_nodelay(true);
            }
        });
    }

    /// Waits until there are bytes to read or the peer has half-closed. Cancel safe.
    ///
    /// # Errors
    /// Fails if the tokio runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        // Do not use tokio's own future for this wait, because it is ten times as large. Every idle
        // connection holds this future.
        poll_fn(|cx| match &self.socket {
            Family::Tcp(socket) => socket.poll_read_ready(cx),
            Family::Unix(socket) => socket.poll_read_ready(cx),
        })
        .await
    }

    /// Returns whether there are received bytes or a half-close to read. This function asks the
    /// kernel, because the tokio runtime may not know yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        // Do not peek, because the kernel reports an error of the connection only once. The next
        // read would then look like an orderly end.
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    fn count_read(&mut self, count: usize) {
        if let Some(counted) = &mut self.counted {
            counted.count_read();
        }
        self.descriptor_claim = None;
        self.traffic.count_received(count as u64);
        self.peer_finished |= count == 0;
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
        let count = ready!(written)?;
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

    /// Creates a loopback TCP connection. Returns our end and the client's end.
    pub(in crate::net) async fn connected() -> (Stream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let socket = Socket::from(accepted.into_std().unwrap());
        (Stream::new(socket, Peer::Tcp(peer)).unwrap(), client)
    }

    /// The kernel reports the error of a broken connection only once. A check for input must leave
    /// this error for the next read.
    #[tokio::test]
    async fn a_reset_is_still_read_after_a_look_for_input() {
        use tokio::io::AsyncReadExt;
        let (mut stream, client) = connected().await;
        client.set_zero_linger().unwrap();
        drop(client);
        stream.readable().await.unwrap();
        assert!(stream.has_input());
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
