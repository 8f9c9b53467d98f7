//! Tests of a server that relays the connections of a proxy, with real sockets and a stand-in for
//! the successor.

mod cuts;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::time::timeout;

use super::*;
use crate::carry::{Arrival, CarryAnswer, CarryEnd, Incoming};
use crate::config::{Balance, Config, OnHandoff, ProxyConfig, Upstreams};
use crate::data_plane::{CarryPlane, DataPlane};
use crate::net::{Listener, Origin, Passed};
use crate::report::ListenerCounters;
use crate::server::{Server, Workers};
use crate::service::Proxy;

const DEADLINE: Duration = Duration::from_secs(30);

/// A server that connects the clients of one listener to upstreams.
struct Relaying {
    server: Server<Proxy>,
    listener: Listener,
    address: SocketAddr,
}

impl Relaying {
    /// Starts a server with these upstreams. `set` changes the default settings first.
    fn start(upstreams: &[SocketAddr], set: impl FnOnce(&mut ProxyConfig)) -> Self {
        let upstreams = upstreams.iter().map(|upstream| upstream.to_string().parse().unwrap());
        let upstreams = Upstreams::new(upstreams.collect()).unwrap();
        let mut config = ProxyConfig { balance: Balance::InOrder, ..ProxyConfig::to(upstreams) };
        set(&mut config);
        let workers = Workers::start(NonZeroUsize::new(2).unwrap()).unwrap();
        let carries = Config { on_handoff: OnHandoff::Carry, ..Config::default() };
        let mut server = Server::new(Proxy::new(config), workers, carries);
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Passed::check(socket.into(), None, Origin::Inherited).unwrap().adopt("web");
        server.start(std::slice::from_ref(&listener)).unwrap();
        Self { server, listener, address }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// Connects a client. Returns the client, and the connection that the upstream accepts for it.
    fn pair(&self, upstream: &TcpListener) -> (TcpStream, TcpStream) {
        let mut client = self.connect();
        let mut end = upstream.accept().unwrap().0;
        end.set_read_timeout(Some(DEADLINE)).unwrap();
        exchange(&mut client, &mut end);
        (client, end)
    }

    fn counters(&self) -> ListenerCounters {
        self.server.counters().listeners["web"]
    }

    /// Waits until a condition is met.
    async fn becomes(&self, is_met: impl Fn(&Self) -> bool) {
        let met = async {
            while !is_met(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, met).await.expect("the condition was not met in time");
    }

    /// Waits until no connection is open.
    async fn becomes_empty(&self) {
        self.becomes(|front| front.counters().active == 0).await;
    }

    /// Stops accepting, and begins to move the connections. Returns the successor's end of the
    /// channel.
    async fn retire(&mut self) -> Incoming {
        self.server.stop_accepting().await;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        self.server.drain(Some(ours));
        Incoming::new(theirs).unwrap()
    }

    /// Accepts connections again, as the server does after the death of the successor.
    fn resume(&mut self) {
        self.server.start(std::slice::from_ref(&self.listener)).unwrap();
    }

    async fn carry_end(&self) -> CarryEnd {
        timeout(DEADLINE, self.server.carry_ended()).await.expect("the move does not end")
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Returns a listener that accepts nothing, and the sockets that fill its backlog.
fn black_hole() -> (Socket, Vec<Socket>, SocketAddr) {
    let hole = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap();
    let hanging = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = socket.connect(&address);
        socket
    });
    (hole, hanging.collect(), address.as_socket().unwrap())
}

fn exchange(client: &mut TcpStream, upstream: &mut TcpStream) {
    let mut bytes = [0; 7];
    client.write_all(b"request").unwrap();
    upstream.read_exact(&mut bytes).unwrap();
    upstream.write_all(&bytes).unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"request");
}

/// Sends bytes until neither the proxy nor its client accepts more, because the client does not
/// read. Then sends a reset.
fn reset_when_full(front: &Relaying, mut upstream: TcpStream) {
    upstream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let bytes = vec![7; 1_000_000];
    loop {
        let before = front.counters().sent;
        if upstream.write(&bytes).is_err() && front.counters().sent == before {
            break;
        }
    }
    SockRef::from(&upstream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Acts as the successor, and answers the next offer of a connection. Returns the state of that
/// connection.
async fn answer(successor: &mut Incoming, answer: CarryAnswer) -> (Vec<u8>, Vec<OwnedFd>) {
    match timeout(DEADLINE, successor.next()).await.expect("no connection is offered") {
        Arrival::Connection(arrived) => {
            successor.answer(arrived.id(), answer).await.unwrap();
            (arrived.saved_state.bytes, arrived.saved_state.descriptors)
        }
        Arrival::Damaged { .. } | Arrival::End => panic!("expected a connection"),
    }
}

/// The counters of the listener and of the upstream include a relayed connection while it is open
/// and after its end.
#[tokio::test]
async fn relayed_connections_are_counted() {
    let (upstream, address) = listen();
    let front = Relaying::start(&[address], |_| {});
    let (client, end) = front.pair(&upstream);
    // The client may receive its reply before the server counts it.
    front.becomes(|front| front.counters().sent == 7).await;
    let open =
        ListenerCounters { accepted: 1, active: 1, received: 7, sent: 7, ..Default::default() };
    assert_eq!(front.counters(), open);
    drop((client, end));
    front.becomes_empty().await;
    assert_eq!(front.counters(), ListenerCounters { active: 0, ..open });
    let upstreams = front.server.counters().upstreams;
    let one = upstreams["web"][&address.to_string()];
    assert_eq!((one.connected, one.active, one.received, one.sent), (1, 0, 7, 7));
}

/// If an upstream refuses or does not answer, the next upstream serves the client.
#[tokio::test]
async fn a_failed_attempt_is_repeated_with_the_next_upstream() {
    let (_hole, _queue, silent) = black_hole();
    let (_, refusing) = listen();
    for failing in [refusing, silent] {
        let (upstream, address) = listen();
        let front = Relaying::start(&[failing, address], |config| {
            config.connect_timeout = Duration::from_millis(100);
        });
        let (client, end) = front.pair(&upstream);
        let upstreams = front.server.counters().upstreams;
        assert_eq!(upstreams["web"][&failing.to_string()].failed, 1);
        assert_eq!((front.counters().accepted, front.counters().active), (1, 1));
        drop((client, end));
        front.becomes_empty().await;
    }
}

/// If a client disconnects before its upstream has accepted the connection, the server closes the
/// connection.
#[tokio::test]
async fn a_client_that_leaves_during_the_attempt_is_released() {
    let (_hole, _queue, silent) = black_hole();
    let front = Relaying::start(&[silent], |config| config.connect_timeout = DEADLINE * 10);
    let client = front.connect();
    front.becomes(|front| front.counters().accepted == 1).await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    front.becomes_empty().await;
}

/// If the successor refuses a connection, this process continues to serve it and does not offer it
/// again. The next successor gets another offer.
#[tokio::test]
async fn a_refused_connection_is_offered_once_to_each_successor() {
    let (upstream, address) = listen();
    let mut front = Relaying::start(&[address], |_| {});
    let (mut client, mut end) = front.pair(&upstream);
    for _ in 0..2 {
        let mut successor = front.retire().await;
        answer(&mut successor, CarryAnswer::Refused("not mine".to_owned())).await;
        assert_eq!(front.carry_end().await, CarryEnd::AllWent);
        exchange(&mut client, &mut end);
        front.resume();
    }
    assert_eq!((front.counters().refused, front.counters().active), (2, 1));
    let mut successor = front.retire().await;
    let (_, descriptors) = answer(&mut successor, CarryAnswer::Taken).await;
    assert_eq!(front.carry_end().await, CarryEnd::AllWent);
    assert_eq!(descriptors.len(), 1);
    timeout(DEADLINE, front.server.drained()).await.unwrap();
    assert_eq!((front.counters().carried, front.counters().active), (1, 0));
}

/// If the successor dies, this process continues to serve the connections that were not taken.
#[tokio::test]
async fn connections_stay_if_the_successor_dies() {
    let (upstream, address) = listen();
    let mut front = Relaying::start(&[address], |_| {});
    let mut pairs: Vec<_> = (0..100).map(|_| front.pair(&upstream)).collect();
    let mut successor = front.retire().await;
    answer(&mut successor, CarryAnswer::Taken).await;
    drop(successor);
    assert_eq!(front.carry_end().await, CarryEnd::ReceiverGone);
    front.server.settled().await;
    front.resume();
    pairs.retain_mut(|(client, end)| {
        let mut byte = [0];
        SockRef::from(&*client).set_nonblocking(true).unwrap();
        let is_here = matches!(client.read(&mut byte), Err(e) if e.kind() == ErrorKind::WouldBlock);
        SockRef::from(&*client).set_nonblocking(false).unwrap();
        if is_here {
            exchange(client, end);
        }
        is_here
    });
    assert_eq!(pairs.len(), 99);
}

/// A client can move before its upstream has answered. The client's state tells the successor which
/// upstream to try last.
#[tokio::test]
async fn a_client_moves_during_its_first_attempt() {
    let (_hole, _queue, silent) = black_hole();
    let mut front = Relaying::start(&[silent], |config| config.connect_timeout = DEADLINE * 10);
    let _client = front.connect();
    front.becomes(|front| front.counters().accepted == 1).await;
    let mut successor = front.retire().await;
    let (state, descriptors) = answer(&mut successor, CarryAnswer::Taken).await;
    let state = String::from_utf8(state).unwrap();
    assert!(state.contains("arriving") && state.contains(&silent.to_string()), "{state}");
    assert!(descriptors.is_empty());
    assert_eq!(front.carry_end().await, CarryEnd::AllWent);
}

/// The moves of other connections do not wait for a connection whose upstream has failed.
#[tokio::test]
async fn a_carry_does_not_wait_for_a_broken_connection() {
    let (upstream, address) = listen();
    let mut front = Relaying::start(&[address], |_| {});
    let (client, end) = front.pair(&upstream);
    reset_when_full(&front, end);
    let mut successor = front.retire().await;
    // The connection may move before the proxy notices the reset.
    let offered = tokio::select! {
        end = front.carry_end() => {
            assert_eq!(end, CarryEnd::AllWent);
            false
        }
        _ = answer(&mut successor, CarryAnswer::Refused("not mine".to_owned())) => true,
    };
    if offered {
        assert_eq!(front.carry_end().await, CarryEnd::AllWent);
    }
    assert_eq!(front.counters().active, 1);
    drop(client);
    front.becomes_empty().await;
}

/// A status report shows the age and the bytes of a connection until its end. A stop that waits for
/// it gets more time only if its bytes increase.
#[tokio::test]
async fn a_connection_that_settles_is_counted() {
    let (upstream, address) = listen();
    let front = Relaying::start(&[address], |_| {});
    let (mut client, end) = front.pair(&upstream);
    reset_when_full(&front, end);
    front.becomes(|front| front.server.context.relays.oldest().is_none()).await;
    let connections = front.server.connections().unwrap();
    assert_eq!((connections.open, connections.oldest_ms.is_some()), (1, true));
    let before = front.counters().sent;
    client.read_exact(&mut vec![0; 1_000_000]).unwrap();
    front.becomes(|front| front.counters().sent > before).await;
    assert_eq!(front.counters().active, 1);
    drop(client);
    front.becomes_empty().await;
}

/// A relay plane stores at most 232 bytes for each idle connection. Nothing else belongs to it.
#[test]
fn an_idle_connection_needs_little_memory() {
    let size = size_of::<RelayEntry<RelayedConnection>>();
    assert!(size <= 232, "{size} bytes");
}
