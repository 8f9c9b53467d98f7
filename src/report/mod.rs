//! Status reports. A generation sends them to other generations and to operators to describe its
//! state.
//!
//! A report is sent as JSON, and later versions can add fields. Readers ignore unknown fields, and
//! read an unknown state as [`GenerationState::Unknown`]. All times are whole numbers of
//! milliseconds, which programs in any language can read.

mod counters;
mod forecast;
mod program;
mod summary;

use serde::{Deserialize, Serialize};

use crate::generation::Generation;

pub use counters::{Counters, HandoffCounters, ListenerCounters, UpstreamCounters};
pub(crate) use forecast::CarryForecast;
pub use program::{ProgramCounters, ProgramReport, ProgramState};

/// The status of one generation, as sent to other generations and to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The number of the generation that this report describes.
    pub generation: Generation,
    /// The pid of the generation. `None` if the generation has not reported yet.
    pub pid: Option<u32>,
    /// The program and the configuration of the generation.
    #[serde(flatten)]
    pub identity: Identity,
    /// The state of the generation, such as starting or serving.
    pub state: GenerationState,
    /// When the generation entered this state, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// How long the generation has been in this state, in milliseconds of a monotonic clock. `None`
    /// if the generation does not report it, because it is an older version or does not answer.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// The number, age and traffic of the connections. `None` if they are not known, for example
    /// because a program accepts its connections itself.
    pub connections: Option<Connections>,
    /// The counters of the generation, such as the number of accepted connections.
    #[serde(default)]
    pub counters: Counters,
    /// The time in milliseconds until the drain deadline, when the open connections are cut. `None`
    /// if the generation does not drain.
    pub drain_left_ms: Option<u64>,
    /// The processes of the program that this generation runs. Empty if it runs no program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<ProgramReport>,
}

impl Report {
    /// Creates a report with only a number and a state, for a generation that has not sent a report
    /// yet.
    pub(crate) fn placeholder(generation: Generation, state: GenerationState) -> Self {
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
            programs: Vec::new(),
        }
    }
}

/// The program and the configuration of a generation. An operator can see from them to which
/// deployment the generation belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Identity {
    /// The version of the program. `None` if it is not known.
    pub version: Option<String>,
    /// The build id that the linker put into the program. Two different builds have different build
    /// ids.
    pub build: Option<String>,
    /// A digest of the configuration, which changes when the configuration changes.
    pub configuration: Option<String>,
    /// The control group of the process (see cgroups(7)). It shows to which systemd unit the
    /// process belongs.
    pub control_group: Option<String>,
}

/// The state of a generation during its life, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GenerationState {
    /// The generation does not accept connections yet.
    Starting,
    /// The generation accepts connections, but its predecessor may still roll back the handoff.
    Probation,
    /// The generation is the active one, and no handoff is in progress.
    Serving,
    /// The generation is the active one, and its successor is starting.
    HandingOff,
    /// The generation is the active one. Its successor accepts connections too, but the handoff can
    /// still be rolled back.
    Baking,
    /// The generation drains its connections because a successor has taken over.
    Retiring,
    /// The generation drains its connections because the service was told to stop.
    Stopping,
    /// The generation has ended.
    Stopped,
    /// The generation does not answer, or it is in a state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The number, age and traffic of the connections of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Connections {
    /// How many connections are open.
    pub open: u64,
    /// The age of the oldest open connection in milliseconds. `None` if no connection is open.
    pub oldest_ms: Option<u64>,
    /// How many bytes were transferred in both directions, on open connections and on connections
    /// that have ended.
    pub transferred: u64,
}

/// The status of all generations, as reported by the active generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The generation number of the active generation.
    pub serving: Generation,
    /// All generations that are alive, the newest first.
    pub generations: Vec<Report>,
    /// The listeners of the active generation.
    pub listeners: Vec<ListenerReport>,
    /// The outcome of the last handoff. `None` if no handoff has ended yet.
    pub last_handoff: Option<LastHandoff>,
    /// The configured time limits of the active generation.
    pub settings: Settings,
    /// The sums of the counters of all generations, including generations that have ended.
    #[serde(default)]
    pub counters: Counters,
}

/// The name and the address of one listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerReport {
    /// The name of the listener in the configuration.
    pub name: String,
    /// The address on which the listener listens.
    pub address: String,
    /// Whether a generation of this service bound the socket. `false` if a parent such as systemd
    /// passed the socket.
    pub bound: bool,
}

/// The outcome of the last handoff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastHandoff {
    /// When the handoff ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The number of the generation that was meant to take over.
    pub successor: Generation,
    /// How the handoff ended.
    pub outcome: Outcome,
    /// Why the successor did not take over. `None` if the handoff succeeded.
    pub reason: Option<String>,
}

/// The outcome of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The successor took over and is now the active generation.
    Committed,
    /// The handoff failed because the successor never became ready.
    Failed,
    /// The successor was ready, but the handoff was rolled back.
    RolledBack,
    /// The handoff could not begin in time, or did not finish before the operator stopped waiting.
    TimedOut,
    /// An outcome that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The configured time limits of a handoff and of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Settings {
    /// How long a successor may take to become ready, in milliseconds.
    pub ready_timeout_ms: u64,
    /// How long a successor must accept connections without a failure before the handoff is
    /// committed, in milliseconds.
    pub bake_ms: u64,
    /// How long connections may take to end in a drain before they are cut, in milliseconds.
    pub drain_timeout_ms: u64,
}

impl GenerationState {
    /// Returns the name of the state, as it appears in JSON.
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
        "state":"retiring","since_unix_ms":1,"connections":{"open":2,"oldest_ms":3,"transferred":4},"drain_left_ms":5}"#;

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
        assert_eq!(report.state, GenerationState::Unknown);
    }

    #[test]
    fn a_status_is_printed_on_one_line() {
        let older: Report = serde_json::from_str(REPORT).unwrap();
        let serving = Report {
            generation: older.generation.next(),
            state: GenerationState::Baking,
            connections: Some(Connections { open: 1200, oldest_ms: None, transferred: 0 }),
            drain_left_ms: None,
            ..older.clone()
        };
        let newer = Report {
            generation: serving.generation.next(),
            state: GenerationState::Probation,
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
            "generation 8 serving, connections: 1200; generation 9 on probation; generation 7 \
            draining, connections left: 2, seconds left: 1"
        );
        status.generations.drain(..1);
        status.generations.pop();
        status.generations[0].connections = None;
        let (successor, reason) = (status.serving.next(), Some("it died".to_owned()));
        status.last_handoff =
            Some(LastHandoff { unix_ms: 1, successor, outcome: Outcome::Failed, reason });
        assert_eq!(
            status.to_string(),
            "generation 8 serving; the handoff to generation 9 failed: it died"
        );
    }

    #[test]
    fn every_state_is_printed_as_it_is_serialized() {
        let all = [
            GenerationState::Starting,
            GenerationState::Probation,
            GenerationState::Serving,
            GenerationState::HandingOff,
            GenerationState::Baking,
            GenerationState::Retiring,
            GenerationState::Stopping,
            GenerationState::Stopped,
            GenerationState::Unknown,
        ];
        for standing in all {
            assert_eq!(serde_json::to_string(&standing).unwrap(), format!("{:?}", standing.name()));
        }
    }
}
