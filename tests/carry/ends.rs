//! The sending and the receiving end of each direction of a connection. Each end knows its position
//! in the byte pattern.
//!
//! A writer that stops records in a ledger how much it has sent, and then half-closes. A reader
//! that gets an end of stream looks it up. If the end is not recorded, or comes before the last
//! byte, the connection was closed too early. Clients and upstreams share one process, so this
//! works behind a proxy as well as with an echo.
//!
//! Each read has a deadline. A write has none, because it must wait while the other side reads
//! slowly. If nothing moves at all, the reads of the other side fail.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::pattern::Pattern;
use crate::support::DEADLINE;
use crate::tally::{Loss, Mishap};

/// The state shared by all connections of a load.
#[derive(Debug)]
pub(crate) struct Shared {
    progress: Mutex<Progress>,
    moved: Condvar,
    /// How many bytes each finished direction has sent, by its seed.
    said: Mutex<HashMap<u64, u64>>,
    over: watch::Sender<bool>,
    /// Whether all clients are busy. The duration of answers counts only from then on.
    settled: AtomicBool,
}

/// The progress of the load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// How many directions have started.
    pub(crate) begun: u64,
    /// How many clients have reached their full activity.
    pub(crate) ready: usize,
    /// How many requests were answered.
    pub(crate) answered: u64,
    /// The number of answers that the test waits for.
    pub(crate) awaited: u64,
    /// How many connections were lost.
    pub(crate) lost: usize,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let (progress, said) = (Mutex::default(), Mutex::default());
        let over = watch::Sender::new(false);
        Self { progress, moved: Condvar::new(), said, over, settled: AtomicBool::new(false) }
    }

    /// Changes the progress, and wakes the waiting test if necessary.
    pub(crate) fn advance(&self, change: impl FnOnce(&mut Progress)) -> Progress {
        let mut progress = self.progress.lock().unwrap();
        let before = *progress;
        change(&mut progress);
        // Waking at each of ten thousand answers a second would cost too much.
        if (before.ready, before.lost) != (progress.ready, progress.lost)
            || progress.answered == progress.awaited
        {
            self.moved.notify_all();
        }
        *progress
    }

    /// Returns the current progress.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap()
    }

    /// Waits until `is_there` accepts the progress.
    pub(crate) fn wait_until(&self, what: &str, is_there: impl Fn(&Progress) -> bool) {
        let until = Instant::now() + DEADLINE;
        let mut progress = self.progress.lock().unwrap();
        while !is_there(&progress) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "timeout while waiting until {what}: {:?}", *progress);
            progress = self.moved.wait_timeout(progress, left).unwrap().0;
        }
    }

    /// Returns the seed of a new direction.
    pub(crate) fn seed(&self) -> u64 {
        self.advance(|progress| progress.begun += 1).begun
    }

    /// Records that all clients are busy.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Tells all clients to finish.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }

    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Waits until all clients must finish.
    pub(crate) async fn over(&self) {
        let mut over = self.over.subscribe();
        let _ = over.wait_for(|over| *over).await;
    }

    fn check_end(&self, seed: u64, received: u64) -> Result<(), Mishap> {
        let (loss, text) = match self.said.lock().unwrap().get(&seed) {
            Some(said) if *said == received => return Ok(()),
            Some(said) if *said < received => (Loss::Wrong, format!("of {said}")),
            Some(said) => (Loss::Closed, format!("of {said}")),
            None => (Loss::Closed, "but the sender had not ended".to_owned()),
        };
        Err(Mishap { loss, text: format!("the end came after {received} bytes, {text}") })
    }
}

/// The sending end of a direction.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    half: WriteHalf<'a>,
    shared: &'a Shared,
    seed: u64,
    sent: u64,
}

/// The receiving end of a direction.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    half: ReadHalf<'a>,
    shared: &'a Shared,
    seed: u64,
    received: u64,
}

/// Returns the two ends of a stream: the reader expects the bytes of one seed, and the writer sends
/// the bytes of another.
pub(crate) fn ends<'a>(
    stream: &'a mut TcpStream,
    shared: &'a Shared,
    read: u64,
    written: u64,
) -> (Reader<'a>, Writer<'a>) {
    let (reading, writing) = stream.split();
    let reader = Reader { half: reading, shared, seed: read, received: 0 };
    (reader, Writer { half: writing, shared, seed: written, sent: 0 })
}

impl Writer<'_> {
    /// Waits until there is room, and sends as many bytes of the buffer's length as fit. If the
    /// future is dropped before, nothing was sent.
    pub(crate) async fn some(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        Pattern::of(self.seed).fill(self.sent, buffer);
        let count = self.half.write(buffer).await.map_err(|error| Mishap::of("sending", &error))?;
        self.sent += count as u64;
        Ok(())
    }

    /// Sends as many bytes as the buffer has.
    pub(crate) async fn all(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        Pattern::of(self.seed).fill(self.sent, buffer);
        self.pass_on(buffer).await
    }

    /// Sends bytes that were received from the other direction.
    pub(crate) async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), Mishap> {
        self.half.write_all(bytes).await.map_err(|error| Mishap::of("sending", &error))?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    /// Records how much was sent, and half-closes.
    pub(crate) async fn finish(&mut self) -> Result<(), Mishap> {
        self.shared.said.lock().unwrap().insert(self.seed, self.sent);
        self.half.shutdown().await.map_err(|error| Mishap::of("half-closing", &error))
    }
}

impl Reader<'_> {
    /// Reads once and verifies the bytes. Returns 0 at an expected end of stream.
    pub(crate) async fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Mishap> {
        let count = match timeout(DEADLINE, self.half.read(buffer)).await {
            Ok(Ok(0)) => return self.shared.check_end(self.seed, self.received).map(|()| 0),
            Ok(Ok(count)) => count,
            Ok(Err(error)) => {
                return Err(Mishap::of(&format!("reading after {} bytes", self.received), &error));
            }
            Err(_) => {
                return Err(Mishap {
                    loss: Loss::Stuck,
                    text: format!("nothing came after {} bytes", self.received),
                });
            }
        };
        let verdict = Pattern::of(self.seed).check(self.received, &buffer[..count]);
        verdict.map_err(|text| Mishap { loss: Loss::Wrong, text })?;
        self.received += count as u64;
        Ok(count)
    }

    /// Reads as many bytes as the buffer has.
    pub(crate) async fn all(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        let mut left = buffer.len();
        while left > 0 {
            left -= match self.some(&mut buffer[..left]).await? {
                0 => {
                    return Err(Mishap {
                        loss: Loss::Closed,
                        text: "the end came within an answer".to_owned(),
                    });
                }
                count => count,
            };
        }
        Ok(())
    }

    /// Reads to the end of stream without a pause.
    pub(crate) async fn rest(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        while self.some(buffer).await? > 0 {}
        Ok(())
    }

    /// Returns how many correct bytes were received.
    pub(crate) const fn received(&self) -> u64 {
        self.received
    }
}
