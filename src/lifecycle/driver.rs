//! The event loop of a generation. It waits for events, passes each event to the state machine in
//! `machine`, and performs the actions that the state machine returns.
//!
//! One task owns all state, so the driver needs no locks. [`Handoff`] holds the state that exists
//! only during a handoff, and [`DrainPhase`] the state of a drain. Dropping one of these values
//! also removes its deadlines.

use std::collections::VecDeque;

use super::active_role::ActiveRole;
use super::drain::DrainPhase;
use super::handoff::Handoff;
use super::life::ServerLink;
use super::machine::{Birth, Event, State, step};
use super::messages::History;
use super::pid_file::PidFile;
use super::process::Process;
use super::signals::{Signals, log_reload_without_effect};
use super::startup::Liveness;
use super::status::Operators;
use crate::config::Config;
use crate::data_plane::DataPlane;
use crate::drain::DrainReport;
use crate::error::{Error, HandoffFailure};
use crate::handoff::{Inheritance, ManagerNumbers, Message, Predecessors, Successor};
use crate::net::ListenerSet;
use crate::notify::{MainProcess, Notifier};

/// The result of a generation that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReport {
    /// The result of the last drain: how many connections ended, moved to the successor, or were
    /// cut.
    pub drain: DrainReport,
}

/// A running generation: its state, its listeners, and its channels to other generations.
#[derive(Debug)]
pub(super) struct Driver<P> {
    pub(super) state: State,
    /// Events that have occurred and are not handled yet. The driver handles them before it waits
    /// for signals, messages and all other events.
    pub(super) raised: VecDeque<Occurrence>,
    pub(super) config: Config,
    pub(super) process: Process,
    pub(super) listeners: OwnListeners,
    pub(super) plane: P,
    pub(super) liveness: Liveness,
    /// The channel to the server's [`Life`](super::life::Life) handles. For example, it tells the
    /// server when to stop accepting.
    pub(super) life: ServerLink,
    /// The duties of the active generation. `None` if another generation is active.
    pub(super) active: Option<ActiveRole>,
    pub(super) pid_file: Option<PidFile>,
    pub(super) predecessors: Predecessors,
    /// The latest handoff that this generation has started. `None` before the first handoff, and
    /// after a failed handoff.
    pub(super) handoff: Option<Handoff>,
    /// The deadlines of the drain. `None` when this generation does not drain.
    pub(super) drain: Option<DrainPhase>,
    pub(super) history: History,
    pub(super) operators: Operators,
}

/// The listeners of a generation, and which of them to close when it stops accepting.
#[derive(Debug)]
pub(super) struct OwnListeners {
    pub(super) set: ListenerSet,
    /// Indexes of the listeners to close when this generation stops accepting, because no other
    /// generation accepts on them. After a commit, these are the listeners that the successor does
    /// not use. After a rollback, these are the listeners that this generation bound itself.
    pub(super) given_up: Vec<usize>,
    /// Whether to remove the control socket's path when this process ends.
    pub(super) control_ends: bool,
}

/// An event for the state machine. If the event is the loss of a successor, `failure` is the
/// reason.
#[derive(Debug)]
pub(super) struct Occurrence {
    pub(super) event: Event,
    pub(super) failure: Option<HandoffFailure>,
}

impl From<Event> for Occurrence {
    fn from(event: Event) -> Self {
        Self { event, failure: None }
    }
}

impl From<HandoffFailure> for Occurrence {
    fn from(failure: HandoffFailure) -> Self {
        let has_rolled_back = failure.is_rollback();
        let event = if has_rolled_back { Event::SuccessorRolledBack } else { Event::SuccessorLost };
        Self { event, failure: Some(failure) }
    }
}

impl<P: DataPlane> Driver<P> {
    /// Installs the signal handlers, and adopts or binds the listeners. This function does not
    /// start to accept.
    pub(super) fn start(
        config: Config,
        inheritance: Inheritance,
        mut plane: P,
        life: ServerLink,
    ) -> Result<Self, Error> {
        life.configure(&config);
        let Inheritance {
            generation,
            sockets,
            predecessors,
            program,
            slot,
            init,
            forecast,
            signal_use,
            ..
        } = inheritance;
        plane.expect_carried(forecast);
        let predecessors = Predecessors::connect(predecessors, generation)
            .map_err(Error::system("watch the old process"))?;
        let main_process = match program.manager_numbers() {
            ManagerNumbers::Ours if init.is_none() => MainProcess::ActiveGeneration,
            ManagerNumbers::Ours | ManagerNumbers::Foreign => MainProcess::First,
        };
        let prepare = || -> Result<_, Error> {
            let signals = Signals::of_process(signal_use)?;
            let notifier = Notifier::new(program.notify_socket(), main_process)?;
            let pid_file = PidFile::new(&config)?;
            let listeners =
                ListenerSet::assemble(&config.listeners, config.control.as_deref(), sockets)?;
            Ok((signals, notifier, pid_file, listeners))
        };
        let (signals, notifier, pid_file, listeners) = prepare().inspect_err(|error| {
            predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
        })?;
        let birth = if predecessors.has_predecessor() { Birth::Successor } else { Birth::First };
        Ok(Self {
            state: State::born(birth),
            raised: VecDeque::new(),
            config,
            process: Process { generation, program, slot, init, notifier, signals },
            listeners: OwnListeners { set: listeners, given_up: Vec::new(), control_ends: false },
            plane,
            liveness: Liveness::default(),
            life,
            active: None,
            pid_file,
            predecessors,
            handoff: None,
            drain: None,
            history: History::new(),
            operators: Operators::new(),
        })
    }

    /// Starts the accept loops. [`Driver::run`] then waits until every accept loop has run, and
    /// reports readiness only after that.
    pub(super) fn live(mut self) -> Result<Self, Error> {
        if let Err(error) = self.plane.start(self.listeners.set.as_slice()) {
            self.refuse(&error);
            return Err(error);
        }
        let is_successor = self.predecessors.has_predecessor();
        let birth = if is_successor { Birth::Successor } else { Birth::First };
        self.liveness.begin(self.start_limit(), birth);
        Ok(self)
    }

    /// Tells the predecessor, if one exists, why this generation cannot start. Also removes the
    /// paths of the Unix sockets that this generation has bound itself. Call this function only
    /// before this generation becomes active. Until then, no other process holds these sockets.
    pub(super) fn refuse(&self, error: &Error) {
        self.listeners.set.unlink_bound_here();
        self.predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
    }

    /// Returns the listeners that this generation has adopted or bound.
    pub(super) const fn listeners(&self) -> &ListenerSet {
        &self.listeners.set
    }

    /// Returns the successor of the latest handoff, or `None` if no successor exists.
    pub(super) fn successor(&self) -> Option<&Successor> {
        self.handoff.as_ref().and_then(|handoff| handoff.successor.as_ref())
    }

    /// Handles events until the generation ends, and returns how its connections ended.
    pub(super) async fn run(mut self) -> Result<RunReport, Error> {
        let lived = self.live_on().await;
        let lived = self.await_alone_tasks(lived).await;
        let drain = self.plane.report();
        // Send the pending replies on the control socket before this process ends.
        self.operators.control.finish().await;
        match (lived, self.liveness.take_death()) {
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => Ok(RunReport { drain }),
        }
    }

    async fn live_on(&mut self) -> Result<(), Error> {
        while self.state != State::Stopped {
            let Occurrence { event, mut failure } = self.next_occurrence().await?;
            let before = self.state;
            let (state, actions) = step(self.state, event);
            if state.name() != before.name() {
                self.history.state_changed();
            }
            self.state = state;
            tracing::debug!(
                event = "generation.step", input = ?event, from = before.name(),
                to = state.name(), ?actions,
                "handled the lifecycle event {event:?}"
            );
            if event == Event::ReloadRequested && actions.is_empty() {
                log_reload_without_effect(state);
            }
            for action in actions {
                self.perform(action, &mut failure).await?;
            }
        }
        Ok(())
    }
}
