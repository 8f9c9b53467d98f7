//! Lives the life that `machine` decides: waits for events, performs actions.
//!
//! One task owns everything, so nothing is locked. What an event means is decided in `machine`, never here; what is
//! decided here is only how a thing is done. Every wait has a deadline in [`Deadlines`], except for what may rightly
//! never come: signals, a neighbour's death, and the word of a predecessor that has been stopped in the bake.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use super::deadlines::{Deadlines, at, deadline};
use super::handover::Reload;
use super::head::Head;
use super::machine::{Birth, Event, State, step};
use super::pid_file::PidFile;
use super::plane::Plane;
use super::signals::{Signals, answer_hangup};
use super::standing::Inquirers;
use crate::carry;
use crate::config::Config;
use crate::control::{Answer, ControlServer, Request};
use crate::drain::DrainReport;
use crate::error::{Error, HandoffFailure};
use crate::generation::Generation;
use crate::handoff::{
    Inheritance, Init, LowSlot, Message, PredecessorEvent, Predecessors, Program, Successor, SuccessorEvent,
};
use crate::net::ListenerSet;
use crate::notify::Notifier;
use crate::report::{Connections, Counters, HandoffCounters, LastHandoff, Report, Standing};
use crate::server::CarryEnd;

/// How long after a successor takes no more connections it may take to hear that it is dead.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

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
    pub(super) since: SystemTime,
    /// Events that an action gave rise to, ahead of all that come from outside.
    pub(super) pending: VecDeque<Event>,
    pub(super) config: Config,
    pub(super) generation: Generation,
    pub(super) program: Program,
    pub(super) slot: LowSlot,
    pub(super) init: Option<Init>,
    pub(super) listeners: ListenerSet,
    pub(super) plane: P,
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
    /// Whether a successor is to be started when all connections have been taken over that are on their way here.
    pub(super) is_start_due: bool,
    /// Places in `listeners` where nobody will accept after us: the successor has given them up, or we are rolled back
    /// and the predecessor never had them.
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
}

impl<P: Plane> Driver<P> {
    /// Installs the signal handlers and adopts or binds the listeners. Nothing is accepted yet.
    pub(super) fn start(config: Config, inheritance: Inheritance, mut plane: P) -> Result<Self, Error> {
        let signals = Signals::install().map_err(Error::system("install signal handlers"))?;
        let Inheritance { generation, sockets, predecessors, program, slot, init, coming, .. } = inheritance;
        plane.expect(coming);
        let predecessors =
            Predecessors::connect(predecessors, generation).map_err(Error::system("watch the predecessor"))?;
        let prepare = || -> Result<_, Error> {
            let notifier = Notifier::new(program.notify_socket())?;
            let pid_file = config.pid_file.as_deref().map(PidFile::new).transpose()?;
            Ok((notifier, pid_file, ListenerSet::assemble(&config.listeners, config.control.as_deref(), sockets)?))
        };
        let (notifier, pid_file, listeners) = prepare().inspect_err(|error| {
            predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
        })?;
        let birth = if predecessors.has_predecessor() { Birth::Successor } else { Birth::First };
        Ok(Self {
            state: State::born(birth),
            since: SystemTime::now(),
            pending: VecDeque::new(),
            config,
            generation,
            program,
            slot,
            init,
            listeners,
            plane,
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

    /// Accepts.
    pub(super) fn live(mut self) -> Result<Self, Error> {
        if let Err(error) = self.plane.accept(self.listeners.as_slice()) {
            self.predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
            return Err(error);
        }
        let listeners = self.listeners.as_slice().iter().map(|one| format!("{}={}", one.name(), one.address()));
        let listeners = listeners.collect::<Vec<_>>().join(" ");
        tracing::info!(listeners, "generation {} is accepting", self.generation);
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
        let lived = self.live_on().await;
        let drain = self.plane.report();
        // Whoever asked hears the end of it, whatever it is.
        self.control.finish().await;
        lived.map(|()| Ending { drain })
    }

    async fn live_on(&mut self) -> Result<(), Error> {
        while self.state != State::Stopped {
            let event = self.next_event().await;
            let before = self.state;
            let (state, actions) = step(self.state, event);
            if state.name() != before.name() {
                self.since = SystemTime::now();
            }
            self.state = state;
            tracing::debug!(?event, from = before.name(), to = state.name(), ?actions, "step");
            if event == Event::Hangup && actions.is_empty() {
                answer_hangup(state);
            }
            for action in actions {
                self.perform(action).await?;
            }
        }
        Ok(())
    }

    /// The next event. What the neighbours say goes first: a predecessor that has retired, or a successor that has
    /// died, changes what a signal means.
    async fn next_event(&mut self) -> Event {
        if let Some(event) = self.pending.pop_front() {
            return event;
        }
        loop {
            let may_be_drained = self.may_be_drained();
            let is_retiring = matches!(self.state, State::Retiring { .. });
            let heard = tokio::select! {
                biased;
                event = self.predecessors.next() => Heard::Predecessor(event),
                event = next_of(&mut self.successor) => Heard::Successor(event),
                event = self.signals.next() => Heard::Event(event),
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
            };
            let event = match heard {
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
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Whether the end of the last connection is the end of this process. A successor that is not ready is ours to see to
    /// its end when the line stops; and the head outlives all before it: with the main process a unit ends, and a
    /// container.
    fn may_be_drained(&self) -> bool {
        let has_unready_successor = self.successor.as_ref().is_some_and(|successor| !successor.is_ready());
        match self.state {
            State::Retiring { .. } => true,
            State::Stopping => !has_unready_successor && (self.head.is_none() || self.predecessors.is_empty()),
            State::Starting { .. }
            | State::Probation { .. }
            | State::Serving
            | State::HandingOff { .. }
            | State::Baking { .. }
            | State::Stopped => false,
        }
    }

    /// No more connections go to the successor. If that takes no more, it may be about to be heard that it is dead: a process that
    /// dies closes one channel before the other. Those that were not carried are told when it is not.
    fn carry_ended(&mut self, end: CarryEnd) -> Option<Event> {
        self.is_alone = true;
        match end {
            CarryEnd::AllWent => Some(Event::CarryEnded),
            CarryEnd::Alone => {
                let soon = deadline(LAST_WORD_TIMEOUT);
                self.deadlines.carry = [self.deadlines.carry, soon].into_iter().flatten().min();
                None
            }
        }
    }

    /// What a predecessor's word means.
    fn heard_predecessor(&mut self, event: PredecessorEvent) -> Option<Event> {
        match event {
            PredecessorEvent::Committed(hangup) => Some(Event::Committed(hangup)),
            PredecessorEvent::CommittedForGood(hangup) => Some(Event::CommittedForGood(hangup)),
            PredecessorEvent::Lost => Some(Event::PredecessorLost),
            PredecessorEvent::Stop => Some(Event::Terminate),
            PredecessorEvent::Asked => {
                self.predecessors.tell_predecessor(&Message::Report(Box::new(self.report())));
                None
            }
            PredecessorEvent::Reported => {
                self.reported();
                None
            }
            PredecessorEvent::Carrying(version, _) if version != carry::VERSION => {
                tracing::warn!(
                    version,
                    "the predecessor carries connections in words that are not known here: they stay with it"
                );
                None
            }
            PredecessorEvent::Carrying(_, channel) => {
                if let Err(error) = self.plane.take_over(channel) {
                    tracing::error!(reason = %error, "the predecessor's connections stay with it: {error}");
                }
                None
            }
            PredecessorEvent::Counted(counters) => {
                self.past = *counters;
                None
            }
            PredecessorEvent::Ended(generation, last) => {
                say_if_it_died(generation, last.as_deref());
                if let Some(mut last) = last {
                    last.counters.settle();
                    self.past.add(&last.counters);
                }
                self.reported();
                None
            }
        }
    }

    /// What the successor's word means.
    async fn heard_successor(&mut self, event: SuccessorEvent) -> Option<Event> {
        let retired = matches!(self.state, State::Retiring { .. });
        match event {
            SuccessorEvent::Ready { pid, given_up } => {
                tracing::info!(successor_pid = pid, "the successor is ready");
                self.given_up = given_up;
                Some(Event::SuccessorReady)
            }
            SuccessorEvent::Lost(failure) => {
                // A service manager ends the service when its main process dies, and starts it anew.
                if retired && self.notifier.is_supervised() {
                    let what = "the successor is lost, and for the service manager to mend";
                    tracing::error!(reason = %failure, "{what}: {failure}");
                    self.tell_what_is_lost().await;
                    self.refuse_who_waits_for_drain(&failure);
                    return Some(Event::LineStopping);
                }
                let rolled_back = matches!(failure, HandoffFailure::ToldToStop);
                self.failure = Some(failure);
                Some(if rolled_back { Event::SuccessorRolledBack } else { Event::SuccessorLost })
            }
            SuccessorEvent::Stopping => Some(Event::LineStopping),
            SuccessorEvent::Cut if retired => Some(Event::CutNow),
            // Nonsense, before it has taken over: we would end, and nobody would serve.
            SuccessorEvent::Cut => {
                let why = "to cut a drain, before it has taken over".to_owned();
                Some(self.expired(HandoffFailure::Garbage { why }))
            }
            SuccessorEvent::Asked => {
                if let Some(successor) = &self.successor {
                    successor.answer(self.report());
                }
                None
            }
            SuccessorEvent::Reported => {
                self.reported();
                None
            }
            SuccessorEvent::Ended => {
                self.successor = None;
                None
            }
        }
    }

    /// The successor is to be given up, for this reason.
    pub(super) fn expired(&mut self, failure: HandoffFailure) -> Event {
        self.failure = Some(failure);
        Event::SuccessorLost
    }
}

/// The end of an older generation is in order if it has said so itself.
fn say_if_it_died(generation: Generation, last: Option<&Report>) {
    match last.map(|last| (last.state, last.connections)) {
        Some((Standing::Stopped, _)) => {}
        Some((_, Some(Connections { open, .. }))) => tracing::error!(
            died = %generation,
            open,
            "generation {generation} has died, and with it what was left of the {open} connections that it had when it was last heard"
        ),
        Some((_, None)) | None => {
            tracing::error!(died = %generation, "generation {generation} has died, and with it what it still served");
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
