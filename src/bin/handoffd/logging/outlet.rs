//! A log outlet that never blocks: it keeps records for a slow reader and drops records for a
//! stalled one.
//!
//! A record is written at once if there is room. If there is none, because the journal or a pager
//! has stopped, the record joins a backlog. A thread empties the backlog when the reader reads
//! again. Records that do not fit into the backlog are dropped and counted. The count is logged
//! when the reader has taken the next record.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::PollTimeout;

use super::stream::Stream;

/// The size of the backlog in bytes. Starting 4,000 listeners logs 4,000 records at once.
const BACKLOG: usize = 512 * 1024;

/// How long an exiting process waits for its backlog to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long to wait after poll(2) reported room but a write took nothing.
const PAUSE: Duration = Duration::from_millis(20);

/// The outlet of all records of this process.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: Stream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    /// The size in bytes of all records in the backlog.
    size: usize,
    /// How many bytes of the first record in the backlog are already written.
    written: usize,
    /// How many records were dropped and not reported yet.
    dropped: u64,
    /// Whether to report the count, because a record was written after the dropped ones.
    report_is_due: bool,
    flusher: Flusher,
}

/// Whether the thread that empties the backlog runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flusher {
    /// No record has had to wait so far.
    #[default]
    NotNeeded,
    Runs,
}

impl Outlet {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Arc::new(Shared { stream, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Takes a record. Never waits.
    pub(super) fn put(&self, record: &[u8]) {
        let mut state = self.0.lock();
        self.0.drain(&mut state);
        if !state.waiting.is_empty() && state.size + record.len() > BACKLOG {
            state.dropped += 1;
            return;
        }
        state.waiting.push_back(record.to_vec());
        state.size += record.len();
        self.0.drain(&mut state);
        if !state.waiting.is_empty() || state.report_is_due {
            self.wake(&mut state);
        }
    }

    /// Waits a moment until the backlog has been read.
    pub(super) fn finish(&self) {
        let state = self.0.lock();
        let is_unread = |state: &mut State| !state.waiting.is_empty();
        drop(
            self.0
                .changed
                .wait_timeout_while(state, LAST_WORDS, is_unread)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Wakes the thread that empties the backlog, and starts it the first time.
    fn wake(&self, state: &mut State) {
        if state.flusher == Flusher::NotNeeded {
            let shared = Arc::clone(&self.0);
            let thread =
                std::thread::Builder::new().name("log".to_owned()).spawn(move || shared.flush());
            // If the thread cannot be started, the next record empties the backlog.
            state.flusher = thread.map_or(Flusher::NotNeeded, |_| Flusher::Runs);
        }
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes records of the backlog as long as there is room.
    fn drain(&self, state: &mut State) {
        while let Some(first) = state.waiting.front() {
            match self.stream.write(&first[state.written..]) {
                Ok(count @ 1..) if state.written + count < first.len() => state.written += count,
                Ok(1..) => {
                    state.pop();
                    state.report_is_due = state.dropped > 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The disk is full, or the other end is closed.
                Ok(_) | Err(_) => {
                    state.pop();
                    state.dropped += 1;
                }
            }
        }
    }

    /// Empties the backlog whenever it is not empty, and reports how many records were dropped.
    fn flush(&self) {
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.report_is_due {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.waiting.is_empty() {
                drop(state);
                self.stream.has_room(PollTimeout::NONE);
                state = self.lock();
                self.drain(&mut state);
                if !state.waiting.is_empty() {
                    drop(self.changed.wait_timeout(state, PAUSE));
                    continue;
                }
                self.changed.notify_all();
            }
            if std::mem::take(&mut state.report_is_due) {
                let dropped = std::mem::take(&mut state.dropped);
                drop(state);
                tracing::warn!(
                    event = "log.dropped",
                    dropped,
                    "dropped {dropped} log records that could not be written"
                );
            }
        }
    }
}

impl State {
    /// Removes the first record from the backlog.
    fn pop(&mut self) {
        let record = self.waiting.pop_front().unwrap_or_default();
        self.size -= record.len();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Returns an outlet and the reading end of its stream.
    fn outlet() -> (Outlet, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (Outlet::new(Stream::Journal(ours)), theirs)
    }

    fn read(reader: &UnixDatagram) -> String {
        let mut record = [0; 2048];
        let length = reader.recv(&mut record).unwrap();
        String::from_utf8(record[..length].to_vec()).unwrap()
    }

    #[test]
    fn records_wait_for_a_slow_reader_and_keep_their_order() {
        let (outlet, reader) = outlet();
        (0..500).for_each(|number| outlet.put(number.to_string().as_bytes()));
        (0..500).for_each(|number| assert_eq!(read(&reader), number.to_string()));
        outlet.finish();
        let state = outlet.0.lock();
        assert_eq!((state.dropped, state.size, state.waiting.len()), (0, 0, 0));
    }

    #[test]
    fn records_beyond_the_backlog_are_dropped_and_counted() {
        let (outlet, reader) = outlet();
        let record = [b'x'; 1024];
        // More records than the backlog and the socket can hold together.
        let count = 2 * BACKLOG / record.len();
        (0..count).for_each(|_| outlet.put(&record));
        let dropped = outlet.0.lock().dropped;
        assert!(dropped > 0);
        // All other records arrive.
        (0..count - usize::try_from(dropped).unwrap())
            .for_each(|_| assert_eq!(read(&reader).len(), record.len()));
        reader.set_nonblocking(true).unwrap();
        assert_eq!(reader.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
