//! The log of a lineage of generations, and how a test waits for its records.
//!
//! A thread wakes the tests that wait for a record. Every look at the log first reads what is in
//! the pipe, so a test that has seen a process end also sees all that the process wrote.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{DEADLINE, Line, Pattern, Record};

#[derive(Debug)]
pub(super) struct Log {
    pipe: File,
    lines: Mutex<Lines>,
    pub(super) grown: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) text: Vec<String>,
    /// The start of a line whose end has not arrived.
    rest: Vec<u8>,
    pub(super) ended: bool,
}

impl Log {
    /// Takes the reading end of the pipe. It does not block; the writers of the pipe still do.
    pub(super) fn new(pipe: File) -> Self {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self { pipe, lines: Mutex::default(), grown: Condvar::new() }
    }

    /// Reads the log until all writers have closed the pipe.
    pub(super) fn follow(&self) {
        while !self.lines().ended {
            let mut wanted = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut wanted, PollTimeout::NONE);
        }
    }

    /// Locks the lines, after all that is in the pipe has been added to them. Wakes the tests that
    /// wait for a record.
    pub(super) fn lines(&self) -> MutexGuard<'_, Lines> {
        let mut lines = self.lines.lock().unwrap();
        lines.read_all(&self.pipe);
        self.grown.notify_all();
        lines
    }
}

impl Lines {
    fn read_all(&mut self, mut pipe: &File) {
        let mut buffer = vec![0; 1 << 16];
        while !self.ended {
            match pipe.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => self.rest.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("cannot read the log: {error}"),
            }
        }
        let whole = match self.rest.iter().rposition(|byte| *byte == b'\n') {
            _ if self.ended => self.rest.len(),
            Some(end) => end + 1,
            None => return,
        };
        let lines = String::from_utf8_lossy(&self.rest[..whole]).into_owned();
        self.text.extend(lines.lines().map(|line| line.trim_end().to_owned()));
        self.rest.drain(..whole);
    }
}

impl Line {
    /// Returns all records so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.log.lines().text.iter().map(|line| Record::parse(line)).collect()
    }

    /// Returns how many records match.
    pub(crate) fn count(&self, wanted: impl Pattern) -> usize {
        self.records().iter().filter(|record| wanted.matches(record)).count()
    }

    /// Waits for a record in the whole log, and returns it.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.wait_since(0, what, wanted)
    }

    /// Waits for a record after a [`Line::mark`]. After a failed handoff the next attempt has the
    /// same number; the mark excludes records of the failed one.
    pub(crate) fn wait_since(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Record {
        self.wait_after(&mut { mark }, what, wanted)
    }

    /// Waits for a record after the first `seen` ones, and moves `seen` past it. Long logs are not
    /// searched from the start again.
    pub(crate) fn wait_after(
        &self,
        seen: &mut usize,
        what: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Record {
        let found = self.wait_after_or_end(seen, what, wanted);
        found.unwrap_or_else(|| {
            panic!("every process has ended without a record of {what}:\n{}", self.text())
        })
    }

    /// Waits for a record after a mark. Returns `None` if every process of the lineage ends first.
    pub(crate) fn wait_since_or_end(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<Record> {
        self.wait_after_or_end(&mut { mark }, what, wanted)
    }

    fn wait_after_or_end(
        &self,
        seen: &mut usize,
        what: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<Record> {
        let until = Instant::now() + DEADLINE;
        let mut lines = self.log.lines();
        loop {
            while let Some(line) = lines.text.get(*seen) {
                *seen += 1;
                let record = Record::parse(line);
                if wanted(&record) {
                    return Some(record);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if lines.ended {
                return None;
            }
            if left.is_zero() {
                // Release the lock first: `Line::drop` reads the log.
                drop(lines);
                panic!("no record of {what} before the deadline. The log:\n{}", self.text());
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Returns the current end of the log.
    pub(crate) fn mark(&self) -> usize {
        self.log.lines().text.len()
    }

    /// Returns the whole log, for the message of a failed test.
    pub(crate) fn text(&self) -> String {
        self.log.lines().text.join("\n")
    }

    /// Waits for a matching record of `generation`.
    pub(crate) fn wait_for(&self, generation: u64, wanted: impl Pattern) -> Record {
        self.wait(&format!("{wanted:?} by generation {generation}"), |record| {
            record.generation == generation && wanted.matches(record)
        })
    }

    /// Waits until `count` records match.
    pub(crate) fn wait_for_count(&self, count: usize, wanted: impl Pattern) {
        let seen = std::cell::Cell::new(0);
        self.wait(&format!("{wanted:?}, {count} times"), |record| {
            seen.set(seen.get() + usize::from(wanted.matches(record)));
            seen.get() == count
        });
    }
}
