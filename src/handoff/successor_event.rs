//! What can happen to a successor (new process), how far it has come, and how to end it.

use std::time::Duration;

use crate::error::HandoffFailure;

/// An event from the successor that this process must handle.
#[derive(Debug)]
pub(crate) enum SuccessorEvent {
    /// The successor accepts connections. `given_up` lists the listeners that the successor does
    /// not use. `replaced` lists the listeners whose clients will go to a new listener of the
    /// successor. Both contain indexes into the listener set of this process.
    Ready { pid: Option<u32>, given_up: Vec<usize>, replaced: Vec<usize> },
    /// The successor has died or will not take over, for the given reason.
    Lost(HandoffFailure),
    /// The successor needs at least this much more time until it is ready, counted from now.
    NeedsTime(Duration),
    /// The successor reports that the whole service stops. It sends this only after it has taken
    /// over.
    Stopping,
    /// A newer generation reports which listening sockets the service no longer uses. Each number
    /// identifies one socket by its `SO_COOKIE` (see socket(7)).
    GivenUp(Vec<u64>),
    /// A newer generation tells this process to close its remaining connections early, because too
    /// many generations are alive.
    Cut,
    /// The successor asks for the status of this process.
    Asked,
    /// The successor has answered a status request with its status report.
    Reported,
    /// The successor had taken over and has now ended, while the whole service stops. No more
    /// events follow.
    Ended,
}

/// How far the handoff to a successor has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuccessorStage {
    Starting,
    Ready,
    /// The successor has taken over, and the whole service now stops.
    Released,
}

/// Why a successor has not received the message that commits the handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uncommitted {
    /// The successor has ended. [`Successor::next`](super::Successor::next) reports its last
    /// messages and its end.
    Ended,
    /// The successor did not read its messages in time, or the kernel lacked memory all the time.
    Hung,
}

/// How to end a successor that must not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopMode {
    /// Tell the successor to stop. It first drains the connections that it has accepted.
    Stop,
    /// Kill the successor at once.
    Kill,
}
