//! The messages on the control socket between an operator and the active generation. Each message
//! is one line of JSON.
//!
//! Unknown fields are ignored, so a later version can add fields. A request of an unknown kind is
//! refused.

use serde::{Deserialize, Serialize};

use crate::generation::Generation;
use crate::report::Status;

/// A request from an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// A request for a reload: start a new generation, hand over to it, and report the outcome.
    Reload(ReloadOptions),
    /// A request for the status of all generations.
    Status {},
}

/// The options of a reload request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReloadOptions {
    /// The generation that the client believes to be active. If another generation is active, the
    /// daemon refuses the reload.
    #[serde(default)]
    pub expect_generation: Option<Generation>,
    /// The time limit of the handoff. If the new generation has not taken over by then, the old
    /// generation keeps serving.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Whether the daemon also sends a reply when the old generation's last connection has ended.
    #[serde(default)]
    pub wait_drained: bool,
}

/// A reply from the active generation. A reload gets several replies, and the last of them is
/// final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// The status of all generations. This reply is final.
    Status(Box<Status>),
    /// The handoff has begun and will end within `within_ms`.
    Started {
        successor: Generation,
        within_ms: u64,
        /// Whether a service manager restarts the whole service if the active generation dies. Then
        /// the reload has failed. The successor may begin to serve, but the service manager ends it
        /// too.
        #[serde(default)]
        is_watched: bool,
    },
    /// The successor serves, and the old generation drains: it keeps its connections for at most
    /// `drain_within_ms`. This reply is final, unless the client asked to wait for the end of the
    /// drain.
    Serving {
        generation: Generation,
        pid: Option<u32>,
        after_ms: u64,
        draining: Option<u64>,
        drain_within_ms: u64,
    },
    /// The old generation has no connections left, because each has ended, moved to the successor,
    /// or been cut. This reply is final.
    Drained {
        generation: Generation,
        ended: u64,
        /// The number of connections that moved to the successor. Older versions, which cannot move
        /// connections, do not send this field.
        #[serde(default)]
        carried: u64,
        cut: u64,
    },
    /// The daemon refuses the request. This reply is final.
    Refused { why: Refusal, reason: String },
    /// Another generation has become active, so the client must send its request again. This reply
    /// is final.
    Moved {},
}

/// Why the daemon refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Refusal {
    /// The handoff failed because the successor never became ready.
    Failed,
    /// The successor was ready, but the handoff was rolled back.
    RolledBack,
    /// The daemon cannot handle the request now, or not within the requested time.
    TryAgain,
    /// The user has no permission, or the request is invalid. The client also decodes every reason
    /// that it does not know as this value.
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
            Reply::Started { successor, within_ms: 1, is_watched: true },
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
