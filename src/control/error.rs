//! Why an operator's request to a daemon has failed.

use std::io;
use std::path::PathBuf;

use crate::error::ExitStatus;
use crate::text::printable;

/// The reason why a request over the control socket has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No daemon answers on the control socket, or the control socket does not exist.
    #[error("no daemon answers on {}: {source}", printable(path))]
    NobodyAnswers {
        /// The path of the control socket.
        path: PathBuf,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// A reload has failed, because the new generation did not become ready. The old generation
    /// keeps serving.
    #[error("the new generation did not take over: {reason}")]
    HandoffFailed {
        /// The reason why the new generation did not become ready.
        reason: String,
    },
    /// A reload has failed after the new generation had become ready. The old generation has rolled
    /// it back and keeps serving.
    #[error("the new generation was rolled back: {reason}")]
    RolledBack {
        /// The reason why the new generation was rolled back.
        reason: String,
    },
    /// The daemon cannot carry out the request now, or did not finish it within the given time.
    #[error("try again: {reason}")]
    TryAgain {
        /// The reason why the operator must try the request again later.
        reason: String,
    },
    /// The daemon refuses this request, or refuses all requests of this user.
    #[error("refused: {reason}")]
    Denied {
        /// The reason for the refusal.
        reason: String,
    },
}

impl ControlError {
    /// Returns the exit code of a command that fails because of this error.
    #[must_use]
    pub const fn exit(&self) -> ExitStatus {
        match self {
            Self::NobodyAnswers { .. } => ExitStatus::Unavailable,
            Self::HandoffFailed { .. } => ExitStatus::HandoffFailed,
            Self::RolledBack { .. } => ExitStatus::RolledBack,
            Self::TryAgain { .. } => ExitStatus::TryAgain,
            Self::Denied { .. } => ExitStatus::Denied,
        }
    }
}
