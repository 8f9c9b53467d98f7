//! A connected socket outside of the tokio runtime. A relay moves bytes between two of these
//! sockets, those of a client and its upstream.
//!
//! No operation on the socket waits. A relay learns from epoll(7) when a socket is ready, and
//! reports each event to the socket. The socket remembers the events, so it makes no system call
//! that would only fail with `WouldBlock`.
//!
//! Events are edge-triggered: the kernel reports that a socket is ready only when its state
//! changes. A read that returns fewer bytes than requested has emptied the socket, and a write that
//! accepts fewer bytes has filled it, so the next event is certain to come (see epoll(7), question
//! 9).

mod read_calls;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};
use socket2::{SockRef, Socket};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use self::read_calls::{Emptied, check_filled, note_blocked, receive_from_unix, retry};
use super::super::no_delay::Delay;
use super::super::stream::{Family, Stream};
use super::super::traffic::{ByteCounts, Traffic};
use super::options::ProxiedSocket;
use super::pipe::Pipe;
use crate::sys;

/// A connected, non-blocking socket that counts the bytes that it transfers.
#[derive(Debug)]
pub(crate) struct RelaySocket {
    socket: OwnedFd,
    pub(super) is_unix: bool,
    /// Whether the peer has half-closed the connection.
    peer_finished: bool,
    is_shared: bool,
    pub(super) delay: Delay,
    ready: Readiness,
    /// How many reads in a row have filled the buffer of the relay. The relay sets this number. It
    /// is stored here, because it fits between the other fields.
    pub(crate) full_reads: u8,
    counts: ByteCounts,
}

/// What epoll has reported about a socket so far.
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact about the socket")]
#[derive(Clone, Copy, Debug, Default)]
struct Readiness {
    /// Whether a read may return bytes, the end of the stream or an error.
    reads: bool,
    /// Whether the send buffer may have room for more bytes.
    writes: bool,
    /// Whether the peer has half-closed or is gone. The end of the stream may then directly follow
    /// the bytes of a read, and epoll reports no other event for it.
    ends: bool,
    /// Whether the peer may be gone, and [`RelaySocket::gone`] has not checked this yet.
    suspect: bool,
    /// Whether the peer has closed its Unix socket.
    closed: bool,
}

/// How a peer disappeared.
#[derive(Debug)]
pub(crate) enum PeerLoss {
    /// The connection broke, with this error.
    Broken(io::Error),
    /// The peer closed its Unix socket, so it will read nothing more. Unlike a TCP socket, a Unix
    /// socket does not report this with a reset.
    Closed,
}

impl Stream {
    /// Removes the connection from the tokio runtime.
    ///
    /// # Errors
    /// Fails if the kernel cannot remove the socket from the runtime.
    pub(crate) fn into_relay_socket(self) -> io::Result<RelaySocket> {
        let Self { socket, traffic, peer_finished, is_shared, delay, .. } = self;
        let is_unix = matches!(socket, Family::Unix(_));
        let socket = match socket {
            Family::Tcp(socket) => socket.into_std().map(OwnedFd::from),
            Family::Unix(socket) => socket.into_std().map(OwnedFd::from),
        }?;
        let (ready, counts) = (Readiness::default(), traffic.counts());
        Ok(RelaySocket {
            socket,
            is_unix,
            peer_finished,
            is_shared,
            delay,
            ready,
            full_reads: 0,
            counts,
        })
    }
}

impl RelaySocket {
    /// Wraps a non-blocking socket that is connected, or is still connecting.
    pub(crate) fn new(socket: Socket, is_unix: bool) -> Self {
        Self {
            socket: socket.into(),
            is_unix,
            peer_finished: false,
            is_shared: false,
            delay: Delay::None,
            ready: Readiness::default(),
            full_reads: 0,
            counts: ByteCounts::default(),
        }
    }

    /// Returns how a connect(2) in progress has ended, or `None` if it is still in progress.
    pub(crate) fn connected(&mut self) -> Option<io::Result<()>> {
        match self.gone() {
            Some(PeerLoss::Broken(error)) => Some(Err(error)),
            // A Unix socket is connected when connect(2) returns. The upstream may have answered
            // and closed its socket since then.
            Some(PeerLoss::Closed) => Some(Ok(())),
            None => self.ready.writes.then_some(Ok(())),
        }
    }

    /// Returns the connection to the tokio runtime. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Fails if the kernel cannot watch the socket. The connection is then reset.
    pub(crate) fn into_stream(self) -> io::Result<Stream> {
        // The runtime closes a socket that it cannot watch. Make this close reset the connection.
        self.reset_on_drop();
        let Self { socket, is_unix, peer_finished, is_shared, delay, counts, .. } = self;
        let socket = if is_unix {
            Family::Unix(UnixStream::from_std(socket.into())?)
        } else {
            Family::Tcp(TcpStream::from_std(socket.into())?)
        };
        let mut stream = Stream::counted_by(socket, Arc::new(Traffic::so_far(counts)));
        let _ = SockRef::from(&stream).set_linger(None);
        (stream.peer_finished, stream.is_shared, stream.delay) = (peer_finished, is_shared, delay);
        Ok(stream)
    }

    /// Records an event that epoll has reported for this socket.
    pub(crate) fn note(&mut self, event: EventFlags) {
        let is_gone = event.intersects(EventFlags::ERR | EventFlags::HUP);
        let ends = is_gone || event.contains(EventFlags::RDHUP);
        self.ready.reads |= ends || event.contains(EventFlags::IN);
        self.ready.writes |= is_gone || event.contains(EventFlags::OUT);
        self.ready.ends |= ends;
        self.ready.suspect |= is_gone;
    }

    /// Asks the kernel whether the socket is ready for `wanted` or broken now. Records the answer,
    /// and returns it. Makes no system call if nothing is wanted.
    pub(crate) fn look(&mut self, wanted: PollFlags) -> bool {
        if wanted.is_empty() {
            return false;
        }
        let mut polled = [PollFd::new(&self.socket, wanted)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !rustix::event::poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0) {
            return false;
        }
        // poll(2) and epoll(7) use the same numbers for these events.
        let found = u32::from(polled[0].revents().bits());
        self.note(EventFlags::from_bits_truncate(found));
        true
    }

    /// Reads bytes. Returns 0 when the peer has half-closed.
    ///
    /// # Errors
    /// `WouldBlock` when no bytes have arrived.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.ready.reads {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let room = buffer.len();
        let received = if self.is_unix {
            retry(|| receive_from_unix(&self.socket, buffer))
        } else {
            retry(|| rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()))
                .map(|(count, _)| (count, Emptied::IfShort))
        };
        let (count, emptied) = note_blocked(received, &mut self.ready.reads)?;
        self.ready.reads = count == room || self.ready.ends || emptied == Emptied::Unknown;
        self.count_read(count);
        Ok(count)
    }

    /// Writes bytes. Returns how many bytes the socket has accepted.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.ready.writes {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.before_write();
        let sent = retry(|| rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL));
        let count = note_blocked(sent, &mut self.ready.writes)?;
        self.ready.writes = count == bytes.len() || self.ready.ends;
        self.counts.sent += count as u64;
        Ok(count)
    }

    /// Moves received bytes into an empty pipe. Returns 0 when the peer has half-closed.
    ///
    /// # Errors
    /// `InvalidInput` means that splice(2) cannot move these bytes, and the caller must read them.
    pub(crate) fn fill(&mut self, pipe: &mut Pipe) -> io::Result<usize> {
        if !self.ready.reads {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let peek = || sys::socket::peek(self.socket.as_fd(), &mut [0]);
        let filled = check_filled(pipe.fill(&self.socket), peek);
        let count = note_blocked(filled, &mut self.ready.reads)?;
        self.count_read(count);
        Ok(count)
    }

    /// Moves bytes from a pipe to the peer. Returns how many bytes the socket has accepted.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full.
    pub(crate) fn drain(&mut self, pipe: &mut Pipe) -> io::Result<usize> {
        if !self.ready.writes {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.before_write();
        let count = note_blocked(pipe.drain(&self.socket), &mut self.ready.writes)?;
        self.counts.sent += count as u64;
        Ok(count)
    }

    /// Half-closes the connection: after all bytes, the peer reads the end of the stream.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        SockRef::from(&self.socket).shutdown(Shutdown::Write)
    }

    /// Half-closes the connection if another process may also hold the socket. Otherwise the peer
    /// would not notice that this process closes the socket.
    pub(crate) fn half_close_if_shared(&self) {
        if self.is_shared {
            // Ignore an error, which means that the socket is already half-closed or broken.
            let _ = self.shutdown();
        }
    }

    /// Returns how the peer has disappeared, or `None` if it is not known to be gone. Returns an
    /// error only once. Call this function only while nothing reads from the peer. Bytes that the
    /// peer has sent may still be unread.
    pub(crate) fn gone(&mut self) -> Option<PeerLoss> {
        if std::mem::take(&mut self.ready.suspect) {
            if let Ok(Some(error)) = SockRef::from(&self.socket).take_error() {
                return Some(PeerLoss::Broken(error));
            }
            // For TCP, no error means that both sides have closed the connection in order.
            self.ready.closed |= self.is_unix && sys::socket::has_hung_up(self.socket.as_fd());
        }
        self.ready.closed.then_some(PeerLoss::Closed)
    }

    /// Returns how many bytes the peer's kernel has not acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> usize {
        sys::socket::unacknowledged(self.as_fd()).unwrap_or(0)
    }

    /// Waits until the peer's kernel has acknowledged all data. Gives up if no further data is
    /// acknowledged for `patience`. Returns whether all data is acknowledged. Polls the state of
    /// the socket every 5 ms, because the kernel has no event for this.
    pub(crate) async fn acknowledged(&self, patience: Duration) -> bool {
        const PAUSE: Duration = Duration::from_millis(5);
        let mut left = usize::MAX;
        let mut until = Instant::now() + patience;
        while let Ok(now @ 1..) = sys::socket::unacknowledged(self.as_fd()) {
            // The kernel never sends the remaining bytes of a reset connection. Such a connection
            // has no peer (see getpeername(2)).
            if SockRef::from(&self.socket).peer_addr().is_err() {
                return false;
            }
            if now < left {
                (left, until) = (now, Instant::now() + patience);
            } else if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
    }

    /// Returns whether the peer's half-close has been read from this connection.
    pub(crate) const fn peer_has_finished(&self) -> bool {
        self.peer_finished
    }

    /// Returns whether another process may hold the socket too.
    pub(crate) const fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Returns the number of bytes transferred so far.
    pub(crate) const fn counts(&self) -> ByteCounts {
        self.counts
    }

    /// Returns the number of bytes transferred in both directions so far.
    pub(crate) const fn transferred(&self) -> u64 {
        self.counts.received + self.counts.sent
    }

    /// Returns the socket, without closing the connection.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    fn before_write(&mut self) {
        let socket = &self.socket;
        self.delay = self.delay.before_write(|| {
            // Ignore an error, because without the option the connection is only slower.
            let _ = SockRef::from(socket).set_tcp_nodelay(true);
        });
    }

    fn count_read(&mut self, count: usize) {
        self.counts.received += count as u64;
        self.peer_finished |= count == 0;
    }
}

impl AsFd for RelaySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
