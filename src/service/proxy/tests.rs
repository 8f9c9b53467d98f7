//! Holds the proxy to its settings, on real sockets; what the daemon does with the defaults is held in `tests/`.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use nix::sys::socket::Backlog;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::address::Address;
use crate::config::{Balance, Check, Ejection, HeaderVersion};
use crate::drain::Drain;

/// How long any event may take before the test has failed.
const DEADLINE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(300);

/// A proxy at work on a port of its own, until it is dropped.
struct Front {
    proxy: Arc<Proxy>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Front {
    /// In front of `upstreams`, with settings of the test's own.
    async fn new(upstreams: &[&TcpListener], set: impl FnOnce(&mut ProxyConfig)) -> Self {
        let addresses = upstreams.iter().map(|upstream| Address::Tcp(upstream.local_addr().unwrap()));
        Self::to(addresses.collect(), set).await
    }

    async fn to(addresses: Vec<Address>, set: impl FnOnce(&mut ProxyConfig)) -> Self {
        let mut config = ProxyConfig::to(crate::config::Upstreams::new(addresses).unwrap());
        set(&mut config);
        let proxy = Arc::new(Proxy::new(config));
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&proxy);
        let accepting = tokio::spawn(async move {
            let drain = Drain::new();
            loop {
                let (accepted, peer) = listener.accept().await.unwrap();
                let (watch, guard) = drain.entry().admit();
                let stream = Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
                let mut connection = Connection::new(stream, Peer::Tcp(peer), "web".into(), watch, Duration::ZERO);
                let proxy = Arc::clone(&serving);
                tokio::spawn(async move {
                    if proxy.serve(&mut connection).await.is_ok() {
                        connection.stream.finish(DEADLINE).await;
                    }
                    drop(guard);
                });
            }
        });
        Self { proxy, address, accepting }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A client, and what its upstream has of it.
    async fn pair(&self, upstream: &TcpListener) -> (TcpStream, TcpStream) {
        let client = self.connect().await;
        (client, accept(upstream).await)
    }

    fn counters(&self, upstream: &TcpListener) -> UpstreamCounters {
        self.proxy.upstreams()["web"][&upstream.local_addr().unwrap().to_string()]
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn accept(upstream: &TcpListener) -> TcpStream {
    timeout(DEADLINE, upstream.accept()).await.expect("nobody came").unwrap().0
}

/// An address at which nobody listens, and where somebody may.
async fn nobody() -> SocketAddr {
    listen().await.local_addr().unwrap()
}

/// Listens where somebody has listened before.
fn listen_again(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    TcpListener::from_std(socket.into()).unwrap()
}

/// A listener that accepts nobody, with a queue that is full: connections to it hang.
fn black_hole() -> (std::net::TcpListener, Vec<Socket>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let hanging = (0..4).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = socket.connect(&address.into());
        socket
    });
    let hanging = hanging.collect();
    (listener, hanging)
}

async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(DEADLINE, stream.read_exact(&mut bytes)).await.expect("nothing came").unwrap();
    bytes
}

async fn read_to_end(stream: &mut TcpStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("no end came").map(|_| bytes)
}

/// The connection was reset, and nothing came before that.
async fn assert_reset(stream: &mut TcpStream) {
    assert_eq!(read_to_end(stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Sends to the client and back.
async fn assert_linked(client: &mut TcpStream, upstream: &mut TcpStream) {
    client.write_all(b"request").await.unwrap();
    assert_eq!(read(upstream, 7).await, b"request");
    upstream.write_all(b"reply").await.unwrap();
    assert_eq!(read(client, 5).await, b"reply");
}

async fn becomes(what: impl Fn() -> bool) {
    timeout(DEADLINE, async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it did not come to pass");
}

#[tokio::test]
async fn what_an_idle_connection_needs_is_little() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |_| {}).await;
    let (watch, _guard) = Drain::new().entry().admit();
    let client = Socket::from(front.connect().await.into_std().unwrap());
    let stream = Stream::new(client, Peer::Unix).unwrap();
    let mut connection = Connection::new(stream, Peer::Unix, "web".into(), watch, Duration::ZERO);
    let size = size_of_val(&front.proxy.serve(&mut connection));
    assert!(size <= 320, "{size} bytes");
}

#[tokio::test]
async fn each_upstream_has_its_turn() {
    let (one, other) = (listen().await, listen().await);
    let front = Front::new(&[&one, &other], |_| {}).await;
    for _ in 0..2 {
        let (mut client, mut upstream) = front.pair(&one).await;
        assert_linked(&mut client, &mut upstream).await;
        let (mut client, mut upstream) = front.pair(&other).await;
        assert_linked(&mut client, &mut upstream).await;
    }
}

#[tokio::test]
async fn whoever_has_the_fewest_connections_gets_the_next() {
    let (one, other) = (listen().await, listen().await);
    let front = Front::new(&[&one, &other], |config| config.balance = Balance::LeastConnections).await;
    let _stays = front.pair(&one).await;
    for _ in 0..3 {
        let (client, mut upstream) = front.pair(&other).await;
        drop(client);
        assert_eq!(read_to_end(&mut upstream).await.unwrap(), b"");
        drop(upstream);
        becomes(|| front.counters(&other).active == 0).await;
    }
    assert_eq!((front.counters(&one).connected, front.counters(&other).connected), (1, 3));
}

#[tokio::test]
async fn one_that_stands_by_serves_while_the_first_is_away() {
    let (first, stand_by) = (nobody().await, listen().await);
    let addresses = vec![Address::Tcp(first), Address::Tcp(stand_by.local_addr().unwrap())];
    let front = Front::to(addresses, |config| {
        config.balance = Balance::InOrder;
        config.ejection = Ejection { failures: 2, time: SOON };
    })
    .await;
    for _ in 0..4 {
        let (mut client, mut upstream) = front.pair(&stand_by).await;
        assert_linked(&mut client, &mut upstream).await;
    }
    let first = listen_again(first);
    let counters = front.counters(&first);
    assert_eq!(
        (counters.failed, counters.ejected, counters.connected),
        (2, 1, 0),
        "it was to be passed over after two"
    );
    // When its time is over it is the first again.
    let back = timeout(DEADLINE, async {
        loop {
            let client = front.connect().await;
            tokio::select! {
                _ = stand_by.accept() => {}
                accepted = first.accept() => return (client, accepted.unwrap().0),
            }
        }
    });
    let (mut client, mut upstream) = back.await.expect("it is passed over for ever");
    assert_linked(&mut client, &mut upstream).await;
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_given_up_for_the_next() {
    let ((hole, _queue), other) = (black_hole(), listen().await);
    let addresses = [hole.local_addr().unwrap(), other.local_addr().unwrap()].map(Address::Tcp);
    let front = Front::to(addresses.into(), |config| {
        config.balance = Balance::InOrder;
        config.connect_timeout = SOON;
    })
    .await;
    let since = Instant::now();
    let (mut client, mut upstream) = front.pair(&other).await;
    assert!(since.elapsed() >= SOON);
    assert_linked(&mut client, &mut upstream).await;
}

#[tokio::test]
async fn a_client_is_held_until_an_upstream_accepts() {
    let address = nobody().await;
    let front = Front::to(vec![Address::Tcp(address)], |config| config.connect_patience = DEADLINE).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = front.connect().await;
        client.write_all(b"request").await.unwrap();
        clients.push(client);
    }
    // One of them has nothing more to say, and waits for its reply.
    clients[0].shutdown().await.unwrap();
    becomes(|| front.proxy.upstreams().values().any(|by| by.values().any(|one| one.failed >= 60))).await;
    let upstream = listen_again(address);
    for _ in 0..20 {
        let mut server = accept(&upstream).await;
        assert_eq!(read(&mut server, 7).await, b"request");
        server.write_all(b"reply").await.unwrap();
    }
    for client in &mut clients {
        assert_eq!(read_to_end(client).await.unwrap(), b"reply");
    }
}

#[tokio::test]
async fn a_client_that_nobody_accepts_in_time_is_reset() {
    let (patience, address) = (SOON, nobody().await);
    for connect_patience in [Duration::ZERO, patience] {
        let front = Front::to(vec![Address::Tcp(address)], |config| config.connect_patience = connect_patience).await;
        let since = Instant::now();
        let mut client = front.connect().await;
        assert_reset(&mut client).await;
        // The last pause is not begun when it is longer than what is left.
        assert!(since.elapsed() >= connect_patience / 2, "{:?}", since.elapsed());
        assert!(since.elapsed() < DEADLINE / 2);
    }
}

#[tokio::test]
async fn a_client_that_is_gone_is_not_connected_any_more() {
    let (hole, _queue) = black_hole();
    for address in [nobody().await, hole.local_addr().unwrap()] {
        let front = Front::to(vec![Address::Tcp(address)], |config| {
            config.connect_patience = Duration::from_secs(3600);
            config.connect_timeout = Duration::from_secs(3600);
        })
        .await;
        let client = front.connect().await;
        let alive = || Arc::strong_count(&front.proxy);
        becomes(|| alive() == 3).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        becomes(|| alive() == 2).await;
    }
}

#[tokio::test]
async fn a_check_finds_who_is_away_and_who_is_back() {
    let (away, other) = (nobody().await, listen().await);
    let addresses = vec![Address::Tcp(away), Address::Tcp(other.local_addr().unwrap())];
    let front = Front::to(addresses, |config| {
        config.balance = Balance::InOrder;
        config.send_header = Some(HeaderVersion::V2);
        config.check = Some(Check { interval: Duration::from_millis(10), timeout: SOON });
    })
    .await;
    front.proxy.expect("web");
    let ejected = || front.proxy.upstreams()["web"][&away.to_string()].ejected;
    let mut watch = pin!(front.proxy.watch());
    tokio::select! {
        never = &mut watch => match never {},
        () = becomes(|| ejected() == 1) => {}
    }
    let back = listen_again(away);
    let met = async {
        // The check says that it speaks for itself.
        let mut check = accept(&back).await;
        assert_eq!(read_to_end(&mut check).await.unwrap(), header::own(HeaderVersion::V2));
        // Clients come again.
        loop {
            let _client = front.connect().await;
            tokio::select! {
                accepted = back.accept() => {
                    let mut first = [0; 16];
                    accepted.unwrap().0.read_exact(&mut first).await.unwrap();
                    if first[12] == 0x21 {
                        return;
                    }
                }
                accepted = other.accept() => drop(accepted.unwrap()),
            }
        }
    };
    tokio::select! {
        never = &mut watch => match never {},
        met = timeout(DEADLINE, met) => met.expect("it is passed over for ever"),
    }
    assert_eq!(front.proxy.upstreams()["web"][&away.to_string()].failed, 0, "a client has met it while it was away");
}

#[tokio::test]
async fn a_check_that_hangs_fails() {
    let (hole, _queue) = black_hole();
    let address = hole.local_addr().unwrap();
    let front = Front::to(vec![Address::Tcp(address)], |config| {
        config.check = Some(Check { interval: DEADLINE, timeout: Duration::from_millis(50) });
    })
    .await;
    front.proxy.expect("web");
    tokio::select! {
        never = front.proxy.watch() => match never {},
        () = becomes(|| front.proxy.upstreams()["web"][&address.to_string()].ejected == 1) => {}
    }
}

#[tokio::test]
async fn the_upstream_is_told_who_the_client_is() {
    for version in [HeaderVersion::V1, HeaderVersion::V2] {
        let upstream = listen().await;
        let front = Front::new(&[&upstream], |config| config.send_header = Some(version)).await;
        let (mut client, mut server) = front.pair(&upstream).await;
        let route = Route { source: client.local_addr().unwrap(), destination: front.address };
        let expected = header::announce(version, Some(route));
        assert_eq!(read(&mut server, expected.len()).await, expected);
        assert_linked(&mut client, &mut server).await;
    }
}

#[tokio::test]
async fn who_is_trusted_says_who_the_client_is_and_what_follows_is_the_upstreams() {
    let route = Route { source: "192.0.2.1:1234".parse().unwrap(), destination: "198.51.100.7:80".parse().unwrap() };
    for version in [HeaderVersion::V1, HeaderVersion::V2] {
        let upstream = listen().await;
        let front = Front::new(&[&upstream], |config| {
            config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
            config.send_header = Some(HeaderVersion::V1);
        })
        .await;
        let header = header::announce(version, Some(route));
        let told = header::announce(HeaderVersion::V1, Some(route));
        // All in one packet, and what follows looks like a header.
        let mut client = front.connect().await;
        client.write_all(&[&header[..], b"PROXY rest"].concat()).await.unwrap();
        let mut server = accept(&upstream).await;
        assert_eq!(read(&mut server, told.len() + 10).await, [&told[..], b"PROXY rest"].concat());
        assert_linked(&mut client, &mut server).await;
        // Byte by byte.
        let mut client = front.connect().await;
        client.set_nodelay(true).unwrap();
        for byte in header.iter().chain(b"rest") {
            client.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        client.shutdown().await.unwrap();
        let mut server = accept(&upstream).await;
        assert_eq!(read_to_end(&mut server).await.unwrap(), [&told[..], b"rest"].concat());
    }
}

#[tokio::test]
async fn a_proxy_that_speaks_for_itself_is_announced_as_it_is() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["127.0.0.1".parse().unwrap()];
        config.send_header = Some(HeaderVersion::V2);
    })
    .await;
    let mut client = front.connect().await;
    client.write_all(&header::own(HeaderVersion::V2)).await.unwrap();
    let mut server = accept(&upstream).await;
    let route = Route { source: client.local_addr().unwrap(), destination: front.address };
    let expected = header::announce(HeaderVersion::V2, Some(route));
    assert_eq!(read(&mut server, expected.len()).await, expected);
}

#[tokio::test]
async fn who_is_trusted_and_brings_no_header_is_closed_and_meets_no_upstream() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| {
        config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
        config.header_timeout = SOON;
    })
    .await;
    let mut silent = front.connect().await;
    let mut other = front.connect().await;
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut half = front.connect().await;
    half.write_all(b"PROXY TCP4 192.0.2.1 ").await.unwrap();
    half.shutdown().await.unwrap();
    for client in [&mut silent, &mut other, &mut half] {
        // Closed or reset, and not a byte.
        assert_eq!(read_to_end(client).await.unwrap_or_default(), b"");
    }
    assert!(timeout(Duration::from_millis(50), upstream.accept()).await.is_err());
}

#[tokio::test]
async fn what_a_stranger_says_is_not_interpreted() {
    let upstream = listen().await;
    let front =
        Front::new(&[&upstream], |config| config.accept_header_from = vec!["192.0.2.0/24".parse().unwrap()]).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.1 1 1\r\nrest").await.unwrap();
    assert_eq!(read(&mut server, 40).await, b"PROXY TCP4 192.0.2.1 192.0.2.1 1 1\r\nrest");
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_closed() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| config.idle_timeout = Some(SOON)).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    let since = Instant::now();
    while since.elapsed() < SOON * 2 {
        assert_linked(&mut client, &mut server).await;
    }
    let since = Instant::now();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    assert!(since.elapsed() >= SOON - Duration::from_millis(20), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_connection_that_is_too_old_is_reset_whatever_moves() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| config.lifetime = Some(SOON)).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    let since = Instant::now();
    let mut bytes = [0; 5];
    let broke = loop {
        let _ = client.write_all(b"hello").await;
        if let Err(error) = server.read_exact(&mut bytes).await {
            break error;
        }
        assert!(since.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
    assert!(since.elapsed() >= SOON - Duration::from_millis(20));
}

#[tokio::test]
async fn live_connections_are_in_the_sums() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |_| {}).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    assert_linked(&mut client, &mut server).await;
    let expected = UpstreamCounters { connected: 1, active: 1, sent: 7, received: 5, ..UpstreamCounters::default() };
    assert_eq!(front.counters(&upstream), expected);
    drop(client);
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    drop(server);
    becomes(|| front.counters(&upstream) == UpstreamCounters { active: 0, ..expected }).await;
}

#[tokio::test]
async fn what_is_cut_is_reset_on_both_sides() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |_| {}).await;
    let listener = listen().await;
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let stream = Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
    let (watch, _guard) = Drain::new().entry().admit();
    let mut connection = Connection::new(stream, Peer::Tcp(peer), "web".into(), watch, Duration::ZERO);
    let serving = timeout(SOON, front.proxy.serve(&mut connection)).await;
    assert!(serving.is_err());
    drop(connection);
    let mut server = accept(&upstream).await;
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
}
