//! The messages on the control socket between an operator and the active generation: one line of
//! JSON each.
//!
//! Unknown fields are ignored, so a later version can add fields. A request of an unknown kind is
//! refused.

use serde::{Deserialize, Serialize};

use crate::generation::Generation;
use crate::report::Status;

/// A request of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Hand off, and report the outcome.
    Reload(ReloadOptions),
    /// Report the status of all generations.
    Status {},
}

/// Options of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadOptions {
    /// Hand off only if this generation is active now.
    #[serde(default)]
    pub expect_generation: Option<Generation>,
    /// Give up and keep the old generation if the new one has not taken over within this time.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Also report when the last connection of the old generation has ended.
    #[serde(default)]
    pub wait_drained: bool,
}

/// A reply of the active generation. A reload gets several replies, the last of which is final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// The status of all generations. Final.
    Status(Box<Status>),
    /// A handoff has begun and ends within `within_ms`.
    Started { successor: Generation, within_ms: u64 },
    /// The successor serves. Final, unless the client waits for the drain, which ends within
    /// `drain_within_ms`.
    Serving {
        generation: Generation,
        pid: Option<u32>,
        after_ms: u64,
        draining: Option<u64>,
        drain_within_ms: u64,
    },
    /// The old generation has no connection left: all have ended or moved to the successor. Final.
    Drained {
        generation: Generation,
        ended: u64,
        /// Absent in replies of older versions, which do not carry connections.
        #[serde(default)]
        carried: u64,
        cut: u64,
    },
    /// The request was refused. Final.
    Refused { why: Refusal, reason: String },
    /// Another generation has become active: ask again. Final.
    Moved {},
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Refusal {
    /// The successor never became ready.
    Failed,
    /// The successor was ready, and the handoff was rolled back.
    RolledBack,
    /// Not possible now, or not within the requested time.
    TryAgain,
    /// This user may not ask, the request is invalid, or the reason comes from a later version.
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
