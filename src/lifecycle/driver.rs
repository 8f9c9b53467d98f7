//! Lives the life that `machine` decides: waits for events, performs actions.
//!
//! One task owns everything, so nothing is locked. What an event means is decided in `machine`,
//! never here; what is decided here is only how a thing is done. Every wait has a deadline in
//! [`Deadlines`], except for what may rightly never come: signals, a neighbour's death, and the
//! word of a predecessor that has been stopped in the bake.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use tokio_util::task::TaskTracker;

use super::data_plane::Plane;
use super::handoff::Reload;
use super::head::Head;
use super::machine::{Birth, Event, State, step};
use super::pid_file::PidFile;
use super::signals::{Signals, answer_hangup};
use super::startup::begin;
use super::status::{Inquirers, Since};
use super::timers::{Deadlines, at, deadline};
use crate::config::Config;
use crate::control::{Answer, ControlServer, Request};
use crate::drain::DrainReport;
use crate::error::{Error, HandoffFailure};
use crate::generation::Generation;
use crate::handoff::{
    Inheritance, Init, LowSlot, ManagerNumbers, Message, PredecessorEvent, Predecessors, Program,
    Successor, SuccessorEvent,
};
use crate::net::ListenerSet;
use crate::notify::{MainProcess, Notifier};
use crate::report::{Counters, HandoffCounters, LastHandoff};
use crate::server::CarryEnd;

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How its last connections ended.
    pub drain: DrainReport,
}

/// A generation, alive.
#[derive(Debug)]
pub(super) struct Driver<P> {
    pub(super) state: State,
    /// When that became so.
    pub(super) since: Since,
    /// Events that an action gave rise to, ahead of all that come from outside.
    pub(super) pending: VecDeque<Event>,
    pub(super) config: Config,
    pub(super) generation: Generation,
    pub(super) program: Program,
    pub(super) slot: LowSlot,
    pub(super) init: Option<Init>,
    pub(super) listeners: ListenerSet,
    pub(super) plane: P,
    /// Over when every accept loop has run for the first time; none before they are started, and
    /// after that.
    pub(super) beginning: Option<TaskTracker>,
    /// Why this generation ends in an error once its connections have ended.
    pub(super) died: Option<Error>,
    signals: Signals,
    pub(super) notifier: Notifier,
    /// What this process does as the head of the line, while it is.
    pub(super) head: Option<Head>,
    pub(super) pid_file: Option<PidFile>,
    pub(super) predecessors: Predecessors,
    pub(super) successor: Option<Successor>,
    /// By which connections go to it, from when it is told that the line is its own until they do.
    pub(super) to_successor: Option<OwnedFd>,
    /// Whether it is known that the successor takes no more.
    pub(super) is_alone: bool,
    /// Whether a successor is to be started when all connections have been taken over that are on
    /// their way here.
    pub(super) is_start_due: bool,
    /// Places in `listeners` where nobody will accept after us: the successor has given them up, or
    /// we are rolled back and the predecessor never had them.
    pub(super) given_up: Vec<usize>,
    /// Whether the operator's socket ends with this process.
    pub(super) control_ends: bool,
    /// Why the successor was lost, until that is reported.
    pub(super) failure: Option<HandoffFailure>,
    pub(super) last_handoff: Option<LastHandoff>,
    /// How the handoffs ended that this generation has begun.
    pub(super) handoffs: HandoffCounters,
    /// What those have done that have ended, as far as it is known here.
    pub(super) past: Counters,
    pub(super) deadlines: Deadlines,
    pub(super) control: ControlServer,
    /// The reload that is under way, if an operator asked for it.
    pub(super) reload: Option<Reload>,
    /// The operator who waits until this generation has drained.
    pub(super) waits_for_drain: Option<Answer>,
    pub(super) inquirers: Inquirers,
}

/// What a turn begins with.
enum Heard {
    Died(Error),
    Begun,
    Event(Event),
    CarryEnd(CarryEnd),
    TakenOver,
    StartExpired,
    Predecessor(PredecessorEvent),
    Successor(SuccessorEvent),
    Asked(Request, Answer),
    Duty(super::head::Duty),
    /// Those who asked how the line stands have waited long enough.
    InquiryOver,
    /// The pid file is to be written once more.
    PidFileDue,
}

impl<P: Plane> Driver<P> {
    /// Installs the signal handlers and adopts or binds the listeners. Nothing is accepted yet.
    pub(super) fn start(
        config: Config,
        inheritance: Inheritance,
        mut plane: P,
    ) -> Result<Self, Error> {
        let signals = Signals::install().map_err(Error::system("install signal handlers"))?;
        let Inheritance { generation, sockets, predecessors, program, slot, init, coming, .. } =
            inheritance;
        plane.expect(coming);
        let predecessors = Predecessors::connect(predecessors, generation)
            .map_err(Error::system("watch the predecessor"))?;
        let main_process = match program.manager_numbers() {
            ManagerNumbers::Ours if init.is_none() => MainProcess::Head,
            ManagerNumbers::Ours | ManagerNumbers::Foreign => MainProcess::First,
        };
        let prepare = || -> Result<_, Error> {
            let notifier = Notifier::new(program.notify_socket(), main_process)?;
            let pid_file = PidFile::new(&config)?;
            Ok((
                notifier,
                pid_file,
                ListenerSet::assemble(&config.listeners, config.control.as_deref(), sockets)?,
            ))
        };
        let (notifier, pid_file, listeners) = prepare().inspect_err(|error| {
            predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
        })?;
        let birth = if predecessors.has_predecessor() { Birth::Successor } else { Birth::First };
        Ok(Self {
            state: State::born(birth),
            since: Since::now(),
            pending: VecDeque::new(),
            config,
            generation,
            program,
            slot,
            init,
            listeners,
            plane,
            beginning: None,
            died: None,
            signals,
            notifier,
            head: None,
            pid_file,
            predecessors,
            successor: None,
            to_successor: None,
            is_alone: false,
            is_start_due: false,
            given_up: Vec::new(),
            control_ends: false,
            failure: None,
            last_handoff: None,
            handoffs: HandoffCounters::default(),
            past: Counters::default(),
            deadlines: Deadlines::default(),
            control: ControlServer::new(),
            reload: None,
            waits_for_drain: None,
            inquirers: Inquirers::default(),
        })
    }

    /// Accepts. The generation is live when every accept loop has run, which [`Driver::run`] waits
    /// for.
    pub(super) fn live(mut self) -> Result<Self, Error> {
        if let Err(error) = self.plane.accept(self.listeners.as_slice()) {
            self.predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
            return Err(error);
        }
        self.beginning = Some(self.plane.heartbeat());
        self.deadlines.begin = deadline(self.config.ready_timeout);
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
        let lived = self.live_on().await;
        let drain = self.plane.report();
        // Whoever asked hears the end of it, whatever it is.
        self.control.finish().await;
        match (lived, self.died.take()) {
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => Ok(Ending { drain }),
        }
    }

    async fn live_on(&mut self) -> Result<(), Error> {
        while self.state != State::Stopped {
            let event = self.next_event().await?;
            let before = self.state;
            let (state, actions) = step(self.state, event);
            if state.name() != before.name() {
                self.since = Since::now();
            }
            self.state = state;
            tracing::debug!(
                event = "generation.step", input = ?event, from = before.name(), to = state.name(),
                ?actions,
                "step"
            );
            if event == Event::Hangup && actions.is_empty() {
                answer_hangup(state);
            }
            for action in actions {
                self.perform(action).await?;
            }
        }
        Ok(())
    }

    /// The next event. What the neighbours say goes first: a predecessor that has retired, or a
    /// successor that has died, changes what a signal means.
    ///
    /// # Errors
    /// What this generation has died of.
    async fn next_event(&mut self) -> Result<Event, Error> {
        if let Some(event) = self.pending.pop_front() {
            return Ok(event);
        }
        loop {
            let may_be_drained = self.may_be_drained();
            let is_retiring = matches!(self.state, State::Retiring { .. });
            let heard = tokio::select! {
                biased;
                error = self.plane.died(), if self.died.is_none() => Heard::Died(error),
                event = self.predecessors.next() => Heard::Predecessor(event),
                event = next_of(&mut self.successor) => Heard::Successor(event),
                event = self.signals.next() => Heard::Event(event),
                () = begin(self.beginning.as_ref()) => Heard::Begun,
                () = at(self.deadlines.begin) => Heard::Died(Error::NotAccepting { limit: self.config.ready_timeout }),
                () = at(self.deadlines.ready) => Heard::Event(self.expired(HandoffFailure::TimedOut { limit: self.config.ready_timeout })),
                () = at(self.deadlines.given) => Heard::Event(self.out_of_time()),
                () = at(self.deadlines.bake) => Heard::Event(Event::BakeOver),
                () = at(self.deadlines.drain) => Heard::Event(Event::DrainExpired),
                end = self.plane.carry_ended(), if is_retiring && !self.is_alone => Heard::CarryEnd(end),
                () = self.plane.taken_over(), if self.is_start_due => Heard::TakenOver,
                () = at(self.deadlines.start), if self.is_start_due => Heard::StartExpired,
                () = at(self.deadlines.carry) => Heard::Event(Event::CarryEnded),
                () = self.plane.drained(), if may_be_drained => Heard::Event(Event::Drained),
                (request, answer) = self.control.next() => Heard::Asked(request, answer),
                () = at(self.inquirers.deadline()) => Heard::InquiryOver,
                duty = next_duty(&mut self.head) => Heard::Duty(duty),
                () = at(self.pid_file.as_ref().and_then(PidFile::due)) => Heard::PidFileDue,
            };
            let event = match heard {
                Heard::Died(error) => {
                    self.part_died(error)?;
                    None
                }
                Heard::Begun => self.begun(),
                Heard::Event(event) => Some(event),
                Heard::CarryEnd(end) => self.carry_ended(end),
                Heard::TakenOver => {
                    self.taken_over();
                    self.pending.pop_front()
                }
                Heard::StartExpired => self.start_expired(),
                Heard::Predecessor(event) => self.heard_predecessor(event),
                Heard::Successor(event) => self.heard_successor(event).await,
                Heard::Asked(request, answer) => self.asked(request, answer),
                Heard::Duty(duty) => {
                    self.do_duty(duty);
                    None
                }
                Heard::InquiryOver => {
                    self.answer_inquirers();
                    None
                }
                Heard::PidFileDue => {
                    self.pid_file.as_mut().into_iter().for_each(PidFile::retry);
                    None
                }
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    /// Whether the end of the last connection is the end of this process. A successor that is not
    /// ready is ours to see to its end when the line stops; and the head outlives all before it:
    /// with the main process a unit ends, and a container.
    fn may_be_drained(&self) -> bool {
        let has_unready_successor =
            self.successor.as_ref().is_some_and(|successor| !successor.is_ready());
        match self.state {
            State::Retiring { .. } => true,
            State::Stopping => {
                !has_unready_successor && (self.head.is_none() || self.predecessors.is_empty())
            }
            State::Starting { .. }
            | State::Probation { .. }
            | State::Serving
            | State::HandingOff { .. }
            | State::Baking { .. }
            | State::Stopped => false,
        }
    }
}

/// What the head has to do, if this process is it.
async fn next_duty(head: &mut Option<Head>) -> super::head::Duty {
    match head {
        Some(head) => head.next().await,
        None => std::future::pending().await,
    }
}

/// What comes from a successor, if there is one.
async fn next_of(successor: &mut Option<Successor>) -> SuccessorEvent {
    match successor {
        Some(successor) => successor.next().await,
        None => std::future::pending().await,
    }
}
