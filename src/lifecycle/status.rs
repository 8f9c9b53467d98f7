//! The part of the event loop ([`Driver`]) that answers status requests.
//!
//! Each generation knows only its own state. The active generation asks the other generations for
//! reports, and waits only a short time for the answers, because a generation may hang. For a
//! generation that does not answer, the status contains its last report, with the state replaced by
//! `Unknown`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::active_role::{Duty, RefreshInterval};
use super::driver::{Driver, Occurrence};
use super::handoff::milliseconds;
use super::machine::State;
use crate::control::{Answer, ControlServer, Reply, Request};
use crate::data_plane::DataPlane;
use crate::handoff::StatusPoll;
use crate::net::Origin;
use crate::report::{
    Connections, Counters, GenerationState, ListenerReport, Report, Settings, Status,
};

/// How long to wait until other generations have answered a status request.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// The control socket, and the operators whose status requests are not answered yet.
#[derive(Debug)]
pub(super) struct Operators {
    pub(super) control: ControlServer,
    pub(super) status: StatusWaiters,
}

impl Operators {
    /// Creates a value with a control socket that is not open yet, and without waiting operators.
    pub(super) fn new() -> Self {
        Self { control: ControlServer::new(), status: StatusWaiters::default() }
    }
}

/// The operators whose status requests are not answered yet, and the deadline for the answer.
#[derive(Debug, Default)]
pub(super) struct StatusWaiters {
    waiting: Vec<Answer>,
    until: Option<Instant>,
}

impl StatusWaiters {
    /// Returns when to answer the waiting operators, even if other generations have not sent their
    /// reports.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.until
    }
}

/// A point in time, as read from two clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    /// The time of the system clock, which may be changed while the process runs.
    date: SystemTime,
    /// The time of the monotonic clock, from which durations are computed.
    instant: Instant,
}

impl Since {
    /// Returns the current time.
    pub(super) fn now() -> Self {
        Self { date: SystemTime::now(), instant: Instant::now() }
    }

    fn elapsed_ms(&self) -> u64 {
        milliseconds(self.instant.elapsed())
    }
}

impl<P: DataPlane> Driver<P> {
    /// Handles a request that an operator has sent over the control socket.
    pub(super) fn asked(&mut self, request: Request, answer: Answer) -> Option<Occurrence> {
        if answer.is_abandoned() {
            tracing::info!(
                event = "control.request_dropped",
                "dropped a control request: its client has disconnected"
            );
            return None;
        }
        match request {
            Request::Reload(options) => return self.asked_to_reload(&options, answer),
            Request::Status {} if self.active.is_none() => answer.send(Reply::Moved {}),
            Request::Status {} => {
                self.operators.status.waiting.push(answer);
                self.operators.status.until.get_or_insert(Instant::now() + ANSWER_TIMEOUT);
                self.ask_the_others();
                self.answer_complete_status();
            }
        }
        None
    }

    /// Performs a periodic duty of the active generation.
    pub(super) fn do_duty(&mut self, duty: Duty) {
        match duty {
            Duty::Beat => {
                let beat = self.plane.heartbeat();
                if let Some(active) = &mut self.active {
                    active.beat(beat);
                }
            }
            Duty::RefreshStatus => {
                // First report the known status, and then ask for new reports, so that a generation
                // that does not answer cannot delay the status.
                self.report_status();
                self.ask_the_others();
                let is_quiet = self.predecessors.is_empty() && self.state != State::Stopping;
                if let Some(active) = &mut self.active {
                    active.look_again(if is_quiet {
                        RefreshInterval::Quiet
                    } else {
                        RefreshInterval::Drain
                    });
                }
            }
        }
    }

    /// Reports the status to the service manager, if this is the active generation.
    pub(super) fn report_status(&mut self) {
        let status = self.status();
        let Some(active) = &mut self.active else { return };
        active.say(status.to_string());
        if self.state == State::Stopping {
            active.record_stop_progress(total(&status.generations));
        }
    }

    /// Answers the waiting status requests if the reports of all other generations have arrived.
    /// Call this after another generation has sent a report or has ended.
    pub(super) fn answer_complete_status(&mut self) {
        let is_due = self.predecessors.reports().any(|(_, poll)| poll.is_due())
            || self.successor().is_some_and(|successor| successor.poll().is_due());
        if !is_due {
            self.report_status();
            self.answer_status();
        }
    }

    /// Answers the waiting status requests with the reports that have arrived so far.
    pub(super) fn answer_status(&mut self) {
        self.operators.status.until = None;
        let waiting = std::mem::take(&mut self.operators.status.waiting);
        if waiting.is_empty() {
            return;
        }
        let reply = if self.active.is_some() {
            Reply::Status(Box::new(self.status()))
        } else {
            Reply::Moved {}
        };
        waiting.iter().for_each(|answer| answer.send(reply.clone()));
    }

    fn ask_the_others(&mut self) {
        self.predecessors.ask();
        if let Some(successor) = self.handoff.as_mut().and_then(|one| one.successor.as_mut()) {
            successor.ask();
        }
    }

    /// Returns the status report of this generation.
    pub(super) fn report(&self) -> Report {
        let left = self
            .drain
            .and_then(|drain| drain.until)
            .map(|until| until.saturating_duration_since(Instant::now()));
        Report {
            generation: self.process.generation,
            pid: Some(std::process::id()),
            identity: self.config.identity.clone(),
            // A generation whose successor has died is `Starting` until it accepts connections
            // again.
            state: if self.liveness.is_starting() {
                GenerationState::Starting
            } else {
                self.state.standing()
            },
            since_unix_ms: unix_ms(self.history.since.date),
            for_ms: Some(self.history.since.elapsed_ms()),
            connections: self.plane.connections(),
            counters: Counters { handoffs: self.history.handoffs, ..self.plane.counters() },
            drain_left_ms: left.map(milliseconds),
            programs: self.plane.programs(),
        }
    }

    /// Returns the sum of the counters of this generation, the successor, and those that drain.
    pub(super) fn live_counters(&self) -> Counters {
        let mut live = self.plane.counters();
        let successor = self.successor().and_then(|successor| successor.poll().report());
        let reports = self.predecessors.reports().filter_map(|(_, poll)| poll.report());
        let reports = reports.chain(successor);
        reports.for_each(|report| live.add(&report.counters));
        live
    }

    /// Returns the status of all generations, as far as this process knows it. For this and all
    /// later reports, adds the counters of unused upstream addresses to those of their host names.
    pub(super) fn status(&mut self) -> Status {
        let after = self.successor().map(|successor| {
            let state = if successor.is_ready() {
                GenerationState::Probation
            } else {
                GenerationState::Starting
            };
            let known = Report {
                pid: successor.pid(),
                since_unix_ms: unix_ms(self.history.since.date),
                for_ms: Some(self.history.since.elapsed_ms()),
                ..Report::placeholder(self.process.generation.next(), state)
            };
            last_word(known, successor.poll())
        });
        let before = self.predecessors.reports();
        let before = before.map(|(generation, poll)| {
            last_word(Report::placeholder(generation, GenerationState::Retiring), poll)
        });
        let listeners = self.listeners.set.as_slice().iter().map(|listener| ListenerReport {
            name: listener.name().to_string(),
            address: listener.address().to_owned(),
            bound: matches!(listener.origin(), Origin::Bound(_)),
        });
        let generations: Vec<Report> =
            after.into_iter().chain([self.report()]).chain(before).collect();
        let mut live = Counters::default();
        generations.iter().for_each(|report| live.add(&report.counters));
        self.history.past.fold_departed(&live);
        let mut counters = self.history.past.clone();
        counters.add(&live);
        Status {
            serving: self.process.generation,
            generations,
            counters,
            listeners: listeners.collect(),
            last_handoff: self.history.last_handoff.clone(),
            settings: Settings::from(&self.config),
        }
    }
}

impl State {
    /// Returns the name of this state in status reports.
    const fn standing(self) -> GenerationState {
        match self {
            Self::Starting { .. } => GenerationState::Starting,
            Self::Probation { .. } => GenerationState::Probation,
            Self::Serving => GenerationState::Serving,
            Self::HandingOff { .. } => GenerationState::HandingOff,
            Self::Baking { .. } => GenerationState::Baking,
            Self::Retiring { .. } => GenerationState::Retiring,
            Self::Stopping => GenerationState::Stopping,
            Self::Stopped => GenerationState::Stopped,
        }
    }
}

/// Returns the last report of a generation, or `known` if it has sent no report. If the generation
/// has not answered the latest request, the state in the report is replaced by `Unknown`.
fn last_word(known: Report, poll: &StatusPoll) -> Report {
    let last = poll.report().cloned().unwrap_or(known);
    // The generation has not answered in time, so its state is unknown. Omit the time that it has
    // been in this state; the report still has the date of the last known change.
    if poll.is_due() {
        Report { state: GenerationState::Unknown, for_ms: None, ..last }
    } else {
        last
    }
}

/// Returns the sums of the connections and bytes in all `reports`.
fn total(reports: &[Report]) -> Connections {
    let all = reports.iter().filter_map(|report| report.connections);
    all.fold(Connections::default(), |sum, one| Connections {
        open: sum.open + one.open,
        oldest_ms: None,
        transferred: sum.transferred + one.transferred,
    })
}

/// Returns the Unix time in milliseconds, or 0 for a time before 1970.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, milliseconds)
}
