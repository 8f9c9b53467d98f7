//! Tests of the proxy's settings with real sockets. The directory `tests/` contains the tests of
//! the whole daemon, with default settings.
//!
//! This file contains the common setup: a running proxy, its clients and its upstreams. The
//! submodules contain the tests.

mod carried;
mod checks;
mod choice;
mod headers;
mod limits;
mod names;
mod served;

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::socket::Backlog;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::address::Address;
use crate::drain::{Drain, DrainWatch, OnDrain};
use crate::net::Stream;
use crate::service::Admission;
use served::serve;

/// How long a test waits for an event before it fails.
const DEADLINE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(300);

/// Creates a client's connection that a proxy can serve.
fn connection(stream: Stream, peer: Peer, drain: DrainWatch) -> Connection {
    Connection::new(admission(stream, peer, drain))
}

fn admission(stream: Stream, peer: Peer, drain: DrainWatch) -> Admission {
    let (listener, first_request_grace) = ("web".into(), Duration::ZERO);
    Admission {
        stream,
        peer,
        listener,
        drain,
        carry_request: None,
        saved_state: None,
        first_request_grace,
    }
}

/// Returns a configuration with these upstreams and with defaults for all other settings.
fn config(addresses: Vec<Address>) -> ProxyConfig {
    ProxyConfig::to(
        crate::config::Upstreams::new(addresses.into_iter().map(Into::into).collect()).unwrap(),
    )
}

/// A running proxy with its own port. Dropping this value stops the proxy.
struct Front {
    proxy: Arc<Proxy>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Front {
    /// Starts a proxy with these upstreams. `set` changes the default settings first.
    async fn new(upstreams: &[&TcpListener], set: impl FnOnce(&mut ProxyConfig)) -> Self {
        let addresses =
            upstreams.iter().map(|upstream| Address::Tcp(upstream.local_addr().unwrap()));
        Self::to(addresses.collect(), set).await
    }

    async fn to(addresses: Vec<Address>, set: impl FnOnce(&mut ProxyConfig)) -> Self {
        let mut config = config(addresses);
        set(&mut config);
        Self::of(Arc::new(Proxy::new(config))).await
    }

    /// Starts accepting clients and serves them with `proxy`.
    async fn of(proxy: Arc<Proxy>) -> Self {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&proxy);
        let accepting = tokio::spawn(async move {
            let drain = Drain::new();
            loop {
                let (accepted, peer) = listener.accept().await.unwrap();
                let guard = drain.entry(&"web".into(), OnDrain::Finish).admit();
                let watch = guard.watch().clone();
                let stream =
                    Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer))
                        .unwrap();
                let mut connection = connection(stream, Peer::Tcp(peer), watch);
                let proxy = Arc::clone(&serving);
                tokio::spawn(async move {
                    if serve(&proxy, &mut connection).await.is_ok() {
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

    /// Connects a client. Returns the client, and the connection that the upstream accepts for it.
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
    timeout(DEADLINE, upstream.accept()).await.expect("no connection arrived in time").unwrap().0
}

/// Returns an address on which nothing listens yet. A test can listen on it later.
async fn nobody() -> SocketAddr {
    listen().await.local_addr().unwrap()
}

/// Listens on an address that an earlier listener has used.
fn listen_again(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(64).unwrap();
    TcpListener::from_std(socket.into()).unwrap()
}

/// Returns a listener that accepts nothing, and the sockets that fill its backlog. Further
/// connection attempts hang.
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
    timeout(DEADLINE, stream.read_exact(&mut bytes))
        .await
        .expect("no bytes arrived in time")
        .unwrap();
    bytes
}

async fn read_to_end(stream: &mut TcpStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut bytes))
        .await
        .expect("the stream did not end in time")
        .map(|_| bytes)
}

/// Asserts that the peer resets the connection before it sends a byte.
async fn assert_reset(stream: &mut TcpStream) {
    assert_eq!(read_to_end(stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Asserts that the client and the upstream are connected, by sending a request and a reply.
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
    .expect("the condition was not met in time");
}
