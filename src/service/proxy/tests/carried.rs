//! Tests of connections that move from one process to another. The time that a connection uses in
//! one process counts in the next one. A connection that cannot move does not delay a drain.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::net::TcpSocket;

use super::*;
use crate::carry::{CarryScheduler, CarrySlot};
use crate::drain::DrainGuard;

/// A stand-in for the server, which asks one connection to move to the successor.
struct Asker {
    scheduler: Arc<CarryScheduler>,
    _slot: CarrySlot,
    _guard: DrainGuard,
}

impl Asker {
    /// Creates a stand-in for the server, a connection, and the connection's client. The client has
    /// a small receive buffer.
    async fn new() -> (Self, Connection, TcpStream) {
        let listener = listen().await;
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        let client = client.connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let stream =
            Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
        let guard = Drain::new().entry(&"web".into(), OnDrain::Carry).admit();
        let watch = guard.watch().clone();
        let scheduler = Arc::<CarryScheduler>::default();
        let slot = CarrySlot::new(Arc::clone(&scheduler));
        let carry_request = Some(Arc::clone(slot.request()));
        let connection = Connection::new(Admission {
            carry_request,
            ..admission(stream, Peer::Tcp(peer), watch)
        });
        (Self { scheduler, _slot: slot, _guard: guard }, connection, client)
    }

    fn ask(&self) {
        self.scheduler.begin();
    }

    fn ask_no_more(&self) {
        self.scheduler.end();
    }
}

async fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// If a client has used up its waiting time in the old process, it times out immediately in the new
/// process.
#[tokio::test]
async fn a_carried_client_does_not_get_extra_time() {
    let hour = Duration::from_secs(3600);
    let (hole, _queue) = black_hole();
    let upstream = Address::Tcp(hole.local_addr().unwrap());
    let mut config = config(vec![upstream]);
    config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
    (config.header_timeout, config.connect_patience, config.connect_timeout) =
        (hour, Duration::ZERO, hour);
    let proxy = Proxy::new(config);
    let listener = listen().await;
    for identified in [None, Some(Identified { route: None })] {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let stream =
            Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
        let guard = Drain::new().entry(&"web".into(), OnDrain::Finish).admit();
        let watch = guard.watch().clone();
        let since = tokio::time::Instant::now().checked_sub(hour);
        let waited = Arriving { identified, since, ..Arriving::default() };
        let saved_state = Some(crate::service::proxy::carried::arriving(waited));
        let mut connection =
            Connection::new(Admission { saved_state, ..admission(stream, Peer::Tcp(peer), watch) });
        let served = timeout(DEADLINE, serve(&proxy, &mut connection))
            .await
            .expect("the timeout has restarted");
        assert_eq!(served.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}

/// If a client moves to a new process while one upstream does not answer, the new process connects
/// the client to the next upstream.
#[tokio::test]
async fn a_client_carried_during_an_attempt_tries_the_next_upstream() {
    let (hole, _queue) = black_hole();
    let upstream = listen().await;
    let addresses = [hole.local_addr().unwrap(), upstream.local_addr().unwrap()].map(Address::Tcp);
    let mut config = config(addresses.into());
    (config.balance, config.connect_timeout) =
        (crate::config::Balance::InOrder, Duration::from_secs(3600));
    let (asker, mut connection, _client) = Asker::new().await;
    let proxy = Proxy::new(config.clone());
    {
        let mut serving = pin!(serve(&proxy, &mut connection));
        assert!(poll(&mut serving).await.is_pending());
        asker.ask();
        serving.await.unwrap();
    }
    assert!(connection.detached_state().is_some());
    asker.ask_no_more();
    connection.stay();
    let another = Proxy::new(config);
    tokio::select! {
        _ = serve(&another, &mut connection) => panic!("the connection ended early"),
        _ = accept(&upstream) => {}
    }
}

/// A connection moves after its upstream has half-closed. When the client half-closes later, the
/// upstream notices, even if the old process still has a copy of the upstream's socket.
#[tokio::test]
async fn a_half_closed_upstream_receives_the_end_after_a_carry() {
    let upstream = listen().await;
    let address = Address::Tcp(upstream.local_addr().unwrap());
    let config = config(vec![address]);
    let (asker, mut connection, mut client) = Asker::new().await;
    let proxy = Proxy::new(config.clone());
    let mut server = {
        let mut serving = pin!(serve(&proxy, &mut connection));
        let ended = async {
            let mut server = accept(&upstream).await;
            server.shutdown().await.unwrap();
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            server
        };
        let server = tokio::select! {
            _ = &mut serving => panic!("the connection ended early"),
            server = ended => server,
        };
        asker.ask();
        serving.await.unwrap();
        server
    };
    asker.ask_no_more();
    let _copy = connection.detached_state().unwrap().descriptors[0].try_clone().unwrap();
    connection.stay();
    client.shutdown().await.unwrap();
    let another = Proxy::new(config);
    timeout(DEADLINE, serve(&another, &mut connection)).await.unwrap().unwrap();
    assert_eq!(
        timeout(DEADLINE, server.read(&mut [0; 1]))
            .await
            .expect("the upstream does not receive the end")
            .unwrap(),
        0
    );
}

/// A client does not move to the successor while its PROXY header is incomplete. It moves as soon
/// as the header is complete.
#[tokio::test]
async fn a_client_is_carried_only_after_its_whole_header() {
    let upstream = listen().await;
    let address = Address::Tcp(upstream.local_addr().unwrap());
    let mut config = config(vec![address]);
    config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
    config.header_timeout = DEADLINE;
    let (asker, mut connection, mut client) = Asker::new().await;
    // This is a LOCAL header with 4,000 bytes of additional fields (TLVs).
    let header = [b"\r\n\r\n\0\r\nQUIT\n\x20\0\x0f\xa0", &[0xee; 4_000][..]].concat();
    let proxy = Proxy::new(config.clone());
    {
        let mut serving = pin!(serve(&proxy, &mut connection));
        assert!(poll(&mut serving).await.is_pending());
        client.write_all(&header[..1_000]).await.unwrap();
        // The proxy reads the part of the header that has arrived, and waits for the rest.
        let rest = timeout(SOON, serving.as_mut()).await;
        assert!(rest.is_err());
        asker.ask();
        assert!(poll(&mut serving).await.is_pending(), "carried in the middle of its header");
        client.write_all(&header[1_000..]).await.unwrap();
        client.write_all(b"request").await.unwrap();
        timeout(DEADLINE, serving).await.unwrap().unwrap();
    }
    assert!(connection.detached_state().is_some());
    asker.ask_no_more();
    connection.stay();
    let another = Proxy::new(config);
    let served = async {
        // Skip the connection that the first proxy may have opened and already closed.
        loop {
            let (mut server, mut request) = (accept(&upstream).await, Vec::new());
            if server.read_buf(&mut request).await.unwrap() > 0 {
                return assert_eq!(request, b"request");
            }
        }
    };
    tokio::select! {
        ended = serve(&another, &mut connection) => panic!("the connection ended early: {ended:?}"),
        () = served => {}
    }
}
