//! The part of a status report that describes the program of a generation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The counters of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ProgramCounters {
    /// How many processes of the program were started.
    pub starts: u64,
    /// How many starts failed, because the program could not be executed.
    pub failed_starts: u64,
    /// How many processes ended with each exit code.
    pub exits_by_code: BTreeMap<i32, u64>,
    /// How many processes were ended by each signal.
    pub exits_by_signal: BTreeMap<i32, u64>,
}

impl ProgramCounters {
    /// Returns whether all counters are zero. This is the case if the generation runs no program.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts a process that has ended, by its exit code or signal.
    #[cfg(feature = "program")]
    pub(crate) fn ended(&mut self, status: std::process::ExitStatus) {
        use std::os::unix::process::ExitStatusExt;

        let count = match (status.code(), status.signal()) {
            (Some(code), _) => self.exits_by_code.entry(code).or_default(),
            (None, Some(signal)) => self.exits_by_signal.entry(signal).or_default(),
            (None, None) => return,
        };
        *count = count.saturating_add(1);
    }

    /// Adds the counters of another process or generation.
    pub(crate) fn add(&mut self, other: &Self) {
        self.starts = self.starts.saturating_add(other.starts);
        self.failed_starts = self.failed_starts.saturating_add(other.failed_starts);
        let add = |all: &mut BTreeMap<i32, u64>, more: &BTreeMap<i32, u64>| {
            for (key, count) in more {
                let sum = all.entry(*key).or_default();
                *sum = sum.saturating_add(*count);
            }
        };
        add(&mut self.exits_by_code, &other.exits_by_code);
        add(&mut self.exits_by_signal, &other.exits_by_signal);
    }
}

/// One process of the program that a generation runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProgramReport {
    /// The pid of the process. `None` if the process is not running.
    pub pid: Option<u32>,
    /// The state of the process.
    pub state: ProgramState,
    /// How many times this generation has started the process.
    pub starts: u64,
    /// The last status text that the process has sent (see sd_notify(3)).
    #[serde(default)]
    pub status: Option<String>,
}

/// The state of a process of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramState {
    /// The process was started and is not ready yet.
    Starting,
    /// The process is ready and serves clients.
    Ready,
    /// The process was told to stop and has not ended yet.
    Stopping,
    /// The process has ended and is about to be started again.
    Restarting,
    /// The process has ended and will not be started again.
    Failed,
    /// The process was told to stop and has ended.
    Ended,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ProgramState {
    /// Returns the name of this state, as status reports show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}
