//! The log of a lineage of generations, and how a test waits for its records.

use std::io::BufRead;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use super::{DEADLINE, Line, Pattern, Record};

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) lines: Mutex<Lines>,
    pub(super) grown: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) text: Vec<String>,
    pub(super) ended: bool,
}

impl Log {
    pub(super) fn follow(&self, mut pipe: impl BufRead) {
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            self.lines
                .lock()
                .unwrap()
                .text
                .push(String::from_utf8_lossy(&line).trim_end().to_owned());
            self.grown.notify_all();
            line.clear();
        }
        self.lines.lock().unwrap().ended = true;
        self.grown.notify_all();
    }
}

impl Line {
    /// Returns all records so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.log.lines.lock().unwrap().text.iter().map(|line| Record::parse(line)).collect()
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
        let mut lines = self.log.lines.lock().unwrap();
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
        self.log.lines.lock().unwrap().text.len()
    }

    /// Returns the whole log, for the message of a failed test.
    pub(crate) fn text(&self) -> String {
        self.log.lines.lock().unwrap().text.join("\n")
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
