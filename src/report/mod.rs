//! Says how a generation stands, and a whole line: what generations tell each other, and an
//! operator.
//!
//! Plain values with a form in JSON that may grow: readers pass over fields that they do not know,
//! and a state of a later version reads as [`Standing::Unknown`]. Times are milliseconds, for every
//! program can compute with those.

mod counters;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::generation::Generation;

pub use counters::{Counters, HandoffCounters, ListenerCounters, UpstreamCounters};

/// How one generation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its ordinal.
    pub generation: Generation,
    /// Its process; none when it has not said so yet.
    pub pid: Option<u32>,
    /// Which program it runs, and how it is configured.
    #[serde(flatten)]
    pub identity: Identity,
    /// What it is doing.
    pub state: Standing,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// For how long, by a clock that nobody sets; none when an older version has not said so.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// Its connections; none when whoever serves them counts them itself.
    pub connections: Option<Connections>,
    /// What it has done so far.
    #[serde(default)]
    pub counters: Counters,
    /// How long its connections have left, if they are being drained.
    pub drain_left_ms: Option<u64>,
}

impl Report {
    /// Of a generation that has not said anything yet: what others know of it.
    pub(crate) fn unheard(generation: Generation, state: Standing) -> Self {
        Self {
            generation,
            pid: None,
            identity: Identity::default(),
            state,
            since_unix_ms: 0,
            for_ms: None,
            connections: None,
            counters: Counters::default(),
            drain_left_ms: None,
        }
    }
}

/// Which program a generation runs, and how it is configured: what a deploy has to tell apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The program's version.
    pub version: Option<String>,
    /// The linker's build id, which two builds never share.
    pub build: Option<String>,
    /// A digest of the configuration.
    pub configuration: Option<String>,
    /// The control group of the process, by which systemd knows its unit.
    pub control_group: Option<String>,
}

/// What a generation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It does not accept yet.
    Starting,
    /// It accepts, and may still be rolled back.
    Probation,
    /// It is the head of the line.
    Serving,
    /// It is the head, and a successor starts.
    HandingOff,
    /// It is the head, and a successor is on probation.
    Baking,
    /// It drains, for a successor has taken over.
    Retiring,
    /// It drains, for the service is told to stop.
    Stopping,
    /// It has ended.
    Stopped,
    /// It does not answer, or in words of a later version.
    #[serde(other)]
    Unknown,
}

/// The connections of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// How many are open.
    pub open: u64,
    /// The age of the oldest.
    pub oldest_ms: Option<u64>,
    /// Bytes that all of them have carried, both ways, those that have ended included.
    pub carried: u64,
}

/// How a whole line stands, by the word of its head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The head.
    pub serving: Generation,
    /// Every living generation, the newest first.
    pub generations: Vec<Report>,
    /// What is listened on.
    pub listeners: Vec<ListenerReport>,
    /// The last handoff that has ended, if there was one.
    pub last_handoff: Option<LastHandoff>,
    /// The head's deadlines.
    pub settings: Settings,
    /// What the line has done, those that have ended included.
    #[serde(default)]
    pub counters: Counters,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerReport {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Whether the line bound it, rather than a parent.
    pub bound: bool,
}

/// How a handoff ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastHandoff {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The generation that was to take over.
    pub successor: Generation,
    /// What came of it.
    pub outcome: Outcome,
    /// Why it did not take over.
    pub reason: Option<String>,
}

/// What came of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The successor serves.
    Committed,
    /// It was never ready.
    Failed,
    /// It was ready, and everything was taken back.
    RolledBack,
    /// Whoever asked for it wanted to wait no longer.
    TimedOut,
    /// A word of a later version.
    #[serde(other)]
    Unknown,
}

/// The deadlines that bound a handoff and a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How long a successor may take to be ready.
    pub ready_timeout_ms: u64,
    /// How long it is on probation.
    pub bake_ms: u64,
    /// How long connections get to end.
    pub drain_timeout_ms: u64,
}

/// One line for people: `generation 7 serving 1200; 6 draining, 14 left, 21 s`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "generation ";
        let head = self.generations.iter().filter(|report| report.generation == self.serving);
        let others = self.generations.iter().filter(|report| report.generation != self.serving);
        for report in head.chain(others) {
            write!(f, "{between}{report}")?;
            between = "; ";
        }
        match &self.last_handoff {
            Some(LastHandoff { successor, reason: Some(reason), .. }) => {
                write!(f, "; the handoff to {successor} failed: {reason}")
            }
            _ => Ok(()),
        }
    }
}

/// A part of that line: `7 serving 1200`, `6 draining, 14 left, 21 s`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, drains) = match self.state {
            Standing::Starting => ("starting", false),
            Standing::Probation => ("on probation", false),
            Standing::Serving | Standing::HandingOff | Standing::Baking => ("serving", false),
            Standing::Retiring => ("draining", true),
            Standing::Stopping => ("stopping", true),
            Standing::Stopped => ("stopped", false),
            Standing::Unknown => ("silent", false),
        };
        write!(f, "{} {verb}", self.generation)?;
        match self.connections {
            Some(connections) if drains => write!(f, ", {} left", connections.open)?,
            Some(connections) if verb == "serving" => write!(f, " {}", connections.open)?,
            _ => {}
        }
        match self.drain_left_ms {
            Some(left) if drains => write!(f, ", {} s", left.div_ceil(1000)),
            _ => Ok(()),
        }
    }
}

impl Standing {
    /// Its name, as in the JSON form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Probation => "probation",
            Self::Serving => "serving",
            Self::HandingOff => "handing-off",
            Self::Baking => "baking",
            Self::Retiring => "retiring",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"generation":7,"pid":42,"version":"1.2.3","build":null,"configuration":"c0ffee",
        "state":"retiring","since_unix_ms":1,"connections":{"open":2,"oldest_ms":3,"carried":4},"drain_left_ms":5}"#;

    #[test]
    fn a_report_reads_back_as_it_was_written() {
        let report: Report = serde_json::from_str(REPORT).unwrap();
        assert_eq!(report.generation.get(), 7);
        assert_eq!(report.identity.version.as_deref(), Some("1.2.3"));
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn a_report_may_grow_and_a_state_may_be_new() {
        let newer = REPORT.replace("\"retiring\"", "\"levitating\",\"novel\":{\"a\":[1]}");
        let report: Report = serde_json::from_str(&newer).unwrap();
        assert_eq!(report.state, Standing::Unknown);
    }

    #[test]
    fn a_line_stands_in_one_line() {
        let older: Report = serde_json::from_str(REPORT).unwrap();
        let serving = Report {
            generation: older.generation.next(),
            state: Standing::Baking,
            connections: Some(Connections { open: 1200, oldest_ms: None, carried: 0 }),
            drain_left_ms: None,
            ..older.clone()
        };
        let newer = Report {
            generation: serving.generation.next(),
            state: Standing::Probation,
            ..serving.clone()
        };
        let mut status = Status {
            serving: serving.generation,
            generations: vec![newer, serving, older],
            listeners: vec![],
            last_handoff: None,
            settings: Settings { ready_timeout_ms: 1, bake_ms: 1, drain_timeout_ms: 1 },
            counters: Counters::default(),
        };
        assert_eq!(
            status.to_string(),
            "generation 8 serving 1200; 9 on probation; 7 draining, 2 left, 1 s"
        );
        status.generations.drain(..1);
        status.generations.pop();
        status.generations[0].connections = None;
        let (successor, reason) = (status.serving.next(), Some("it died".to_owned()));
        status.last_handoff =
            Some(LastHandoff { unix_ms: 1, successor, outcome: Outcome::Failed, reason });
        assert_eq!(status.to_string(), "generation 8 serving; the handoff to 9 failed: it died");
    }

    #[test]
    fn every_standing_is_named_as_it_is_written() {
        let all = [
            Standing::Starting,
            Standing::Probation,
            Standing::Serving,
            Standing::HandingOff,
            Standing::Baking,
            Standing::Retiring,
            Standing::Stopping,
            Standing::Stopped,
            Standing::Unknown,
        ];
        for standing in all {
            assert_eq!(serde_json::to_string(&standing).unwrap(), format!("{:?}", standing.name()));
        }
    }
}
