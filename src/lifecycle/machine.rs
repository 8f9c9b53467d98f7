//! The lifecycle of a generation as a pure, total state machine: state × event → next state and
//! actions.
//!
//! It uses no clock and no I/O, and has no memory but the state. So tests can check every
//! combination, and explore all interleavings of several generations (`machine/exploration.rs`).
//! The matches under [`step`] are exhaustive, without a wildcard: a new state or event must be
//! considered in every combination. `docs/architecture.md` shows the same as a table.

pub(crate) use crate::handoff::{Commit, OnSuccessorDeath, PendingReload};

/// The state of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Not accepting yet.
    Starting {
        /// How the generation began.
        birth: Birth,
        /// Whether a handoff must follow.
        pending: PendingReload,
    },
    /// Accepting, next to a predecessor that may still roll back the handoff.
    Probation {
        /// Whether a handoff must follow.
        pending: PendingReload,
    },
    /// Accepting, as the active generation.
    Serving,
    /// Accepting, while a successor starts.
    HandingOff {
        /// Whether another handoff must follow.
        pending: PendingReload,
    },
    /// Accepting, next to a successor that is ready and on probation.
    Baking {
        /// Whether another handoff must follow. The commit passes this on to the successor.
        pending: PendingReload,
    },
    /// Draining, because the successor has taken over.
    Retiring {
        /// Whether to accept again if the successor dies.
        on_death: OnSuccessorDeath,
    },
    /// Draining, because the lineage was told to stop.
    Stopping,
    /// The generation has ended.
    Stopped,
}

/// How a generation began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Birth {
    /// The first generation of its lineage.
    First,
    /// A predecessor started it and waits until it is ready.
    Successor,
    /// Its predecessor died while it was starting, so it takes over as soon as it is ready.
    Orphan,
}

/// An event in the life of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The accept loops run.
    Live,
    /// The predecessor has committed the handoff and retired.
    Committed(Commit),
    /// The predecessor died before it retired.
    PredecessorLost,
    /// A signal or an operator requested a reload.
    ReloadRequested,
    /// SIGTERM, the first SIGINT, or a stop request of the predecessor.
    Terminate,
    /// SIGQUIT, the second SIGINT, or a cut by a newer generation: too many generations live, or
    /// the service is cut as a whole.
    CutNow,
    /// The successor accepts.
    SuccessorReady,
    /// The successor's probation is over.
    BakeOver,
    /// The successor is dead, hangs, or has reported a failure.
    SuccessorLost,
    /// The successor was told to stop while on probation, and rolled back the handoff.
    SuccessorRolledBack,
    /// The successor has taken over and stops with the whole lineage. Or it died, and a service
    /// manager will start the service again.
    ServiceStopping,
    /// No more connections are carried to the successor.
    CarryEnded,
    /// No connection is left.
    Drained,
    /// The drain deadline has passed.
    DrainExpired,
}

/// An action that a generation performs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Tell the predecessor that this generation accepts.
    TellReady,
    /// Tell the predecessor that this generation stops, so the predecessor keeps serving.
    TellRollback,
    /// Become the active generation: write the pid file, and cut the oldest generations if more
    /// live than allowed.
    BecomeActive,
    /// Tell the service manager that the service is up. Sent once in the life of a lineage.
    NotifyReady,
    /// Start a successor and its deadline. If the start would cut connections that are being
    /// carried here, wait for them first.
    StartSuccessor,
    /// Start the successor's probation.
    StartBake,
    /// Make the successor the process to signal, and tell it that it is the active generation.
    Commit(Commit),
    /// Report why the successor is lost, and release it.
    DropSuccessor,
    /// Forget the successor, which has taken over and now stops with the lineage.
    ForgetSuccessor,
    /// Close the channels to older generations. When no process holds them any more, the youngest
    /// of these generations accepts again.
    ReleaseOlder,
    /// Close the channels to older generations, as in `ReleaseOlder`. If none lives, close the
    /// listeners for good instead.
    Resign,
    /// Tell the successor to stop.
    StopSuccessor,
    /// Stop accepting but keep the listeners, because the successor accepts.
    StopAccepting,
    /// Stop accepting for good: serve the clients in the backlogs, unlink the paths and close the
    /// sockets.
    CloseListeners,
    /// Tell the older generations and the service manager that the lineage stops.
    TellStopping,
    /// Ask every connection to end, except those that can be carried to the successor. Start the
    /// drain deadline.
    Drain,
    /// Ask the connections that were not carried to end.
    DrainUncarried,
    /// Accept again.
    Resume,
    /// Cut the remaining connections.
    Cut,
    /// Report how the drain ended, and exit.
    Exit,
}

use Action::{
    BecomeActive, CloseListeners, Cut, Drain, DrainUncarried, DropSuccessor, Exit, ForgetSuccessor,
    NotifyReady, ReleaseOlder, Resign, Resume, StartBake, StartSuccessor, StopAccepting,
    StopSuccessor, TellReady, TellRollback, TellStopping,
};

impl State {
    /// Returns the initial state of a process.
    #[must_use]
    pub(crate) const fn born(birth: Birth) -> Self {
        Self::Starting { birth, pending: PendingReload::None }
    }

    /// Returns whether a generation in this state accepts connections.
    #[cfg(test)]
    pub(crate) const fn accepts(self) -> bool {
        matches!(
            self,
            Self::Probation { .. } | Self::Serving | Self::HandingOff { .. } | Self::Baking { .. }
        )
    }

    /// Returns the name of the state, for log records.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Probation { .. } => "probation",
            Self::Serving => "serving",
            Self::HandingOff { .. } => "handing-off",
            Self::Baking { .. } => "baking",
            Self::Retiring { .. } => "retiring",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// Returns the next state, and the actions to perform in this order.
#[must_use]
pub(crate) fn step(state: State, event: Event) -> (State, Vec<Action>) {
    match state {
        State::Starting { birth, pending } => starting(birth, pending, event),
        State::Probation { pending } => probation(pending, event),
        State::Serving => serving(event),
        State::HandingOff { pending } => handing_off(pending, event),
        State::Baking { pending } => baking(pending, event),
        State::Retiring { on_death } => retiring(on_death, event),
        State::Stopping => stopping(event),
        State::Stopped => (State::Stopped, vec![]),
    }
}

fn starting(birth: Birth, pending: PendingReload, event: Event) -> (State, Vec<Action>) {
    match event {
        Event::Live => match birth {
            Birth::First => head(pending, vec![BecomeActive, NotifyReady]),
            Birth::Successor => (State::Probation { pending }, vec![TellReady]),
            Birth::Orphan => head(pending, vec![BecomeActive]),
        },
        Event::ReloadRequested => (State::Starting { birth, pending: PendingReload::One }, vec![]),
        Event::PredecessorLost => (State::Starting { birth: Birth::Orphan, pending }, vec![]),
        Event::Terminate | Event::CutNow => match birth {
            // Nothing was accepted. The predecessor is told, and keeps serving.
            Birth::Successor => (State::Stopped, vec![TellRollback, Exit]),
            Birth::First | Birth::Orphan => serving(event),
        },
        Event::Committed(_)
        | Event::SuccessorReady
        | Event::BakeOver
        | Event::SuccessorLost
        | Event::SuccessorRolledBack
        | Event::ServiceStopping
        | Event::CarryEnded
        | Event::Drained
        | Event::DrainExpired => (State::Starting { birth, pending }, vec![]),
    }
}

fn probation(pending: PendingReload, event: Event) -> (State, Vec<Action>) {
    match event {
        Event::Committed(Commit { pending: late, .. }) => {
            head(either(pending, late), vec![BecomeActive])
        }
        Event::PredecessorLost => head(pending, vec![BecomeActive]),
        // Wait until the predecessor has retired: two generations on probation could outlive each
        // other's rollback.
        Event::ReloadRequested => (State::Probation { pending: PendingReload::One }, vec![]),
        // The predecessor has never stopped serving, so it keeps its listeners.
        Event::Terminate => (State::Stopping, vec![TellRollback, StopAccepting, Drain]),
        Event::CutNow => (State::Stopped, vec![TellRollback, StopAccepting, Drain, Cut, Exit]),
        Event::Live
        | Event::SuccessorReady
        | Event::BakeOver
        | Event::SuccessorLost
        | Event::SuccessorRolledBack
        | Event::ServiceStopping
        | Event::CarryEnded
        | Event::Drained
        | Event::DrainExpired => (State::Probation { pending }, vec![]),
    }
}

fn serving(event: Event) -> (State, Vec<Action>) {
    match event {
        Event::ReloadRequested => {
            (State::HandingOff { pending: PendingReload::None }, vec![StartSuccessor])
        }
        Event::Terminate => (State::Stopping, vec![TellStopping, CloseListeners, Drain]),
        Event::CutNow => (State::Stopped, vec![TellStopping, CloseListeners, Drain, Cut, Exit]),
        // Late messages of a successor that is gone, and of older generations.
        Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::SuccessorReady
        | Event::BakeOver
        | Event::SuccessorLost
        | Event::SuccessorRolledBack
        | Event::ServiceStopping
        | Event::CarryEnded
        | Event::Drained
        | Event::DrainExpired => (State::Serving, vec![]),
    }
}

fn handing_off(pending: PendingReload, event: Event) -> (State, Vec<Action>) {
    match event {
        Event::SuccessorReady => (State::Baking { pending }, vec![StartBake]),
        Event::SuccessorLost | Event::SuccessorRolledBack => head(pending, vec![DropSuccessor]),
        Event::ReloadRequested => (State::HandingOff { pending: PendingReload::One }, vec![]),
        Event::Terminate => {
            (State::Stopping, vec![TellStopping, StopSuccessor, CloseListeners, Drain])
        }
        Event::CutNow => {
            (State::Stopped, vec![TellStopping, StopSuccessor, CloseListeners, Drain, Cut, Exit])
        }
        Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::BakeOver
        | Event::ServiceStopping
        | Event::CarryEnded
        | Event::Drained
        | Event::DrainExpired => (State::HandingOff { pending }, vec![]),
    }
}

fn baking(pending: PendingReload, event: Event) -> (State, Vec<Action>) {
    let commit =
        |on_death| vec![Action::Commit(Commit { pending, on_death }), StopAccepting, Drain];
    let stop = commit(OnSuccessorDeath::Stay);
    match event {
        Event::BakeOver => {
            let on_death = OnSuccessorDeath::Resume;
            (State::Retiring { on_death }, commit(on_death))
        }
        Event::SuccessorLost | Event::SuccessorRolledBack => head(pending, vec![DropSuccessor]),
        Event::ReloadRequested => (State::Baking { pending: PendingReload::One }, vec![]),
        Event::Terminate => (State::Retiring { on_death: OnSuccessorDeath::Stay }, stop),
        Event::CutNow => (State::Stopped, [stop, vec![Cut, Exit]].concat()),
        Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::SuccessorReady
        // Only the active generation sends this.
        | Event::ServiceStopping
        | Event::CarryEnded
        | Event::Drained
        | Event::DrainExpired => (State::Baking { pending }, vec![]),
    }
}

fn retiring(on_death: OnSuccessorDeath, event: Event) -> (State, Vec<Action>) {
    match event {
        Event::SuccessorLost | Event::SuccessorRolledBack
            if on_death == OnSuccessorDeath::Resume =>
        {
            (State::Serving, vec![DropSuccessor, Resume, BecomeActive])
        }
        Event::SuccessorLost => (State::Retiring { on_death }, vec![Resign, DropSuccessor]),
        // The successor and this generation were both told to stop before either learned of the
        // other. So this generation must tell the older ones.
        Event::SuccessorRolledBack => {
            (State::Retiring { on_death }, vec![TellStopping, CloseListeners, DropSuccessor])
        }
        Event::ServiceStopping => (
            State::Retiring { on_death: OnSuccessorDeath::Stay },
            vec![CloseListeners, ForgetSuccessor],
        ),
        Event::Terminate => (State::Retiring { on_death: OnSuccessorDeath::Stay }, vec![]),
        Event::CarryEnded => (State::Retiring { on_death }, vec![DrainUncarried]),
        Event::Drained => (State::Stopped, vec![Exit]),
        Event::DrainExpired | Event::CutNow => (State::Stopped, vec![Cut, Exit]),
        // Only the newest generation handles a reload.
        Event::ReloadRequested
        | Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::SuccessorReady
        | Event::BakeOver => (State::Retiring { on_death }, vec![]),
    }
}

fn stopping(event: Event) -> (State, Vec<Action>) {
    match event {
        Event::Drained => (State::Stopped, vec![Exit]),
        Event::DrainExpired | Event::CutNow => (State::Stopped, vec![Cut, Exit]),
        Event::SuccessorLost | Event::SuccessorRolledBack => (State::Stopping, vec![DropSuccessor]),
        // This generation has rolled back, but the predecessor was told to stop before it learned
        // of that. The lineage ends with this generation.
        Event::Committed(Commit { on_death: OnSuccessorDeath::Stay, .. }) => {
            (State::Stopping, vec![TellStopping, CloseListeners])
        }
        // This generation has rolled back. The predecessor accepts again when it learns of that. If
        // it has ended, an older generation accepts again.
        Event::Committed(_) | Event::PredecessorLost => (State::Stopping, vec![ReleaseOlder]),
        // A successor that becomes ready now has already been told to stop.
        Event::SuccessorReady
        | Event::Live
        | Event::ReloadRequested
        | Event::Terminate
        | Event::BakeOver
        | Event::CarryEnded
        | Event::ServiceStopping => (State::Stopping, vec![]),
    }
}

/// Returns the state of the active generation. If a reload is pending, a handoff starts.
fn head(pending: PendingReload, mut actions: Vec<Action>) -> (State, Vec<Action>) {
    match pending {
        PendingReload::None => (State::Serving, actions),
        PendingReload::One => {
            actions.push(StartSuccessor);
            (State::HandingOff { pending: PendingReload::None }, actions)
        }
    }
}

const fn either(one: PendingReload, other: PendingReload) -> PendingReload {
    match (one, other) {
        (PendingReload::None, PendingReload::None) => PendingReload::None,
        (PendingReload::One, _) | (_, PendingReload::One) => PendingReload::One,
    }
}

#[cfg(test)]
mod exploration;
#[cfg(test)]
mod tests;
