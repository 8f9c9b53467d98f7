//! Tests of a relay plane with real sockets.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use rustix::event::PollFlags;
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::net::{ByteCounts, RelaySocket, begin_connect};

const DEADLINE: Duration = Duration::from_secs(30);

/// A connection whose upstream may take until the deadline to accept it.
#[derive(Debug)]
struct Pending {
    is_connected: bool,
    deadline: Option<Instant>,
}

impl RelayOwner for Pending {
    fn connect_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn connected(&mut self) -> Limits {
        self.is_connected = true;
        Limits::none()
    }

    fn transferred(&self, _client: ByteCounts, _upstream: ByteCounts) {}
}

/// Returns a listener whose backlog is full, and the sockets that fill it. A new connection is
/// established only after the listener has accepted others.
fn full() -> (Socket, Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let others = (0..2).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = socket.connect(&address);
        socket
    });
    (listener, others.collect(), address.as_socket().unwrap())
}

/// Returns a connection of `client` that begins to connect to an upstream at `address`.
fn connecting(client: UnixStream, address: SocketAddr) -> RelayEntry<Pending> {
    RelayEntry {
        client: RelaySocket::new(client.into(), true),
        upstream: begin_connect(&address.to_string().parse().unwrap()).unwrap(),
        relay: Relay::default(),
        limits: Limits::none(),
        owner: Pending { is_connected: false, deadline: Some(Instant::now() + DEADLINE) },
    }
}

/// A client sends its request and closes its Unix socket at once, before the upstream has accepted
/// the connection. The upstream receives the request.
#[tokio::test]
async fn a_client_that_closes_at_once_is_heard() {
    let (listener, _others, address) = full();
    let (client, mut peer) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let plane = Plane::new().unwrap();
    assert!(plane.admit(connecting(client, address)).is_ok());
    peer.write_all(b"last words").unwrap();
    drop(peer);
    let listener = TcpListener::from_std(listener.into()).unwrap();
    let (heard, mut words) = mpsc::unbounded_channel();
    let accepting = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).await.is_ok_and(|count| count > 0) {
                    heard.send(bytes).unwrap();
                }
            });
        }
    };
    let ends = Mutex::new(Vec::new());
    tokio::select! {
        never = plane.run(|_, end| ends.lock().unwrap().push(format!("{end:?}"))) => {
            never.unwrap();
        }
        () = accepting => {}
        words = timeout(DEADLINE, words.recv()) => {
            assert_eq!(words.unwrap().unwrap(), b"last words", "{ends:?}");
        }
    }
}

/// If a connection is removed before the plane knows that the upstream has accepted it, the plane
/// still records it as established.
#[tokio::test]
async fn a_connection_that_is_just_established_is_taken_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, _peer) = UnixStream::pair().unwrap();
    let plane = Plane::new().unwrap();
    assert!(plane.admit(connecting(client, address)).is_ok());
    let _accepted = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    let (taken, failure) = plane.take(&mut 0, |_| true).unwrap();
    assert!(taken.owner.is_connected && failure.is_none());
}

/// The kernel reports the error only once. If the plane dropped it, the attempt would later count
/// as successful, and the client would not be connected to another upstream.
#[tokio::test]
async fn a_connection_that_is_just_refused_is_taken_with_its_error() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (client, _peer) = UnixStream::pair().unwrap();
    let plane = Plane::new().unwrap();
    assert!(plane.admit(connecting(client, address)).is_ok());
    let (taken, failure) = plane.take(&mut 0, |_| true).unwrap();
    assert_eq!(failure.unwrap().kind(), io::ErrorKind::ConnectionRefused);
    assert!(!taken.owner.is_connected);
}

/// Returns a connection that is established and has reached its idle timeout. The other two sockets
/// are the peers: the client and the upstream.
fn idle(relay: Relay) -> (RelayEntry<Pending>, UnixStream, UnixStream) {
    let [(client, peer), (upstream, server)] = [(); 2].map(|()| UnixStream::pair().unwrap());
    for socket in [&client, &upstream, &peer, &server] {
        socket.set_nonblocking(true).unwrap();
    }
    let [client, upstream] =
        [client, upstream].map(|socket| RelaySocket::new(Socket::from(socket), true));
    let used = Used { idle: Duration::from_secs(3600), ..Used::default() };
    let limits = Limits::new(Some(Duration::from_millis(1)), None, used);
    let owner = Pending { is_connected: true, deadline: None };
    (RelayEntry { client, upstream, relay, limits, owner }, peer, server)
}

/// Takes turns without events until one of them finds nothing to move. So the plane does what it
/// does when its timer expires before it has received the events. Returns the connections that have
/// ended.
fn turns_without_events(entry: RelayEntry<Pending>) -> (Entries<Pending>, Ended<Pending>) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let (mut entries, mut ended) = (Entries::default(), Ended::new());
    let mut buffer = vec![0; direction::BUFFER];
    assert!(entries.admit(&epoll, entry).is_ok());
    while entries.turn(&epoll, &[], &mut buffer, &mut ended) == TurnResult::HasMore {}
    (entries, ended)
}

/// A process that was stopped for a while runs its timers before it receives the events.
#[test]
fn bytes_that_have_arrived_restart_the_idle_timeout() {
    let (mut entry, mut client, mut upstream) = idle(Relay::default());
    // The events of the accept and the connect have arrived before.
    entry.client.look(PollFlags::OUT);
    entry.upstream.look(PollFlags::OUT);
    client.write_all(b"request").unwrap();
    upstream.write_all(b"reply").unwrap();
    let (_entries, ended) = turns_without_events(entry);
    assert!(ended.is_empty(), "{ended:?}");
    let mut bytes = [0; 7];
    assert_eq!(upstream.read(&mut bytes).unwrap(), 7);
    assert_eq!(client.read(&mut bytes).unwrap(), 5);
}

/// The peer did not accept these bytes earlier, but has read enough since then.
#[test]
fn bytes_that_can_be_sent_now_restart_the_idle_timeout() {
    let (entry, _client, mut upstream) = idle(Relay::beginning_with(b"request".to_vec()));
    let (_entries, ended) = turns_without_events(entry);
    assert!(ended.is_empty(), "{ended:?}");
    assert_eq!(upstream.read(&mut [0; 7]).unwrap(), 7);
}

/// Bytes that the relay cannot read yet do not keep a connection alive.
#[test]
fn a_peer_that_does_not_read_is_idle_despite_new_input() {
    let (mut entry, mut client, _upstream) = idle(Relay::beginning_with(b"request".to_vec()));
    client.write_all(b"more").unwrap();
    entry.upstream.look(PollFlags::OUT);
    while entry.upstream.write(&[7; 4096]).is_ok() {}
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let (mut entries, mut ended) = (Entries::default(), Ended::new());
    assert!(entries.admit(&epoll, entry).is_ok());
    let until = Instant::now() + DEADLINE;
    while ended.is_empty() && Instant::now() < until {
        entries.turn(&epoll, &[], &mut [0; 64], &mut ended);
    }
    assert!(matches!(ended[..], [(_, RelayEnd::Expired(Expired::Idle))]), "{ended:?}");
}

/// The upstream has accepted the connection while this process was stopped.
#[test]
fn a_connection_established_by_the_deadline_counts_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, _peer) = UnixStream::pair().unwrap();
    let mut entry = connecting(client, listener.local_addr().unwrap());
    let _accepted = listener.accept().unwrap();
    entry.owner.deadline = Some(Instant::now());
    let (mut entries, ended) = turns_without_events(entry);
    assert!(ended.is_empty(), "{ended:?}");
    assert!(entries.owners().all(|owner| owner.is_connected));
}
