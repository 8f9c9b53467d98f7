//! The kinds of clients: each keeps a connection in another state for as long as the load lasts,
//! and verifies all of it.
//!
//! What a move could lose lies in different places: nothing at all between two requests, bytes in
//! the queues of the kernel, in the daemon's own hands and in its pipes, an end that one side has
//! said and the other has not heard yet. When the load is over every client half-closes, and the
//! end must come exactly after its last byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::ends::{Reader, Shared, Writer, ends};
use crate::pattern::Dice;
use crate::tally::{Mishap, Tally};
use crate::upstream::Role;

/// The largest request of a steady client.
const REQUEST: usize = 2_000;
/// Bytes that a busy client writes or reads at once.
const PIECE: usize = 32 * 1024;
/// The largest piece that a slow client reads at once.
const SLOW_PIECE: usize = 2_048;
/// With no room for so long there will be none until somebody reads: the queues are full on every
/// hop.
const FULL_AFTER: Duration = Duration::from_millis(300);
/// What the kernel may hold of a busy connection at each end of ours. Left to itself it takes
/// megabytes of each, together more than it has for TCP; then it drops what comes, and what it
/// tries again ever later looks like a connection that is stuck.
pub(crate) const QUEUE: u32 = 128 * 1024;
/// The segments of an Ethernet: what the daemon's kernel keeps for us is counted in segments, and
/// those of a loopback have 64 KiB.
pub(crate) const SEGMENT: u32 = 1_460;
/// The receive buffer of every other slow client, so that its window closes again and again.
const NARROW: u32 = 8 * 1024;
/// Between two requests, in milliseconds: so that thousands of clients do not drown the machine.
const PAUSE: (usize, usize) = (400, 1_000);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A small request now and then, each answered.
    Steady,
    /// Writes without a pause, and reads at once.
    Bulk,
    /// Writes whatever there is room for, and reads slowly: every queue is full all the time.
    SlowReader,
    /// Fills every queue, half-closes, reads slowly to the end; and comes again.
    HalfClosed,
    /// Half-closes at once, and the upstream answers for as long as the load lasts. Through a proxy
    /// alone.
    Listener,
    /// The upstream half-closes at once, and the client sends for as long as the load lasts.
    /// Through a proxy alone.
    Talker,
}

/// One client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) kind: Kind,
    pub(crate) to: SocketAddr,
    /// Whether it is one of ours that answers, and has to be told what is wanted; else it is the
    /// daemon's echo.
    pub(crate) is_proxied: bool,
    /// Among those of its kind.
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    /// How many may be about to connect.
    pub(crate) doors: Arc<Semaphore>,
}

impl Client {
    /// Is at it until the load is over, or until it has lost its connection.
    pub(crate) async fn run(self) -> Tally {
        let mut tally = Tally::default();
        let outcome = match self.kind {
            Kind::Steady => self.ask(&mut tally).await,
            Kind::Bulk => self.pour(&mut tally).await,
            Kind::SlowReader => self.queue(&mut tally).await,
            Kind::HalfClosed => self.half_close(&mut tally).await,
            Kind::Listener => self.listen(&mut tally).await,
            Kind::Talker => self.talk(&mut tally).await,
        };
        if let Err(mishap) = outcome {
            tally.meet(mishap);
            self.shared.advance(|progress| progress.lost += 1);
        }
        tally
    }

    async fn ask(&self, tally: &mut Tally) -> Result<(), Mishap> {
        let (mut stream, seed) = self.connect(Role::Echo, tally).await?;
        let (mut reader, mut writer) = ends(&mut stream, &self.shared, seed, seed);
        let mut dice = Dice::of(seed);
        let mut buffer = [0; REQUEST];
        let mut is_first = true;
        let outcome = async {
            while !self.shared.is_over() {
                let request = &mut buffer[..dice.between(1, REQUEST)];
                let (asked, is_settled) = (Instant::now(), self.shared.is_settled());
                writer.all(request).await?;
                reader.all(request).await?;
                if is_settled {
                    tally.wait(asked.elapsed());
                }
                self.shared.advance(|progress| {
                    progress.answered += 1;
                    progress.ready += usize::from(std::mem::take(&mut is_first));
                });
                self.idle(dice.between(PAUSE.0, PAUSE.1)).await;
            }
            writer.finish().await?;
            reader.rest(&mut buffer).await
        };
        let outcome = outcome.await;
        tally.verified += reader.received();
        outcome
    }

    async fn pour(&self, tally: &mut Tally) -> Result<(), Mishap> {
        let (mut stream, seed) = self.connect(Role::Echo, tally).await?;
        let (mut reader, mut writer) = ends(&mut stream, &self.shared, seed, seed);
        let mut buffer = vec![0; PIECE];
        let read = async {
            reader.some(&mut buffer).await?;
            self.is_ready();
            reader.rest(&mut buffer).await
        };
        let outcome = tokio::try_join!(self.send_all_along(&mut writer), read);
        tally.verified += reader.received();
        outcome.map(|_| ())
    }

    async fn queue(&self, tally: &mut Tally) -> Result<(), Mishap> {
        let (mut stream, seed) = self.connect(Role::Echo, tally).await?;
        let (mut reader, mut writer) = ends(&mut stream, &self.shared, seed, seed);
        let outcome = async {
            fill(&mut writer).await?;
            self.is_ready();
            tokio::try_join!(self.send_all_along(&mut writer), self.read_slowly(&mut reader))
        };
        let outcome = outcome.await;
        tally.verified += reader.received();
        outcome.map(|_| ())
    }

    async fn half_close(&self, tally: &mut Tally) -> Result<(), Mishap> {
        let mut is_first = true;
        while !self.shared.is_over() {
            let (mut stream, seed) = self.connect(Role::Echo, tally).await?;
            let (mut reader, mut writer) = ends(&mut stream, &self.shared, seed, seed);
            let outcome = async {
                fill(&mut writer).await?;
                writer.finish().await?;
                if std::mem::take(&mut is_first) {
                    self.is_ready();
                }
                self.read_slowly(&mut reader).await
            };
            let outcome = outcome.await;
            tally.verified += reader.received();
            outcome?;
        }
        Ok(())
    }

    async fn listen(&self, tally: &mut Tally) -> Result<(), Mishap> {
        let (mut stream, seed) = self.connect(Role::Pour, tally).await?;
        let (mut reader, mut writer) = ends(&mut stream, &self.shared, !seed, seed);
        let outcome = async {
            writer.finish().await?;
            reader.some(&mut [0; SLOW_PIECE]).await?;
            self.is_ready();
            self.read_slowly(&mut reader).await
        };
        let outcome = outcome.await;
        tally.verified += reader.received();
        outcome
    }

    async fn talk(&self, tally: &mut Tally) -> Result<(), Mishap> {
        let (mut stream, seed) = self.connect(Role::Swallow, tally).await?;
        let (mut reader, mut writer) = ends(&mut stream, &self.shared, !seed, seed);
        // The end must come at once, and nothing before it.
        reader.some(&mut [0; 1]).await?;
        self.is_ready();
        let mut dice = Dice::of(seed);
        let mut buffer = vec![0; PIECE];
        while !self.shared.is_over() {
            let length = dice.between(1, PIECE);
            writer.all(&mut buffer[..length]).await?;
            self.idle(dice.between(5, 50)).await;
        }
        writer.finish().await
    }

    /// Sends without a pause until the load is over, and then ends.
    async fn send_all_along(&self, writer: &mut Writer<'_>) -> Result<(), Mishap> {
        let mut buffer = vec![0; PIECE];
        let mut over = std::pin::pin!(self.shared.over());
        loop {
            tokio::select! {
                biased;
                () = &mut over => return writer.finish().await,
                sent = writer.some(&mut buffer) => sent?,
            }
        }
    }

    /// Reads in small pieces and with pauses until the load is over, and then without, to the end.
    async fn read_slowly(&self, reader: &mut Reader<'_>) -> Result<(), Mishap> {
        let mut dice = Dice::of(reader.received() ^ self.number as u64);
        let mut buffer = vec![0; SLOW_PIECE];
        while !self.shared.is_over() {
            let length = dice.between(1, SLOW_PIECE);
            if reader.some(&mut buffer[..length]).await? == 0 {
                return Ok(());
            }
            self.idle(dice.between(2, 12)).await;
        }
        reader.rest(&mut vec![0; PIECE]).await
    }

    /// Lets so many milliseconds pass, unless the load is over before.
    async fn idle(&self, milliseconds: usize) {
        let _ = timeout(Duration::from_millis(milliseconds as u64), self.shared.over()).await;
    }

    fn is_ready(&self) {
        self.shared.advance(|progress| progress.ready += 1);
    }

    /// A connection, and the seed of what goes up on it.
    async fn connect(&self, role: Role, tally: &mut Tally) -> Result<(TcpStream, u64), Mishap> {
        let _door = self.doors.acquire().await.expect("nobody closes it");
        let seed = self.shared.seed();
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            let is_slow = matches!(self.kind, Kind::SlowReader | Kind::HalfClosed | Kind::Listener);
            if self.kind != Kind::Steady {
                SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
                socket.set_send_buffer_size(QUEUE)?;
                socket.set_recv_buffer_size(if is_slow && self.number % 2 == 1 {
                    NARROW
                } else {
                    QUEUE
                })?;
            }
            let mut stream = socket.connect(self.to).await?;
            stream.set_nodelay(true)?;
            if self.is_proxied {
                stream.write_all(&role.hello(seed)).await?;
            }
            Ok(stream)
        };
        let stream = connect.await.map_err(|error| Mishap::of("connecting", &error))?;
        tally.connections += 1;
        Ok((stream, seed))
    }
}

/// Sends until there is no room anywhere.
async fn fill(writer: &mut Writer<'_>) -> Result<(), Mishap> {
    let mut buffer = vec![0; PIECE];
    while let Ok(sent) = timeout(FULL_AFTER, writer.some(&mut buffer)).await {
        sent?;
    }
    Ok(())
}
