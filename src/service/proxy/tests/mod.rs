//! Holds the proxy to its settings, on real sockets; what the daemon does with the defaults is held
//! in `tests/`.
//!
//! Here is what the tests need, a proxy at work and its two sides; they are in a file for each
//! subject.

mod carried;
mod checks;
mod choice;
mod headers;
mod limits;
mod names;

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
use crate::drain::{Drain, DrainWatch, Way};
use crate::net::Stream;
use crate::service::Admission;

/// How long any event may take before the test has failed.
const DEADLINE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(300);

/// What a proxy is given to serve.
fn connection(stream: Stream, peer: Peer, drain: DrainWatch) -> Connection {
    Connection::new(admission(stream, peer, drain))
}

fn admission(stream: Stream, peer: Peer, drain: DrainWatch) -> Admission {
    let (listener, first_request_grace) = ("web".into(), Duration::ZERO);
    Admission { stream, peer, listener, drain, word: None, parcel: None, first_request_grace }
}

/// The defaults, for these upstreams.
fn config(addresses: Vec<Address>) -> ProxyConfig {
    ProxyConfig::to(
        crate::config::Upstreams::new(addresses.into_iter().map(Into::into).collect()).unwrap(),
    )
}

/// A proxy at work on a port of its own, until it is dropped.
struct Front {
    proxy: Arc<Proxy>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Front {
    /// In front of `upstreams`, with settings of the test's own.
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

    /// In front of this proxy.
    async fn of(proxy: Arc<Proxy>) -> Self {
        let listener = listen().await;
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&proxy);
        let accepting = tokio::spawn(async move {
            let drain = Drain::new();
            loop {
                let (accepted, peer) = listener.accept().await.unwrap();
                let (watch, guard) = drain.entry(Way::End).admit();
                let stream =
                    Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer))
                        .unwrap();
                let mut connection = connection(stream, Peer::Tcp(peer), watch);
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
