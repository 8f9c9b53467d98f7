//! The events in the life of a generation (one process of the service), from its start on.

use crate::handoff::Commit;

/// How a generation began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Birth {
    /// The process is the first generation of the service, so it has no predecessor.
    First,
    /// The predecessor started the process, and waits until the process is ready.
    Successor,
    /// The predecessor died while the process was starting. The process becomes the active
    /// generation as soon as it is ready.
    Orphan,
}

/// An event in the life of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// All accept loops of this generation are running.
    Live,
    /// The predecessor has committed the handoff, so this generation is the active one.
    Committed(Commit),
    /// The predecessor died before it committed the handoff.
    PredecessorLost,
    /// The predecessor has received the rollback of this generation, and serves on.
    RollbackConfirmed,
    /// A signal, or an operator over the control socket, has requested a reload.
    ReloadRequested,
    /// This generation must stop, because it received SIGTERM, the first SIGINT, or a stop request
    /// from the predecessor.
    Terminate,
    /// This generation must cut its connections now. It received SIGQUIT, a second SIGINT, or a
    /// request from a newer generation. A newer generation sends this request if too many
    /// generations are alive, or if it cuts its own connections.
    CutNow,
    /// The successor has reported that it accepts connections.
    SuccessorReady,
    /// The test period of the successor (probation) has ended without a failure.
    BakeOver,
    /// The successor has died, has reported a failure, or does not respond.
    SuccessorLost,
    /// The successor was told to stop before the handoff was committed, and rolled it back.
    SuccessorRolledBack,
    /// The whole service stops. The successor has taken over and was told to stop, or it has died
    /// and a service manager restarts the service.
    ServiceStopping,
    /// No more connections will move from this generation to the successor.
    CarryEnded,
    /// The last connection of this generation has ended.
    Drained,
    /// The drain deadline has passed.
    DrainExpired,
}
