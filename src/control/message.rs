//! Is what an operator and the head of a line say to each other: one line of JSON a message.
//!
//! Unknown fields are passed over, so that messages may grow; a request of a kind that is not known
//! is refused.

use serde::{Deserialize, Serialize};

use crate::generation::Generation;
use crate::report::Status;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Hand off, and say how it ended.
    Reload(ReloadOptions),
    /// Say how all generations stand.
    Status {},
}

/// How to reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadOptions {
    /// Only if this generation is the head now.
    #[serde(default)]
    pub expect_generation: Option<Generation>,
    /// Give up, and keep the old generation, if the new one has not taken over by then.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Also say when the old generation's last connection has ended.
    #[serde(default)]
    pub wait_drained: bool,
}

/// What the head answers. A reload has several answers, the last of which is an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// How all generations stand. An end.
    Status(Box<Status>),
    /// A handoff has begun; it will have ended by then.
    Started { successor: Generation, within_ms: u64 },
    /// The successor serves. An end, unless the drain is waited for: that will be over by then.
    Serving {
        generation: Generation,
        pid: Option<u32>,
        after_ms: u64,
        draining: Option<u64>,
        drain_within_ms: u64,
    },
    /// The old generation's last connection has ended, or is the successor's. An end.
    Drained {
        generation: Generation,
        ended: u64,
        /// An older one carries nothing.
        #[serde(default)]
        carried: u64,
        cut: u64,
    },
    /// No. An end.
    Refused { why: Refusal, reason: String },
    /// Another generation is the head by now: ask again. An end.
    Moved {},
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Refusal {
    /// The successor was never ready.
    Failed,
    /// It was ready, and everything was taken back.
    RolledBack,
    /// Not now, or not in that time.
    TryAgain,
    /// Not this user, or not in these words; or for a reason of a later version.
    #[serde(other)]
    Denied,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_documentation_says() {
        let status: Request = serde_json::from_str(r#"{"status":{}}"#).unwrap();
        assert_eq!(status, Request::Status {});
        let reload: Request =
            serde_json::from_str(r#"{"reload":{"wait_drained":true,"novel":1}}"#).unwrap();
        let options = ReloadOptions { wait_drained: true, ..ReloadOptions::default() };
        assert_eq!(reload, Request::Reload(options));
        assert!(serde_json::from_str::<Request>(r#"{"levitate":{}}"#).is_err());
    }

    #[test]
    fn replies_read_back_as_they_were_written() {
        let (generation, successor) = (Generation::FIRST, Generation::FIRST.next());
        for reply in [
            Reply::Started { successor, within_ms: 1 },
            Reply::Serving {
                generation,
                pid: Some(2),
                after_ms: 3,
                draining: None,
                drain_within_ms: 4,
            },
            Reply::Drained { generation, ended: 1, carried: 2, cut: 0 },
            Reply::Refused { why: Refusal::RolledBack, reason: "it\ndied".into() },
            Reply::Moved {},
        ] {
            let line = serde_json::to_string(&reply).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
        }
    }
}
