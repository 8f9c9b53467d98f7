//! The lifecycle of a generation (one process of the service) as a pure state machine. It maps
//! every state and event to the next state and a list of actions.
//!
//! The state machine uses no clock and no I/O, and remembers only its state. So tests can check
//! every combination of state and event, and every order of the events of several generations (see
//! `machine/exploration.rs`). The functions that [`step`] calls match without wildcards, so a new
//! state or event does not compile until every combination is handled. `docs/architecture.md` shows
//! the same transitions as a table.

mod action;
mod event;
#[cfg(test)]
mod exploration;
#[cfg(test)]
mod tests;

pub(crate) use self::action::Action;
pub(crate) use self::event::{Birth, Event};
pub(crate) use crate::handoff::{Commit, OnSuccessorDeath, PendingReload};

/// The state of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The process has started but does not accept connections yet.
    Starting {
        /// How the generation began.
        birth: Birth,
        /// Whether a reload has been requested. If so, a handoff starts as soon as this generation
        /// is active.
        pending: PendingReload,
    },
    /// The generation accepts connections, but its predecessor may still roll back the handoff.
    Probation {
        /// Whether a reload has been requested. If so, a handoff starts as soon as this generation
        /// is active.
        pending: PendingReload,
    },
    /// The generation accepts connections and is the active generation.
    Serving,
    /// The generation accepts connections while its successor starts.
    HandingOff {
        /// Whether another reload has been requested during this handoff. If so, another handoff
        /// follows this one.
        pending: PendingReload,
    },
    /// Both the generation and its successor accept connections. The successor is on probation: if
    /// it fails, this generation rolls back the handoff.
    Baking {
        /// Whether another reload has been requested during this handoff. The commit message passes
        /// the request on to the successor.
        pending: PendingReload,
    },
    /// The generation accepts no connections and drains the open ones, because the successor has
    /// taken over.
    Retiring {
        /// Whether this generation accepts connections again if its successor dies.
        on_death: OnSuccessorDeath,
    },
    /// The generation accepts no connections and drains the open ones, because it was told to stop.
    Stopping,
    /// The generation has ended, and its process exits.
    Stopped,
}

use Action::{
    BecomeActive, CloseListeners, Cut, Drain, DrainUncarried, DropSuccessor, Exit, ForgetSuccessor,
    LeaveListeners, NotifyReady, ReleaseOlder, Resign, Resume, ServeBacklogs, StartBake,
    StartSuccessor, StopAccepting, StopSuccessor, TellReady, TellRollback, TellStopping,
};

impl State {
    /// Returns the first state of a process.
    #[must_use]
    pub(crate) const fn born(birth: Birth) -> Self {
        Self::Starting { birth, pending: PendingReload::None }
    }

    /// Returns whether a generation in this state accepts connections.
    #[must_use]
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
            Birth::First => active(pending, vec![BecomeActive, NotifyReady]),
            Birth::Successor => (State::Probation { pending }, vec![TellReady]),
            Birth::Orphan => active(pending, vec![BecomeActive]),
        },
        Event::ReloadRequested => (State::Starting { birth, pending: PendingReload::One }, vec![]),
        Event::PredecessorLost => (State::Starting { birth: Birth::Orphan, pending }, vec![]),
        Event::Terminate | Event::CutNow => match birth {
            // Tell the predecessor, which keeps serving, and exit. No drain is needed, because this
            // generation has not accepted any connection. `StopAccepting` removes the paths of the
            // listeners that this generation has bound itself.
            Birth::Successor => (State::Stopped, vec![TellRollback, StopAccepting, Exit]),
            Birth::First | Birth::Orphan => serving(event),
        },
        Event::Committed(_)
        | Event::RollbackConfirmed
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
            active(either(pending, late), vec![BecomeActive])
        }
        Event::PredecessorLost => active(pending, vec![BecomeActive]),
        // Remember the reload request, and start a handoff only after the predecessor has retired.
        // Otherwise this generation could be rolled back while its own successor is on probation.
        Event::ReloadRequested => (State::Probation { pending: PendingReload::One }, vec![]),
        // Keep the listening sockets open until the predecessor has reacted to the rollback. If the
        // predecessor has ended, no other process may hold these sockets. Then this generation must
        // serve the clients that wait on them.
        Event::Terminate => (State::Stopping, vec![TellRollback, StopAccepting, Drain]),
        // Do not exit before the predecessor's last messages are read. If the predecessor was told
        // to stop too, this generation ends the whole service.
        Event::CutNow => (State::Stopping, vec![TellRollback, StopAccepting, Drain, Cut]),
        Event::Live
        | Event::RollbackConfirmed
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
        // Ignore these events, which are caused by late messages from a failed successor or from
        // older generations.
        Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::RollbackConfirmed
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
        Event::SuccessorLost | Event::SuccessorRolledBack => active(pending, vec![DropSuccessor]),
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
        | Event::RollbackConfirmed
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
        Event::SuccessorLost | Event::SuccessorRolledBack => active(pending, vec![DropSuccessor]),
        Event::ReloadRequested => (State::Baking { pending: PendingReload::One }, vec![]),
        Event::Terminate => (State::Retiring { on_death: OnSuccessorDeath::Stay }, stop),
        // Do not exit before the successor's last messages are read. If the successor was told to
        // stop too, this generation ends the whole service.
        Event::CutNow => {
            (State::Retiring { on_death: OnSuccessorDeath::Stay }, [stop, vec![Cut]].concat())
        }
        Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::RollbackConfirmed
        | Event::SuccessorReady
        // Ignore `ServiceStopping`: only an active generation sends it, and the successor is not
        // active yet.
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
        // Tell the older generations that the whole service stops. The successor and this
        // generation were told to stop at the same time, and the successor may end without telling
        // them.
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
        Event::CutNow => (State::Retiring { on_death: OnSuccessorDeath::Stay }, vec![Cut]),
        Event::DrainExpired => (State::Stopped, vec![Cut, Exit]),
        // Ignore these events. Only the newest generation handles a reload request.
        Event::ReloadRequested
        | Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::RollbackConfirmed
        | Event::SuccessorReady
        | Event::BakeOver => (State::Retiring { on_death }, vec![]),
    }
}

fn stopping(event: Event) -> (State, Vec<Action>) {
    match event {
        Event::Drained => (State::Stopped, vec![Exit]),
        Event::CutNow => (State::Stopping, vec![Cut]),
        Event::DrainExpired => (State::Stopped, vec![Cut, Exit]),
        Event::SuccessorLost | Event::SuccessorRolledBack => (State::Stopping, vec![DropSuccessor]),
        // End the whole service. This generation has rolled back the handoff, but its predecessor
        // was also told to stop, before it received the rollback message.
        Event::Committed(Commit { on_death: OnSuccessorDeath::Stay, .. }) => {
            (State::Stopping, vec![TellStopping, CloseListeners])
        }
        // This generation has rolled back the handoff, and the predecessor serves all clients that
        // wait. It may have a connection limit, so do not accept them here.
        Event::RollbackConfirmed => (State::Stopping, vec![LeaveListeners, ReleaseOlder]),
        // This generation has rolled back the handoff, but the predecessor has not confirmed it. If
        // the predecessor has ended, `ReleaseOlder` lets an older generation accept connections
        // again. If none is left, no other process holds the listening sockets, so serve the
        // clients in the backlogs first.
        Event::Committed(_) | Event::PredecessorLost => {
            (State::Stopping, vec![ServeBacklogs, ReleaseOlder])
        }
        // Ignore these events. A successor that becomes ready now has already been told to stop.
        Event::SuccessorReady
        | Event::Live
        | Event::ReloadRequested
        | Event::Terminate
        | Event::BakeOver
        | Event::CarryEnded
        | Event::ServiceStopping => (State::Stopping, vec![]),
    }
}

/// Returns the next state of a generation that is or becomes active, together with `actions`. If a
/// reload request is pending, adds the action that starts a successor.
fn active(pending: PendingReload, mut actions: Vec<Action>) -> (State, Vec<Action>) {
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
