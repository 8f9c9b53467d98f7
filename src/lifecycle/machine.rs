//! Is the life of a generation as a pure, total function: a state and an event give a state and
//! what is to be done.
//!
//! No clock, no input or output, no memory but the state; so every cell can be tested and all
//! interleavings of several generations explored (`machine/exploration.rs`). Both matches of
//! [`step`] are exhaustive, without a wildcard: a new state or event has to be thought about in
//! every cell. `docs/architecture.md` shows the same as a table.

pub(crate) use crate::handoff::{Commit, OnSuccessorDeath, PendingReload};

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Not accepting yet.
    Starting {
        /// Who served before.
        birth: Birth,
        /// Whether a handoff is to follow.
        pending: PendingReload,
    },
    /// Accepting, beside a predecessor that may still take everything back.
    Probation {
        /// Whether a handoff is to follow.
        pending: PendingReload,
    },
    /// Accepting, as the head of the line.
    Serving,
    /// Accepting, while a successor starts.
    HandingOff {
        /// Whether another handoff is to follow.
        pending: PendingReload,
    },
    /// Accepting, beside a successor that is ready and on probation.
    Baking {
        /// Whether another handoff is to follow: the successor will be told.
        pending: PendingReload,
    },
    /// Draining, because the successor has taken over.
    Retiring {
        /// Whether to accept again should the successor die.
        on_death: OnSuccessorDeath,
    },
    /// Draining, because the line is told to stop.
    Stopping,
    /// Nothing is left to do.
    Stopped,
}

/// How a generation came into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Birth {
    /// Nobody served before it.
    First,
    /// A predecessor waits for it to be ready.
    Successor,
    /// Its predecessor died while it was starting: what was the predecessor's is its own.
    Orphan,
}

/// What happens to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// Its accept loops run.
    Live,
    /// The predecessor has retired.
    Committed(Commit),
    /// The predecessor died before it retired.
    PredecessorLost,
    /// SIGHUP.
    ReloadRequested,
    /// SIGTERM, the first SIGINT, or a predecessor that was told to stop.
    Terminate,
    /// SIGQUIT, the second SIGINT, or a newer generation that finds us too many.
    CutNow,
    /// The successor accepts.
    SuccessorReady,
    /// The successor's probation is over.
    BakeOver,
    /// The successor is dead, hangs, or says that it cannot.
    SuccessorLost,
    /// The successor was told to stop while on probation, and gives everything back.
    SuccessorRolledBack,
    /// The successor has taken over and was told to stop with the whole line; or it died, and a
    /// service manager will start the service anew.
    ServiceStopping,
    /// No more connections go to the successor.
    CarryEnded,
    /// No connection is left.
    Drained,
    /// The drain deadline has passed.
    DrainExpired,
}

/// What a generation is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Tell the predecessor that we accept.
    TellReady,
    /// Tell the predecessor that we stop, and that it serves on.
    TellRollback,
    /// Be the process to signal: write the pid file, and let no more generations live than are
    /// allowed.
    BecomeActive,
    /// Tell the service manager that the service is up. It is told once in a line's life.
    NotifyReady,
    /// Start a successor, and its deadline: as soon as no connection is on its way here that would
    /// be lost for it.
    StartSuccessor,
    /// Start the successor's probation.
    StartBake,
    /// Make the successor the process to signal, and tell it that the line is its own.
    Commit(Commit),
    /// Say why the successor did not take over, and forget it.
    DropSuccessor,
    /// Forget the successor: the line that it has taken over stops.
    ForgetSuccessor,
    /// Let go of the channels to older generations: when nobody else holds them, the youngest of
    /// these accepts again.
    ReleaseOlder,
    /// Let go of them if any lives; if none does, nobody will accept any more: close the listeners
    /// for good.
    Resign,
    /// Tell the successor to stop.
    StopSuccessor,
    /// Stop accepting and keep the listeners: the successor accepts.
    StopAccepting,
    /// Stop accepting for good: serve what waits in the queues of our own sockets, unlink their
    /// paths, close them.
    CloseListeners,
    /// Tell the older generations and the service manager that the line stops.
    TellStopping,
    /// Tell every connection to end, but for those that the successor takes over, and start the
    /// drain deadline.
    Drain,
    /// Tell those to end that it has not taken over.
    DrainUncarried,
    /// Accept again.
    Resume,
    /// Cut the connections that are left.
    Cut,
    /// Report, and end.
    Exit,
}

use Action::{
    BecomeActive, CloseListeners, Cut, Drain, DrainUncarried, DropSuccessor, Exit, ForgetSuccessor,
    NotifyReady, ReleaseOlder, Resign, Resume, StartBake, StartSuccessor, StopAccepting,
    StopSuccessor, TellReady, TellRollback, TellStopping,
};

impl State {
    /// The state of a process that is the first of its line, or was started by a predecessor.
    #[must_use]
    pub(crate) const fn born(birth: Birth) -> Self {
        Self::Starting { birth, pending: PendingReload::None }
    }

    /// Whether connections are accepted in it.
    #[cfg(test)]
    pub(crate) const fn accepts(self) -> bool {
        matches!(
            self,
            Self::Probation { .. } | Self::Serving | Self::HandingOff { .. } | Self::Baking { .. }
        )
    }

    /// Its name, for the log.
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

/// What `event` makes of a generation in `state`, and what it has to do, in this order.
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
            // Nothing was accepted. The predecessor hears it, and serves on.
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
        // Not before the predecessor has retired: two generations on probation could outlive each
        // other's rollback.
        Event::ReloadRequested => (State::Probation { pending: PendingReload::One }, vec![]),
        // The predecessor has never stopped: its listeners are not ours to close.
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
        // Late words of a successor that is gone, and of generations before us.
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
        Event::BakeOver => (State::Retiring { on_death: OnSuccessorDeath::Resume }, commit(OnSuccessorDeath::Resume)),
        Event::SuccessorLost | Event::SuccessorRolledBack => head(pending, vec![DropSuccessor]),
        Event::ReloadRequested => (State::Baking { pending: PendingReload::One }, vec![]),
        Event::Terminate => (State::Retiring { on_death: OnSuccessorDeath::Stay }, stop),
        Event::CutNow => (State::Stopped, [stop, vec![Cut, Exit]].concat()),
        Event::Live
        | Event::Committed(_)
        | Event::PredecessorLost
        | Event::SuccessorReady
        // Only the head of the line says so.
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
        // It and we were told to stop, each before it heard of the other: nobody else tells the
        // older ones.
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
        // The newest generation is the one to ask.
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
        // We have rolled back, and it was told to stop before it heard so: the line ends with us.
        Event::Committed(Commit { on_death: OnSuccessorDeath::Stay, .. }) => {
            (State::Stopping, vec![TellStopping, CloseListeners])
        }
        // We have rolled back. It takes the line back when it hears so; if it has ended, one before
        // it does.
        Event::Committed(_) | Event::PredecessorLost => (State::Stopping, vec![ReleaseOlder]),
        // A successor that is ready all the same has been told to stop.
        Event::SuccessorReady
        | Event::Live
        | Event::ReloadRequested
        | Event::Terminate
        | Event::BakeOver
        | Event::CarryEnded
        | Event::ServiceStopping => (State::Stopping, vec![]),
    }
}

/// The head of the line, which starts a handoff if one was asked for.
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
