//! Counts what clients and upstreams have met, by kind, and says it in a few lines.
//!
//! How long answers took is told and never judged: a machine that does something else meanwhile is
//! no broken promise.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::io::{self, ErrorKind};
use std::time::Duration;

/// Of each kind so many mishaps are told whole.
const TOLD: usize = 5;

/// What ended a connection that should have gone on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    /// In order, but before its time.
    Closed,
    /// By a reset.
    Reset,
    /// By a byte that did not belong there, or one too many.
    Wrong,
    /// By nothing: the deadline has passed, and what was due has not come.
    Stuck,
    /// It never was one.
    Refused,
}

/// A loss, and what is known of it.
#[derive(Debug)]
pub(crate) struct Mishap {
    pub(crate) loss: Loss,
    pub(crate) text: String,
}

impl Mishap {
    /// What an error means that came while `doing` that.
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

/// What connections of one kind have met.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) connections: usize,
    /// Bytes that came and were right.
    pub(crate) verified: u64,
    pub(crate) losses: BTreeMap<Loss, usize>,
    told: Vec<String>,
    /// How long each answer took, in microseconds.
    pauses: Vec<u32>,
    /// The longest of each connection.
    longest: Vec<u32>,
}

impl Tally {
    /// Notes a loss.
    pub(crate) fn meet(&mut self, mishap: Mishap) {
        *self.losses.entry(mishap.loss).or_default() += 1;
        self.told.push(format!("{:?}: {}", mishap.loss, mishap.text));
    }

    /// Notes how long an answer took.
    pub(crate) fn wait(&mut self, pause: Duration) {
        self.pauses.push(u32::try_from(pause.as_micros()).unwrap_or(u32::MAX));
    }

    /// How many of that loss.
    pub(crate) fn lost(&self, loss: Loss) -> usize {
        self.losses.get(&loss).copied().unwrap_or(0)
    }

    /// Adds what one connection has met.
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

/// The ranks that matter, of times in microseconds.
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

/// What all have met, by the name of their kind.
#[derive(Debug, Default)]
pub(crate) struct Report(pub(crate) BTreeMap<String, Tally>);

impl Report {
    /// Adds what one connection of that kind has met.
    pub(crate) fn add(&mut self, kind: &str, one: Tally) {
        self.0.entry(kind.to_owned()).or_default().add(one);
    }

    /// How many of that loss, over all kinds.
    pub(crate) fn lost(&self, loss: Loss) -> usize {
        self.0.values().map(|tally| tally.lost(loss)).sum()
    }

    /// Nobody noticed anything.
    pub(crate) fn assert_unnoticed(&self) {
        for (kind, tally) in &self.0 {
            assert!(tally.losses.is_empty(), "{kind}: {tally}");
            assert!(tally.connections > 0, "{kind}: there was nobody");
        }
    }
}

impl Display for Report {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(kind, tally)| writeln!(to, "  {kind}: {tally}"))
    }
}
