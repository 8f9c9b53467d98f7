//! A writer of log records (an outlet) that never blocks. If the reader is slow, the outlet keeps
//! records in a backlog. If the backlog is full, the outlet drops records.
//!
//! The outlet writes a record at once if the stream has room. If not, for example because the
//! journal or a pager has stopped, the record joins a backlog in memory. A thread writes the
//! backlog when the reader resumes. The outlet counts the records that it drops, and logs their
//! number once the stream accepts records again.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::PollTimeout;

use super::stream::LogStream;

/// The maximum size of the backlog in bytes. It is large because a daemon with 4,000 listeners logs
/// 4,000 records at its start.
const BACKLOG: usize = 512 * 1024;

/// How long an exiting process waits for the reader to take the log records in the backlog.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The pause before another attempt if poll(2) reported room but the write still found none.
const PAUSE: Duration = Duration::from_millis(20);

/// A shared handle to the log stream and its backlog. All threads write their log records through
/// it.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stream: LogStream,
    state: Mutex<OutletState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutletState {
    waiting: VecDeque<Vec<u8>>,
    /// The total size in bytes of all records in the backlog.
    size: usize,
    /// How many bytes of the first record in the backlog have been written.
    written: usize,
    /// How many records were dropped since the last log record about dropped records.
    dropped: u64,
    /// Whether to log the number of dropped records now, because the stream accepts records again.
    report_is_due: bool,
    flusher: Flusher,
}

/// Whether the thread that writes the backlog is running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flusher {
    /// The thread does not run, because no record has joined the backlog yet.
    #[default]
    NotNeeded,
    Runs,
}

impl Outlet {
    pub(super) fn new(stream: LogStream) -> Self {
        Self(Arc::new(Shared { stream, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Writes a log record at once, or adds it to the backlog. Never waits.
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

    /// Waits a short time for the reader to read the backlog.
    pub(super) fn finish(&self) {
        let state = self.0.lock();
        let is_unread = |state: &mut OutletState| !state.waiting.is_empty();
        drop(
            self.0
                .changed
                .wait_timeout_while(state, LAST_WORDS, is_unread)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Wakes the thread that writes the backlog. Starts the thread on the first call.
    fn wake(&self, state: &mut OutletState) {
        if state.flusher == Flusher::NotNeeded {
            let shared = Arc::clone(&self.0);
            let thread =
                std::thread::Builder::new().name("log".to_owned()).spawn(move || shared.flush());
            // If the thread cannot be started, the next log record tries to start it again.
            state.flusher = thread.map_or(Flusher::NotNeeded, |_| Flusher::Runs);
        }
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, OutletState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes records from the backlog as long as the stream has room.
    fn drain(&self, state: &mut OutletState) {
        while let Some(first) = state.waiting.front() {
            match self.stream.write(&first[state.written..]) {
                Ok(count @ 1..) if state.written + count < first.len() => state.written += count,
                Ok(1..) => {
                    state.pop();
                    state.report_is_due = state.dropped > 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Drop the record, because the disk is full or the reading end is closed.
                Ok(_) | Err(_) => {
                    state.pop();
                    state.dropped += 1;
                }
            }
        }
    }

    /// Writes the backlog whenever it has records, and reports how many records were dropped.
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

impl OutletState {
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
        (Outlet::new(LogStream::Journal(ours)), theirs)
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
        // Write more records than the backlog and the socket can hold together.
        let count = 2 * BACKLOG / record.len();
        (0..count).for_each(|_| outlet.put(&record));
        let dropped = outlet.0.lock().dropped;
        assert!(dropped > 0);
        // The reader receives all records that were not dropped.
        (0..count - usize::try_from(dropped).unwrap())
            .for_each(|_| assert_eq!(read(&reader).len(), record.len()));
        reader.set_nonblocking(true).unwrap();
        assert_eq!(reader.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
