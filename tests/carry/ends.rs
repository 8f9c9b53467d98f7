//! The two ends of a conversation's directions, each of which knows its place in the pattern.
//!
//! Who stops sending says in the ledger how much that was, and then half-closes. Who reads an end
//! looks it up: one that nobody has said, or that comes before the last byte, is a connection
//! closed too early. Clients and upstreams are in one process, so that works through a proxy as
//! well as on an echo.
//!
//! Each read has a deadline. A write has none: where the other side reads slowly it has to wait,
//! and if nothing moves at all that side's reads will tell.

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

/// What all connections of a load share.
#[derive(Debug)]
pub(crate) struct Shared {
    progress: Mutex<Progress>,
    moved: Condvar,
    /// How many bytes each direction had that has ended.
    said: Mutex<HashMap<u64, u64>>,
    over: watch::Sender<bool>,
    /// Whether everybody is busy: how long an answer took before that says how long it takes to
    /// come.
    settled: AtomicBool,
}

/// How far the load is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Directions that were begun.
    pub(crate) begun: u64,
    /// Clients that are as busy as they will be.
    pub(crate) ready: usize,
    /// Requests that were answered.
    pub(crate) answered: u64,
    /// How many of them somebody waits for.
    pub(crate) awaited: u64,
    /// Connections that were lost.
    pub(crate) lost: usize,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let (progress, said) = (Mutex::default(), Mutex::default());
        let over = watch::Sender::new(false);
        Self { progress, moved: Condvar::new(), said, over, settled: AtomicBool::new(false) }
    }

    /// Notes that something has moved.
    pub(crate) fn advance(&self, change: impl FnOnce(&mut Progress)) -> Progress {
        let mut progress = self.progress.lock().unwrap();
        let before = *progress;
        change(&mut progress);
        // Not at each of ten thousand answers a second.
        if (before.ready, before.lost) != (progress.ready, progress.lost)
            || progress.answered == progress.awaited
        {
            self.moved.notify_all();
        }
        *progress
    }

    /// How far it is now.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap()
    }

    /// Waits until it is as far as that.
    pub(crate) fn wait_until(&self, what: &str, is_there: impl Fn(&Progress) -> bool) {
        let until = Instant::now() + DEADLINE;
        let mut progress = self.progress.lock().unwrap();
        while !is_there(&progress) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the deadline has passed, and not {what}: {:?}", *progress);
            progress = self.moved.wait_timeout(progress, left).unwrap().0;
        }
    }

    /// A direction that is none of the others.
    pub(crate) fn seed(&self) -> u64 {
        self.advance(|progress| progress.begun += 1).begun
    }

    /// Says that everybody is busy.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Has everybody come to the end.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }

    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// When everybody has to come to the end.
    pub(crate) async fn over(&self) {
        let mut over = self.over.subscribe();
        let _ = over.wait_for(|over| *over).await;
    }

    fn check_end(&self, seed: u64, received: u64) -> Result<(), Mishap> {
        let (loss, text) = match self.said.lock().unwrap().get(&seed) {
            Some(said) if *said == received => return Ok(()),
            Some(said) if *said < received => (Loss::Wrong, format!("of {said}")),
            Some(said) => (Loss::Closed, format!("of {said}")),
            None => (Loss::Closed, "and nobody had ended".to_owned()),
        };
        Err(Mishap { loss, text: format!("the end came after {received} bytes, {text}") })
    }
}

/// The end of a direction that sends.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    half: WriteHalf<'a>,
    shared: &'a Shared,
    seed: u64,
    sent: u64,
}

/// The end of a direction that receives.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    half: ReadHalf<'a>,
    shared: &'a Shared,
    seed: u64,
    received: u64,
}

/// The ends of a stream, of which the one reads the bytes that belong to a seed, and the other
/// sends those of another.
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
    /// Sends as much of that many bytes as there is room for, when there is any. Dropped before
    /// that, it has sent nothing.
    pub(crate) async fn some(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        Pattern::of(self.seed).fill(self.sent, buffer);
        let count = self.half.write(buffer).await.map_err(|error| Mishap::of("sending", &error))?;
        self.sent += count as u64;
        Ok(())
    }

    /// Sends that many bytes.
    pub(crate) async fn all(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        Pattern::of(self.seed).fill(self.sent, buffer);
        self.pass_on(buffer).await
    }

    /// Sends what was received in the direction that this one answers.
    pub(crate) async fn pass_on(&mut self, bytes: &[u8]) -> Result<(), Mishap> {
        self.half.write_all(bytes).await.map_err(|error| Mishap::of("sending", &error))?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&mut self) -> Result<(), Mishap> {
        self.shared.said.lock().unwrap().insert(self.seed, self.sent);
        self.half.shutdown().await.map_err(|error| Mishap::of("half-closing", &error))
    }
}

impl Reader<'_> {
    /// Reads once, and verifies. None at an end that was said.
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

    /// Reads that many bytes.
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

    /// Reads to the end, as fast as it comes.
    pub(crate) async fn rest(&mut self, buffer: &mut [u8]) -> Result<(), Mishap> {
        while self.some(buffer).await? > 0 {}
        Ok(())
    }

    /// Bytes that came and were right.
    pub(crate) const fn received(&self) -> u64 {
        self.received
    }
}
