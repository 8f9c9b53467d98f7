//! The upstream behind the proxy: it does what the client at the other end asks for, and verifies
//! what it receives.
//!
//! A proxied connection consists of two connections, and each can be lost alone. Only the upstream
//! sees whether its own connection survives, whether the bytes arrive correctly, and whether the
//! client caused an end of stream.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::clients::{QUEUE, SEGMENT};
use crate::ends::{Shared, ends};
use crate::support::DEADLINE;
use crate::tally::{Loss, Mishap, Tally};

/// How many bytes are read or written at once.
const PIECE: usize = 32 * 1024;
/// The buffer size for small requests: thousands of connections need no more.
const FIRST_PIECE: usize = 2 * 1024;
/// The backlog, large enough for all clients that connect at once.
const BACKLOG: u32 = 4_096;
/// The length of the first message of a client: its role and its seed.
const HELLO: usize = 9;

/// The behaviour of the upstream on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends back the bytes that arrive.
    Echo,
    /// Sends for as long as the load lasts. The client has half-closed.
    Pour,
    /// Half-closes at once, and reads to the end.
    Swallow,
}

impl Role {
    const ALL: [Self; 3] = [Self::Echo, Self::Pour, Self::Swallow];

    /// Returns the first message of a client.
    pub(crate) fn hello(self, seed: u64) -> [u8; HELLO] {
        let mut hello = [0; HELLO];
        hello[0] = u8::try_from(Self::ALL.iter().position(|role| *role == self).unwrap()).unwrap();
        hello[1..].copy_from_slice(&seed.to_le_bytes());
        hello
    }

    fn of_hello(hello: [u8; HELLO]) -> Option<(Self, u64)> {
        let [role, seed @ ..] = hello;
        Some((*Self::ALL.get(usize::from(role))?, u64::from_le_bytes(seed)))
    }
}

/// A running upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Tally>,
}

impl Upstream {
    /// Starts the upstream on an unused port.
    pub(crate) fn start(runtime: &Runtime, shared: &Arc<Shared>) -> Self {
        let listener = runtime.block_on(async { listen().unwrap() });
        let (stop, stopped) = oneshot::channel();
        let address = listener.local_addr().unwrap();
        let serving = runtime.spawn(accept(listener, Arc::clone(shared), stopped));
        Self { address, stop, serving }
    }

    /// Waits until all connections have ended, and returns their counts.
    pub(crate) async fn end(self) -> Tally {
        let _ = self.stop.send(());
        self.serving.await.unwrap()
    }
}

/// Listens with large buffers, which accepted connections inherit.
fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    socket.set_send_buffer_size(QUEUE)?;
    socket.set_recv_buffer_size(QUEUE)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(BACKLOG)
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<()>,
) -> Tally {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => connections.spawn(serve(accepted, Arc::clone(&shared))),
            _ = &mut stopped => break,
        };
    }
    let mut tally = Tally::default();
    while let Some(one) = connections.join_next().await {
        tally.add(one.unwrap());
    }
    tally
}

async fn serve(accepted: io::Result<(TcpStream, SocketAddr)>, shared: Arc<Shared>) -> Tally {
    let mut tally = Tally::default();
    let outcome = async {
        let (mut stream, _) = accepted.map_err(|error| Mishap::of("accepting", &error))?;
        stream.set_nodelay(true).map_err(|error| Mishap::of("accepting", &error))?;
        tally.connections += 1;
        converse(&mut stream, &shared, &mut tally).await
    };
    if let Err(mishap) = outcome.await {
        tally.meet(mishap);
        shared.advance(|progress| progress.lost += 1);
    }
    tally
}

async fn converse(
    stream: &mut TcpStream,
    shared: &Shared,
    tally: &mut Tally,
) -> Result<(), Mishap> {
    let mut hello = [0; HELLO];
    let heard = timeout(DEADLINE, stream.read_exact(&mut hello)).await;
    let heard = heard.map_err(|_| Mishap {
        loss: Loss::Stuck,
        text: "no first message from a client".to_owned(),
    })?;
    heard.map_err(|error| Mishap::of("reading the first message", &error))?;
    let wrong =
        || Mishap { loss: Loss::Wrong, text: format!("{hello:?} is not a valid first message") };
    let (role, seed) = Role::of_hello(hello).ok_or_else(wrong)?;
    let answer = if role == Role::Echo { seed } else { !seed };
    let (mut reader, mut writer) = ends(stream, shared, seed, answer);
    let outcome = async {
        match role {
            Role::Echo => {
                let mut buffer = vec![0; FIRST_PIECE];
                loop {
                    match reader.some(&mut buffer).await? {
                        0 => return writer.finish().await,
                        count => writer.pass_on(&buffer[..count]).await?,
                    }
                    if reader.received() > 64 * PIECE as u64 {
                        buffer.resize(PIECE, 0);
                    }
                }
            }
            Role::Pour => {
                reader.rest(&mut [0; 1]).await?;
                let mut buffer = vec![0; PIECE];
                let mut over = std::pin::pin!(shared.over());
                loop {
                    tokio::select! {
                        biased;
                        () = &mut over => return writer.finish().await,
                        sent = writer.some(&mut buffer) => sent?,
                    }
                }
            }
            Role::Swallow => {
                writer.finish().await?;
                reader.rest(&mut vec![0; PIECE]).await
            }
        }
    };
    let outcome = outcome.await;
    tally.verified += reader.received();
    outcome
}
