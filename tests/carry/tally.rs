//! Counts of what clients and upstreams have met, by kind, and their summary.
//!
//! The duration of answers is printed and never checked: a machine that is busy otherwise breaks no
//! promise.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::io::{self, ErrorKind};
use std::time::Duration;

/// How many mishaps of each kind are printed in full.
const TOLD: usize = 5;

/// The way in which a connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    /// An end of stream that came too early.
    Closed,
    /// A reset.
    Reset,
    /// A wrong byte, or one byte too many.
    Wrong,
    /// The expected bytes did not come within the deadline.
    Stuck,
    /// The connection could not be made.
    Refused,
}

/// A loss and its description.
#[derive(Debug)]
pub(crate) struct Mishap {
    pub(crate) loss: Loss,
    pub(crate) text: String,
}

impl Mishap {
    /// Classifies an error that occurred while `doing` something.
    pub(crate) fn of(doing: &str, error: &io::Error) -> Self {
        let kind = error.kind();
        let loss = if matches!(
            kind,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
        ) {
            Loss::Reset
        } else if kind == ErrorKind::UnexpectedEof {
            Loss::Closed
        } else {
            Loss::Refused
        };
        Self { loss, text: format!("{doing}: {error}") }
    }
}

/// The counts of the connections of one kind.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) connections: usize,
    /// How many correct bytes were received.
    pub(crate) verified: u64,
    pub(crate) losses: BTreeMap<Loss, usize>,
    told: Vec<String>,
    /// How long each answer took, in microseconds.
    pauses: Vec<u32>,
    /// The longest pause of each connection, in microseconds.
    longest: Vec<u32>,
}

impl Tally {
    /// Counts a loss.
    pub(crate) fn meet(&mut self, mishap: Mishap) {
        *self.losses.entry(mishap.loss).or_default() += 1;
        self.told.push(format!("{:?}: {}", mishap.loss, mishap.text));
    }

    /// Records how long an answer took.
    pub(crate) fn wait(&mut self, pause: Duration) {
        self.pauses.push(u32::try_from(pause.as_micros()).unwrap_or(u32::MAX));
    }

    /// Returns how many connections were lost in that way.
    pub(crate) fn lost(&self, loss: Loss) -> usize {
        self.losses.get(&loss).copied().unwrap_or(0)
    }

    /// Adds the counts of one connection.
    pub(crate) fn add(&mut self, one: Self) {
        self.connections += one.connections;
        self.verified += one.verified;
        for (loss, count) in one.losses {
            *self.losses.entry(loss).or_default() += count;
        }
        self.told.extend(one.told);
        self.told.truncate(TOLD);
        self.longest.extend(one.pauses.iter().max());
        self.longest.extend(one.longest);
        self.pauses.extend(one.pauses);
    }
}

impl Display for Tally {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let verified = self.verified / 1_000;
        write!(to, "{} connections, {verified} kB verified", self.connections)?;
        for loss in [Loss::Closed, Loss::Reset, Loss::Wrong] {
            write!(to, ", {} {loss:?}", self.lost(loss))?;
        }
        for loss in [Loss::Stuck, Loss::Refused].into_iter().filter(|loss| self.lost(*loss) > 0) {
            write!(to, ", {} {loss:?}", self.lost(loss))?;
        }
        if !self.pauses.is_empty() {
            write!(to, "\n    pauses: {}", distribution(&self.pauses))?;
            write!(to, "\n    the longest of each connection: {}", distribution(&self.longest))?;
        }
        self.told.iter().try_for_each(|told| write!(to, "\n    {told}"))
    }
}

/// Describes the distribution of times in microseconds by its percentiles.
pub(crate) fn distribution(times: &[u32]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let ranks = [("p50", 500), ("p99", 990), ("p99.9", 999), ("max", 1_000)];
    let each = ranks.map(|(name, rank)| {
        let place = (sorted.len() * rank).div_ceil(1_000).max(1) - 1;
        format!("{name} {:.1} ms", f64::from(sorted[place]) / 1e3)
    });
    format!("{} of {}", each.join(", "), sorted.len())
}

/// The counts of all connections, by the name of their kind.
#[derive(Debug, Default)]
pub(crate) struct Report(pub(crate) BTreeMap<String, Tally>);

impl Report {
    /// Adds the counts of one connection of that kind.
    pub(crate) fn add(&mut self, kind: &str, one: Tally) {
        self.0.entry(kind.to_owned()).or_default().add(one);
    }

    /// Returns how many connections of all kinds were lost in that way.
    pub(crate) fn lost(&self, loss: Loss) -> usize {
        self.0.values().map(|tally| tally.lost(loss)).sum()
    }

    /// Asserts that no connection was lost.
    pub(crate) fn assert_unnoticed(&self) {
        for (kind, tally) in &self.0 {
            assert!(tally.losses.is_empty(), "{kind}: {tally}");
            assert!(tally.connections > 0, "{kind}: no client connected");
        }
    }
}

impl Display for Report {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(kind, tally)| writeln!(to, "  {kind}: {tally}"))
    }
}
