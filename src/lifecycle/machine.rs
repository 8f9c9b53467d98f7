//! The lifecycle of a generation as a pure state machine. It maps every state and event to the next
//! state and a list of actions.
//!
//! The state machine uses no clock and no I/O, and remembers only its state. So tests can check
//! every combination, and explore all interleavings of several generations (see
//! `machine/exploration.rs`). The matches under [`step`] have no wildcard, so that a new state or
//! event must be considered in every combination. `docs/architecture.md` shows the same transitions
//! as a table.

pub(crate) use crate::handoff::{Commit, OnSuccessorDeath, PendingReload};

/// The state of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The process has started but does not accept connections yet.
    Starting {
        /// How the generation began.
        birth: Birth,
        /// Whether a reload was requested early, so a handoff starts once this generation is
        /// active.
        pending: PendingReload,
    },
    /// The generation accepts connections, but its predecessor may still roll back the handoff.
    Probation {
        /// Whether a reload was requested early, so a handoff starts once this generation is
        /// active.
        pending: PendingReload,
    },
    /// The generation accepts connections and is the active generation.
    Serving,
    /// The generation accepts connections while its successor starts.
    HandingOff {
        /// Whether another reload was requested during this handoff, so another handoff follows.
        pending: PendingReload,
    },
    /// The generation accepts connections, and its successor accepts connections too, on probation.
    Baking {
        /// Whether another reload was requested during this handoff. The commit passes the request
        /// on to the successor.
        pending: PendingReload,
    },
    /// The generation drains its connections, because the successor has taken over.
    Retiring {
        /// Whether this generation accepts again if its successor dies.
        on_death: OnSuccessorDeath,
    },
    /// The generation drains its connections, because the whole service was told to stop.
    Stopping,
    /// The generation has ended, and its process exits.
    Stopped,
}

/// How a generation began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Birth {
    /// The process is the first generation of its lineage, so it has no predecessor.
    First,
    /// The process was started by a predecessor that waits until it is ready.
    Successor,
    /// The predecessor of the process died during the start, so the process takes over as soon as
    /// it is ready.
    Orphan,
}

/// An event in the life of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// All accept loops of this generation run.
    Live,
    /// The predecessor has committed the handoff and retired.
    Committed(Commit),
    /// The predecessor died before it committed the handoff.
    PredecessorLost,
    /// A signal, or an operator over the control socket, has requested a reload.
    ReloadRequested,
    /// This generation must stop: SIGTERM, the first SIGINT, or a stop request of the predecessor
    /// arrived.
    Terminate,
    /// This generation must cut its connections now. SIGQUIT or a second SIGINT arrived, or a newer
    /// generation asked for it, because too many generations live or the whole service is cut.
    CutNow,
    /// The successor has reported that it accepts connections.
    SuccessorReady,
    /// The successor's probation is over without a failure.
    BakeOver,
    /// The successor has died, hangs, or has reported a failure.
    SuccessorLost,
    /// The successor was told to stop while on probation, and rolled back the handoff.
    SuccessorRolledBack,
    /// The service stops as a whole. Either the successor, which has taken over, was told to stop,
    /// or it died and a service manager will restart the service.
    ServiceStopping,
    /// No more connections move from this generation to the successor.
    CarryEnded,
    /// The last connection of this generation has ended.
    Drained,
    /// The drain deadline has passed.
    DrainExpired,
}

/// An action that a generation performs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Tell the predecessor that this generation accepts connections.
    TellReady,
    /// Tell the predecessor that this generation stops, so that the predecessor keeps serving.
    TellRollback,
    /// Become the active generation: write the pid file, and cut the oldest generations if more
    /// than `max_generations` are alive.
    BecomeActive,
    /// Tell the service manager that the service is up. Only the first generation of a lineage does
    /// this.
    NotifyReady,
    /// Start a successor and its deadline. If this would cut connections that are still moving here
    /// from older generations, wait for those connections first.
    StartSuccessor,
    /// Start the successor's probation, at whose end the handoff is committed.
    StartBake,
    /// Commit the handoff: name the successor in the pid file, and tell it that it is now the
    /// active generation.
    Commit(Commit),
    /// Report why the handoff failed, and give up the successor.
    DropSuccessor,
    /// Give up the channel to the successor, which has taken over and now stops with the whole
    /// service.
    ForgetSuccessor,
    /// Close the channels to older generations. The youngest of them accepts again when no process
    /// holds its channel any more.
    ReleaseOlder,
    /// Close the channels to older generations, as in `ReleaseOlder`. If no older generation is
    /// alive, close the listeners for good instead.
    Resign,
    /// Tell the successor to stop, because this generation stops.
    StopSuccessor,
    /// Stop accepting but keep the listening sockets open, because the successor accepts on them.
    StopAccepting,
    /// Stop accepting for good: serve the clients in the backlogs, remove the paths of Unix
    /// sockets, and close the listening sockets.
    CloseListeners,
    /// Tell the older generations and the service manager that the whole service stops.
    TellStopping,
    /// Ask every connection to end, except connections that can move to the successor. Start the
    /// drain deadline.
    Drain,
    /// Ask the connections that have not moved to the successor to end.
    DrainUncarried,
    /// Accept connections again, because the successor has died.
    Resume,
    /// Close the remaining connections without waiting for their end.
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
    /// Returns the state in which a process starts.
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

/// Returns the next state after `event`, and the actions to perform in the returned order.
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
            // This generation has not accepted any connection. It tells the predecessor, which
            // keeps serving.
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
        // Start the handoff only after the predecessor has retired. With two generations on
        // probation, each could keep running after the rollback of the other.
        Event::ReloadRequested => (State::Probation { pending: PendingReload::One }, vec![]),
        // Keep the listening sockets open, because the predecessor still serves on them.
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
        // These are late messages of a successor that is gone, or of older generations. They have
        // no effect.
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
        // Only the active generation sends `ServiceStopping`, and here the successor is not active
        // yet.
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
        // The successor and this generation were both told to stop, before either of them knew
        // about the other's stop. So this generation must tell the older generations.
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
        // These events have no effect here. Only the newest generation handles a reload.
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
        // This generation has rolled back the handoff. But the predecessor was told to stop before
        // it learned of the rollback, so the whole service ends here.
        Event::Committed(Commit { on_death: OnSuccessorDeath::Stay, .. }) => {
            (State::Stopping, vec![TellStopping, CloseListeners])
        }
        // This generation has rolled back the handoff. The predecessor accepts again when it learns
        // of the rollback. If the predecessor has ended, an older generation accepts again.
        Event::Committed(_) | Event::PredecessorLost => (State::Stopping, vec![ReleaseOlder]),
        // These events have no effect. A successor that becomes ready now has already been told to
        // stop.
        Event::SuccessorReady
        | Event::Live
        | Event::ReloadRequested
        | Event::Terminate
        | Event::BakeOver
        | Event::CarryEnded
        | Event::ServiceStopping => (State::Stopping, vec![]),
    }
}

/// Returns the state of a generation that is active from now on. If a reload is pending, a handoff
/// starts at once.
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
