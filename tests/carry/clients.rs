//! The kinds of clients. Each keeps its connection in a different state for as long as the load
//! lasts, and verifies every byte.
//!
//! The states differ in what a carry could lose. Between two requests there is nothing to lose.
//! Otherwise bytes may be in kernel queues, in the daemon's buffers and in its pipes. One side's
//! end of stream may not have reached the other side. When the load is over, every client
//! half-closes. The end of stream must then follow exactly after the last byte.

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

/// The largest request of a steady client, in bytes.
const REQUEST: usize = 2_000;
/// How many bytes a busy client writes or reads at once.
const PIECE: usize = 32 * 1024;
/// The most bytes that a slow client reads at once.
const SLOW_PIECE: usize = 2_048;
/// How long without room until every queue counts as full. After that there is no room until the
/// other side reads.
const FULL_AFTER: Duration = Duration::from_millis(300);
/// The kernel's buffer size for a busy connection, at each of our ends. By default the kernel takes
/// megabytes for each connection, more in total than its limit for TCP memory. Then it drops
/// segments and retransmits ever later, and the connection looks stuck.
pub(crate) const QUEUE: u32 = 128 * 1024;
/// The segment size of Ethernet. The kernel accounts for buffered data in segments, and loopback
/// segments have 64 KiB.
pub(crate) const SEGMENT: u32 = 1_460;
/// The receive buffer of every other slow client: its window closes again and again.
const NARROW: u32 = 8 * 1024;
/// The shortest and the longest pause between two requests, in milliseconds. Thousands of clients
/// would overload the machine without it.
const PAUSE: (usize, usize) = (400, 1_000);

/// The behaviour of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sends a small request now and then, and reads the answer.
    Steady,
    /// Writes without a pause, and reads at once.
    Bulk,
    /// Writes whatever there is room for and reads slowly, so that every queue is always full.
    SlowReader,
    /// Fills every queue, half-closes and reads slowly to the end. Then connects again.
    HalfClosed,
    /// Half-closes at once, and the upstream sends for as long as the load lasts. Only behind a
    /// proxy.
    Listener,
    /// Sends for as long as the load lasts, and the upstream half-closes at once. Only behind a
    /// proxy.
    Talker,
}

/// One client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) kind: Kind,
    pub(crate) to: SocketAddr,
    /// Whether the load's own upstream answers, which must be told its role. Otherwise the daemon's
    /// echo answers.
    pub(crate) is_proxied: bool,
    /// The number of the client among the clients of its kind.
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    /// Limits how many clients connect at the same time.
    pub(crate) doors: Arc<Semaphore>,
}

impl Client {
    /// Runs until the load is over or the connection is lost.
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
        // The end of stream must come at once, with no byte before it.
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

    /// Sends without a pause until the load is over, and then half-closes.
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

    /// Reads in small pieces and with pauses until the load is over. Then reads to the end without
    /// pauses.
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

    /// Waits `milliseconds`, or until the load is over.
    async fn idle(&self, milliseconds: usize) {
        let _ = timeout(Duration::from_millis(milliseconds as u64), self.shared.over()).await;
    }

    fn is_ready(&self) {
        self.shared.advance(|progress| progress.ready += 1);
    }

    /// Connects, and returns the connection and the seed of the bytes to send.
    async fn connect(&self, role: Role, tally: &mut Tally) -> Result<(TcpStream, u64), Mishap> {
        let _door = self.doors.acquire().await.expect("the semaphore stays open");
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

/// Sends until every queue is full.
async fn fill(writer: &mut Writer<'_>) -> Result<(), Mishap> {
    let mut buffer = vec![0; PIECE];
    while let Ok(sent) = timeout(FULL_AFTER, writer.some(&mut buffer)).await {
        sent?;
    }
    Ok(())
}
