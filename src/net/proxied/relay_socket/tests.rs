//! Tests of relay sockets with real connections and a real epoll instance.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::event::epoll::{self, CreateFlags, Event, EventData};

use super::*;

/// A socket that an epoll instance watches, and its peer.
struct PolledSocket<P> {
    epoll: OwnedFd,
    socket: RelaySocket,
    peer: P,
}

impl<P> PolledSocket<P> {
    fn new(socket: Socket, peer: P) -> Self {
        socket.set_nonblocking(true).unwrap();
        let is_unix = socket.domain().unwrap() == socket2::Domain::UNIX;
        let socket = RelaySocket::new(socket, is_unix);
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&epoll, &socket, EventData::new_u64(0), flags).unwrap();
        Self { epoll, socket, peer }
    }

    /// Waits for an epoll event, and reports it to the socket.
    fn next_event(&mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(1);
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        self.socket.note(events[0].flags);
    }

    /// Calls `step` again after each event, until its result is not `WouldBlock`.
    fn when_ready<T>(
        &mut self,
        mut step: impl FnMut(&mut RelaySocket) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match step(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.next_event(),
                done => return done,
            }
        }
    }

    fn gone(&mut self) -> PeerLoss {
        loop {
            match self.socket.gone() {
                Some(gone) => return gone,
                None => self.next_event(),
            }
        }
    }
}

fn tcp() -> PolledSocket<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    PolledSocket::new(listener.accept().unwrap().0.into(), peer)
}

fn reset(peer: TcpStream) {
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_peer_that_resets_after_its_end_is_gone() {
    let mut watched = tcp();
    watched.peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(watched.when_ready(|socket| socket.read(&mut [0; 8])).unwrap(), 0);
    assert!(watched.socket.gone().is_none());
    let PolledSocket { epoll, socket, peer } = watched;
    reset(peer);
    let mut watched = PolledSocket { epoll, socket, peer: () };
    let PeerLoss::Broken(error) = watched.gone() else { panic!("expected a reset") };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

/// The bytes that the peer sent before it disappeared can still be read.
#[test]
fn a_peer_that_resets_before_its_bytes_are_read_is_gone() {
    let mut watched = tcp();
    watched.peer.write_all(b"unread").unwrap();
    let PolledSocket { epoll, socket, peer } = watched;
    reset(peer);
    let mut watched = PolledSocket { epoll, socket, peer: () };
    assert!(matches!(watched.gone(), PeerLoss::Broken(_)));
    let mut bytes = [0; 8];
    assert_eq!(watched.socket.read(&mut bytes).unwrap(), 6);
    assert_eq!(&bytes[..6], b"unread");
}

#[test]
fn an_end_in_order_on_both_sides_is_no_failure() {
    let mut watched = tcp();
    watched.socket.shutdown().unwrap();
    assert_eq!(watched.peer.read(&mut [0; 1]).unwrap(), 0);
    let PolledSocket { epoll, socket, peer } = watched;
    drop(peer);
    let mut watched = PolledSocket { epoll, socket, peer: () };
    assert_eq!(watched.when_ready(|socket| socket.read(&mut [0; 8])).unwrap(), 0);
    assert!(watched.socket.gone().is_none());
}

#[test]
fn a_peer_that_closes_its_unix_socket_is_gone() {
    let (socket, peer) = UnixStream::pair().unwrap();
    let mut watched = PolledSocket::new(socket.into(), ());
    assert!(watched.socket.gone().is_none());
    drop(peer);
    assert!(matches!(watched.gone(), PeerLoss::Closed));
}

/// After a read that does not fill its buffer, the socket is empty, and the next read usually waits
/// for an event. But if the stream ended right after these bytes, no event follows. The end must be
/// read all the same.
#[test]
fn the_end_behind_the_last_bytes_is_read() {
    let mut watched = tcp();
    watched.peer.write_all(b"last").unwrap();
    watched.peer.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    loop {
        let mut bytes = [0; 8];
        match watched.when_ready(|socket| socket.read(&mut bytes)).unwrap() {
            0 => break,
            count => all.extend_from_slice(&bytes[..count]),
        }
    }
    assert_eq!(all, b"last");
    assert!(watched.socket.peer_has_finished());
}

/// When a write has filled the send buffer, the next write waits until the peer has read. No byte
/// is lost.
#[test]
fn a_full_socket_accepts_the_rest_later() {
    let mut watched = tcp();
    let sent: Vec<u8> = (0..8_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let mut peer = watched.peer.try_clone().unwrap();
    let length = sent.len();
    let reader = std::thread::spawn(move || {
        let mut received = vec![0; length];
        peer.read_exact(&mut received).unwrap();
        received
    });
    let mut written = 0;
    while written < sent.len() {
        written += watched.when_ready(|socket| socket.write(&sent[written..])).unwrap();
    }
    assert!(reader.join().unwrap() == sent);
    assert_eq!(watched.socket.counts().sent, length as u64);
}

#[tokio::test]
async fn a_socket_returns_to_the_runtime() {
    use tokio::io::AsyncReadExt;
    let mut watched = tcp();
    watched.peer.write_all(b"request").unwrap();
    let mut stream = watched.socket.into_stream().unwrap();
    let mut bytes = [0; 7];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!((&bytes, stream.received()), (b"request", 7));
    drop(stream);
    // The peer sees an orderly close and not a reset.
    assert_eq!(watched.peer.read(&mut bytes).unwrap(), 0);
}

/// The kernel never sends the remaining bytes of a reset connection, so their acknowledgement never
/// comes.
#[tokio::test]
async fn no_acknowledgement_of_a_reset_connection_is_awaited() {
    let mut watched = tcp();
    watched.next_event();
    while watched.socket.write(&[0; 64 * 1024]).is_ok() {}
    let PolledSocket { epoll, socket, peer } = watched;
    reset(peer);
    let mut watched = PolledSocket { epoll, socket, peer: () };
    watched.next_event();
    assert!(watched.socket.unacknowledged() > 0);
    let hour = Duration::from_secs(3600);
    let acknowledged = tokio::time::timeout(hour / 60, watched.socket.acknowledged(hour));
    assert!(!acknowledged.await.unwrap());
}

/// After a splice(2), the code peeks at the socket. The kernel reports the error of a broken
/// connection only once, so an error of the peek must be returned.
#[test]
fn an_error_between_a_splice_and_the_peek_is_not_lost() {
    let error = |kind: ErrorKind| Err::<usize, _>(io::Error::from(kind));
    let empty = [Ok(0), error(ErrorKind::WouldBlock)];
    for filled in empty {
        let broken = check_filled(filled, || error(ErrorKind::ConnectionReset));
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let blocked = error(ErrorKind::WouldBlock);
    let urgent = check_filled(blocked, || Ok(1)).unwrap_err();
    assert_eq!(urgent.kind(), ErrorKind::InvalidInput);
    let blocked = check_filled(error(ErrorKind::WouldBlock), || error(ErrorKind::WouldBlock));
    assert_eq!(blocked.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(check_filled(Ok(0), || Ok(0)).unwrap(), 0);
    let never = || -> io::Result<usize> { unreachable!("the splice has moved bytes or failed") };
    assert_eq!(check_filled(Ok(7), never).unwrap(), 7);
    let broken = check_filled(error(ErrorKind::ConnectionReset), never);
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// An upstream that answers and then closes its socket must count as connected.
#[test]
fn a_closed_unix_peer_was_connected_and_stays_closed() {
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let mut watched = PolledSocket::new(socket.into(), ());
    peer.write_all(b"hello").unwrap();
    drop(peer);
    watched.next_event();
    assert!(watched.socket.connected().unwrap().is_ok());
    let mut buffer = [0; 16];
    assert_eq!(watched.when_ready(|socket| socket.read(&mut buffer)).unwrap(), 5);
    assert_eq!(watched.when_ready(|socket| socket.read(&mut buffer)).unwrap(), 0);
    for _ in 0..2 {
        assert!(matches!(watched.gone(), PeerLoss::Closed));
    }
}

/// A message with descriptors ends the read, although another message follows.
#[test]
fn bytes_after_a_message_with_descriptors_are_read() {
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let mut watched = PolledSocket::new(socket.into(), ());
    let own = std::fs::File::open("/dev/null").unwrap();
    sys::socket::send_with_descriptors(peer.as_fd(), b"a", &[own.as_fd()]).unwrap();
    peer.write_all(b"bcd").unwrap();
    watched.next_event();
    let mut buffer = [0; 16];
    let mut read = || watched.socket.read(&mut buffer);
    assert_eq!((read().unwrap(), read().unwrap()), (1, 3));
    assert_eq!(read().unwrap_err().kind(), ErrorKind::WouldBlock);
}
