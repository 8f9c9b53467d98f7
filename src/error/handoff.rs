//! This module defines the reasons why a handoff to a new process fails. The old process reports
//! the failure and keeps serving.

use std::io;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use super::Seconds;
use crate::text::printable;

/// The reason why a successor (the new process) has not taken over. The predecessor (the old
/// process) keeps serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoffFailure {
    /// The predecessor could not fork a new process, or could not create the channel to the
    /// successor.
    #[error("cannot start a process: {source}")]
    Fork {
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// The new process could not execute the program of the successor.
    #[error("cannot execute {}: {source}", printable(program))]
    Exec {
        /// The path from which this process was started. The successor is started from the same
        /// path.
        program: PathBuf,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// The successor has reported that it cannot serve.
    #[error("the new process reported an error: {reason}")]
    Refused {
        /// The reason that the successor has given.
        reason: String,
    },
    /// The successor ended before it was ready, and reported no reason.
    #[error("the new process ended before it was ready{status}")]
    EndedEarly {
        /// The exit code or the signal with which the successor ended, if known.
        status: EndStatus,
    },
    /// The successor was not ready within the time limit, so the predecessor killed it.
    #[error("the new process was not ready within {}", Seconds(*limit))]
    TimedOut {
        /// The time limit, as set by `--ready-timeout`.
        limit: Duration,
    },
    /// The handoff took longer than the operator's request allowed.
    #[error("the handoff did not finish within the requested {}", Seconds(*limit))]
    OutOfTime {
        /// The time limit that the operator has requested.
        limit: Duration,
    },
    /// No successor was started, because the maximum number of generations was already running. An
    /// older generation was still moving connections to this process at the end of the time limit.
    #[error(
        "no new process was started: an older process did not finish moving its connections \
        within {}",
        Seconds(*limit)
    )]
    NotStarted {
        /// The time limit, as set by `--drain-timeout`.
        limit: Duration,
    },
    /// The successor ended after it was ready, and reported no reason.
    #[error("the new process ended after it was ready{status}")]
    EndedLate {
        /// The exit code or the signal with which the successor ended, if known.
        status: EndStatus,
    },
    /// The successor did not answer at the end of its probation, so the predecessor killed it.
    #[error("the new process was ready, but did not answer within {}", Seconds(*limit))]
    Unresponsive {
        /// The time limit for the answer.
        limit: Duration,
    },
    /// The successor received a request to stop while it could still be rolled back.
    #[error("the new process received a stop request before it had taken over")]
    ToldToStop,
    /// The server in the successor has given the handoff back to the predecessor, while this was
    /// still possible.
    #[error("the new process rolled the handoff back: {reason}")]
    GivenBack {
        /// The reason that the successor has given.
        reason: String,
    },
    /// A task that must run in only one generation did not end in time, so this generation keeps
    /// serving.
    #[error(
        "a task that may run in only one process at a time did not end within {}",
        Seconds(*limit)
    )]
    NotYielded {
        /// The time limit, as set by [`Config::alone_timeout`](crate::Config::alone_timeout).
        limit: Duration,
    },
    /// The service manager could not be told that the successor is the main process. Otherwise it
    /// would stop the service when the predecessor ends.
    #[error("cannot tell the service manager the pid of the new process: {source}")]
    NotAnnounced {
        /// The error that the kernel has returned, or the reason why the pid is unknown.
        source: io::Error,
    },
    /// The successor has sent an invalid message.
    #[error("the new process sent an invalid message: {why}")]
    Garbage {
        /// A description of what is wrong with the message.
        why: String,
    },
}

impl HandoffFailure {
    /// Returns the kind of the failure, as it appears in the field `failure` of the log.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Fork { .. } => "fork",
            Self::Exec { .. } => "exec",
            Self::Refused { .. } => "refused",
            Self::EndedEarly { .. } => "ended-early",
            Self::TimedOut { .. } => "timed-out",
            Self::OutOfTime { .. } => "out-of-time",
            Self::NotStarted { .. } => "not-started",
            Self::EndedLate { .. } => "ended-late",
            Self::Unresponsive { .. } => "unresponsive",
            Self::ToldToStop => "told-to-stop",
            Self::GivenBack { .. } => "given-back",
            Self::NotYielded { .. } => "not-yielded",
            Self::NotAnnounced { .. } => "not-announced",
            Self::Garbage { .. } => "invalid-message",
        }
    }

    /// Returns whether the successor itself has rolled the handoff back. If so, the successor
    /// drains its connections and ends.
    pub(crate) const fn is_rollback(&self) -> bool {
        matches!(self, Self::ToldToStop | Self::GivenBack { .. })
    }
}

/// The exit code or the signal with which a process ended, if known. Its text is appended to an
/// error message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndStatus(pub(crate) Option<process::ExitStatus>);

impl std::fmt::Display for EndStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, " ({status})"))
    }
}
