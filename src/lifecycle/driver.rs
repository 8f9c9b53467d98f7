//! Lives the life that `machine` decides: waits for events, performs actions.
//!
//! One task owns everything, so nothing is locked. What an event means is decided in `machine`, never here; what is
//! decided here is only how a thing is done. Every wait has a deadline in [`Deadlines`], except for what may rightly
//! never come: signals, a neighbour's death, and the word of a predecessor that has been stopped in the bake.

use std::collections::VecDeque;
use std::time::Duration;

use super::deadlines::{Deadlines, at, deadline};
use super::machine::{Action, Birth, Event, State, step};
use super::pid_file::PidFile;
use super::plane::Plane;
use super::signals::{Signals, answer_hangup};
use crate::config::Config;
use crate::drain::DrainReport;
use crate::error::{Error, HandoffFailure};
use crate::generation::Generation;
use crate::handoff::{
    Bequest, Fate, Inheritance, LowSlot, Message, PredecessorEvent, Predecessors, Program, Successor, SuccessorEvent,
};
use crate::net::{Listener, ListenerSet};
use crate::notify::Notifier;

/// How long a cut connection may take to be gone: its task has only to be dropped.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How its last connections ended.
    pub drain: DrainReport,
}

/// A generation, alive.
#[derive(Debug)]
pub(super) struct Driver<P> {
    state: State,
    /// Events that an action gave rise to, ahead of all that come from outside.
    pending: VecDeque<Event>,
    config: Config,
    generation: Generation,
    program: Program,
    slot: LowSlot,
    listeners: ListenerSet,
    plane: P,
    signals: Signals,
    notifier: Notifier,
    pid_file: Option<PidFile>,
    predecessors: Predecessors,
    successor: Option<Successor>,
    /// Places in `listeners` where nobody will accept after us: the successor has given them up, or we are rolled back
    /// and the predecessor never had them.
    given_up: Vec<usize>,
    /// Why the successor was lost, until that is reported.
    failure: Option<HandoffFailure>,
    deadlines: Deadlines,
}

impl<P: Plane> Driver<P> {
    /// Installs the signal handlers and adopts or binds the listeners. Nothing is accepted yet.
    pub(super) fn start(config: Config, inheritance: Inheritance, plane: P) -> Result<Self, Error> {
        let signals = Signals::install().map_err(Error::system("install signal handlers"))?;
        let Inheritance { generation, sockets, predecessors, program, slot, .. } = inheritance;
        let predecessors =
            Predecessors::connect(predecessors, generation).map_err(Error::system("watch the predecessor"))?;
        let prepare = || -> Result<_, Error> {
            let notifier = Notifier::new(program.notify_socket())?;
            let pid_file = config.pid_file.as_deref().map(PidFile::new).transpose()?;
            Ok((notifier, pid_file, ListenerSet::assemble(&config.listeners, sockets)?))
        };
        let (notifier, pid_file, listeners) = prepare().inspect_err(|error| {
            predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
        })?;
        let birth = if predecessors.has_predecessor() { Birth::Successor } else { Birth::First };
        Ok(Self {
            state: State::born(birth),
            pending: VecDeque::new(),
            config,
            generation,
            program,
            slot,
            listeners,
            plane,
            signals,
            notifier,
            pid_file,
            predecessors,
            successor: None,
            given_up: Vec::new(),
            failure: None,
            deadlines: Deadlines::default(),
        })
    }

    /// Accepts.
    pub(super) fn live(mut self) -> Result<Self, Error> {
        if let Err(error) = self.plane.accept(self.listeners.as_slice()) {
            self.predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
            return Err(error);
        }
        let listeners = self.listeners.as_slice().iter().map(|one| format!("{}={}", one.name(), one.address()));
        tracing::info!(listeners = listeners.collect::<Vec<_>>().join(" "), "accepting");
        self.pending.push_back(Event::Live);
        Ok(self)
    }

    /// The listeners.
    pub(super) const fn listeners(&self) -> &ListenerSet {
        &self.listeners
    }

    /// The ordinal.
    pub(super) const fn generation(&self) -> Generation {
        self.generation
    }

    /// Lives until the end.
    pub(super) async fn run(mut self) -> Result<Ending, Error> {
        while self.state != State::Stopped {
            let event = self.next_event().await;
            let before = self.state;
            let (state, actions) = step(self.state, event);
            self.state = state;
            tracing::debug!(?event, from = before.name(), to = state.name(), ?actions, "step");
            if event == Event::Hangup && actions.is_empty() {
                answer_hangup(state);
            }
            for action in actions {
                self.perform(action).await?;
            }
        }
        Ok(Ending { drain: self.plane.report() })
    }

    /// The next event. What the neighbours say goes first: a predecessor that has retired, or a successor that has
    /// died, changes what a signal means.
    async fn next_event(&mut self) -> Event {
        if let Some(event) = self.pending.pop_front() {
            return event;
        }
        let draining = matches!(self.state, State::Retiring { .. } | State::Stopping);
        let awaits_successor = self.state == State::Stopping && self.has_unready_successor();
        tokio::select! {
            biased;
            event = self.predecessors.next() => match event {
                PredecessorEvent::Committed(hangup) => Event::Committed(hangup),
                PredecessorEvent::CommittedForGood(hangup) => Event::CommittedForGood(hangup),
                PredecessorEvent::Lost => Event::PredecessorLost,
                PredecessorEvent::Stop => Event::Terminate,
            },
            event = next_of(&mut self.successor) => self.heard(event),
            event = self.signals.next() => event,
            () = at(self.deadlines.ready) => self.ready_expired(),
            () = at(self.deadlines.bake) => Event::BakeOver,
            () = at(self.deadlines.drain) => Event::DrainExpired,
            () = self.plane.drained(), if draining && !awaits_successor => Event::Drained,
        }
    }

    /// Whether there is a successor that is not ready. When the line stops it is ours to see it to its end.
    fn has_unready_successor(&self) -> bool {
        self.successor.as_ref().is_some_and(|successor| !successor.is_ready())
    }

    /// What the successor's word means.
    fn heard(&mut self, event: SuccessorEvent) -> Event {
        let retired = matches!(self.state, State::Retiring { .. });
        match event {
            SuccessorEvent::Ready { pid, given_up } => {
                tracing::info!(successor_pid = pid, "the successor is ready");
                self.given_up = given_up;
                Event::SuccessorReady
            }
            SuccessorEvent::Lost(failure) => {
                // A service manager ends the service when its main process dies, and starts it anew.
                if retired && self.notifier.is_supervised() {
                    tracing::error!(reason = %failure, "not accepting again: that is for the service manager to mend");
                    return Event::LineStopping;
                }
                let rolled_back = matches!(failure, HandoffFailure::ToldToStop);
                self.failure = Some(failure);
                if rolled_back { Event::SuccessorRolledBack } else { Event::SuccessorLost }
            }
            SuccessorEvent::Stopping => Event::LineStopping,
            SuccessorEvent::Cut if retired => Event::CutNow,
            // Nonsense, before it has taken over: we would end, and nobody would serve.
            SuccessorEvent::Cut => {
                let why = "to cut a drain, before it has taken over".to_owned();
                self.failure = Some(HandoffFailure::Garbage { why });
                Event::SuccessorLost
            }
        }
    }

    fn ready_expired(&mut self) -> Event {
        self.failure = Some(HandoffFailure::TimedOut { limit: self.config.ready_timeout });
        Event::SuccessorLost
    }

    async fn perform(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::TellReady => {
                let closed = self.listeners.unclaimed().to_vec();
                self.predecessors.tell_predecessor(&Message::Ready { pid: std::process::id(), closed });
            }
            Action::TellRollback => {
                self.predecessors.tell_predecessor(&Message::Rollback);
                // The predecessor goes on with its own listeners; those that were bound here end here.
                self.given_up = self.listeners.bound_here().to_vec();
            }
            Action::TakeTheLine => self.take_the_line()?,
            Action::NotifyReady => self.notifier.ready(&self.status()),
            Action::StartSuccessor => self.start_successor(),
            Action::StartBake => {
                self.deadlines.ready = None;
                self.deadlines.bake = deadline(self.config.bake);
            }
            Action::Commit(hangup) => self.commit(|successor| successor.commit(hangup)),
            Action::CommitForGood(hangup) => self.commit(|successor| successor.commit_for_good(hangup)),
            Action::DropSuccessor => self.drop_successor(),
            Action::ForgetSuccessor => self.successor = None,
            Action::LetGo => self.predecessors.let_go(),
            Action::LeaveTheLine if self.predecessors.count() > 0 => self.predecessors.let_go(),
            Action::StopSuccessor => {
                self.deadlines.ready = None;
                if let Some(successor) = &self.successor {
                    successor.end(Fate::Stop);
                }
            }
            Action::StopAccepting => {
                self.plane.stop_accepting().await;
                let given_up = self.listeners.remove(&std::mem::take(&mut self.given_up));
                self.close(&given_up);
            }
            Action::CloseListeners | Action::LeaveTheLine => {
                self.plane.stop_accepting().await;
                let all = self.listeners.take();
                self.close(&all);
                if let Some(pid_file) = &self.pid_file {
                    pid_file.remove(self.successor.as_ref().and_then(Successor::pid));
                }
            }
            Action::TellStopping => {
                self.predecessors.tell_all(&Message::Stopping);
                self.notifier.stopping(&format!("generation {} stopping", self.generation));
            }
            Action::Drain => {
                let (why, connections) = (self.state.name(), self.plane.connections());
                tracing::info!(why, connections, "draining");
                self.plane.drain();
                self.deadlines.drain = deadline(self.config.drain_timeout);
            }
            Action::Resume => {
                self.deadlines.drain = None;
                self.plane.accept(self.listeners.as_slice())?;
                tracing::warn!("accepting again: the successor is gone");
            }
            Action::Cut => {
                self.plane.cut();
                if tokio::time::timeout(CUT_TIMEOUT, self.plane.drained()).await.is_err() {
                    tracing::warn!(connections = self.plane.connections(), "connections outlived being cut");
                }
            }
            Action::Exit => self.exit(),
        }
        Ok(())
    }

    /// Becomes the process to signal.
    fn take_the_line(&mut self) -> Result<(), Error> {
        if let Some(pid_file) = &self.pid_file {
            match pid_file.write(std::process::id()) {
                // The first generation has not told anybody that it is up; a later one must not end a service that runs.
                Err(error) if self.generation == Generation::FIRST => return Err(error),
                Err(error) => tracing::error!(%error, "nobody can learn from the pid file whom to signal"),
                Ok(()) => {}
            }
        }
        self.predecessors.cut_all_but(self.config.max_generations.get() - 1);
        tracing::info!(draining = self.predecessors.count(), "serving");
        Ok(())
    }

    fn start_successor(&mut self) {
        let generation = self.generation.next();
        self.deadlines.ready = deadline(self.config.ready_timeout);
        tracing::info!(successor = %generation, program = %self.program.path().display(), "starting a successor");
        let (program, listeners, predecessors) = (&self.program, &self.listeners, &self.predecessors);
        let slot = &mut self.slot;
        // The kernel kills whatever is left of a pid namespace when its first process ends, pid_namespaces(7): the
        // successor would die of our retirement.
        let started = if std::process::id() == 1 {
            Err(HandoffFailure::FirstProcess)
        } else {
            Successor::start(&mut Bequest { program, generation, listeners, predecessors, slot })
        };
        match started {
            Ok(successor) => self.successor = Some(successor),
            Err(failure) => {
                self.failure = Some(failure);
                self.pending.push_back(Event::SuccessorLost);
            }
        }
    }

    /// Hands the line over. The pid file first: whoever reads it from now on signals a process that heeds it.
    fn commit(&mut self, tell: impl FnOnce(&Successor)) {
        self.deadlines.bake = None;
        let Some(successor) = &self.successor else { return };
        let pid = successor.pid();
        if let (Some(pid_file), Some(pid)) = (&self.pid_file, pid) {
            if let Err(error) = pid_file.write(pid) {
                tracing::error!(%error, "nobody can learn from the pid file whom to signal");
            }
        }
        if let Some(pid) = pid {
            self.notifier.handed_over(pid, &format!("generation {} serving", self.generation.next()));
        }
        tell(successor);
        tracing::info!(successor = %self.generation.next(), successor_pid = pid, "handed over");
    }

    /// Says why the successor will not take over, or no longer, and lets go of it.
    fn drop_successor(&mut self) {
        self.deadlines.ready = None;
        self.deadlines.bake = None;
        self.given_up.clear();
        let Some(failure) = self.failure.take() else { return };
        tracing::error!(successor = %self.generation.next(), reason = %failure, "the handoff failed");
        if let Some(successor) = self.successor.take() {
            // It may be alive: it hangs, or talks nonsense. One that drains what it accepted has said so, and may.
            if !matches!(failure, HandoffFailure::ToldToStop) {
                successor.end(Fate::Kill);
            }
        }
    }

    /// Closes listeners for good. The path goes first, so that nobody comes who will not be accepted.
    fn close(&mut self, listeners: &[Listener]) {
        listeners.iter().for_each(Listener::unlink);
        self.plane.sweep(listeners);
    }

    fn exit(&mut self) {
        if let Some(successor) = self.successor.as_ref().filter(|successor| !successor.is_ready()) {
            successor.end(Fate::Kill);
        }
        let DrainReport { ended, cut } = self.plane.report();
        tracing::info!(ended, cut, "ended");
    }

    fn status(&self) -> String {
        format!("generation {} serving", self.generation)
    }
}

/// What comes from a successor, if there is one.
async fn next_of(successor: &mut Option<Successor>) -> SuccessorEvent {
    match successor {
        Some(successor) => successor.next().await,
        None => std::future::pending().await,
    }
}
