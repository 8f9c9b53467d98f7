//! The error returned when an operator's request to the daemon fails.

use std::io;
use std::path::PathBuf;

use crate::error::ExitStatus;
use crate::text::printable;

/// The reason why a request over the control socket failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No daemon answers on the control socket, or the control socket does not exist.
    #[error("no daemon answers on the control socket {}: {source}", printable(path))]
    NobodyAnswers {
        /// The path of the control socket.
        path: PathBuf,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// The reload failed because the new generation did not become ready, or because the old
    /// generation has died. Unless it has died, the old generation keeps serving.
    #[error("the new generation did not take over: {reason}")]
    HandoffFailed {
        /// The reason why the new generation did not take over.
        reason: String,
    },
    /// The reload failed after the new generation had become ready. The old generation rolled the
    /// handoff back and keeps serving.
    #[error("the new generation was rolled back: {reason}")]
    RolledBack {
        /// The reason why the new generation was rolled back.
        reason: String,
    },
    /// The daemon cannot carry out the request now, or did not finish it within the given time.
    #[error("temporary failure, try again: {reason}")]
    TryAgain {
        /// Why the daemon cannot carry out the request now.
        reason: String,
    },
    /// The daemon refuses this request or this user.
    #[error("the request to the daemon failed: {reason}")]
    Denied {
        /// The reason for the refusal.
        reason: String,
    },
    /// A process listens on the control socket, but does not answer as the daemon would.
    #[error("no daemon answers: {reason}")]
    InvalidAnswer {
        /// What is wrong with the answer.
        reason: String,
    },
}

impl ControlError {
    /// Returns the exit code of a command that fails because of this error.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        match self {
            Self::NobodyAnswers { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ExitStatus::Denied
            }
            Self::NobodyAnswers { .. } | Self::InvalidAnswer { .. } => ExitStatus::Unavailable,
            Self::HandoffFailed { .. } => ExitStatus::HandoffFailed,
            Self::RolledBack { .. } => ExitStatus::RolledBack,
            Self::TryAgain { .. } => ExitStatus::TryAgain,
            Self::Denied { .. } => ExitStatus::Denied,
        }
    }
}
