//! The part of the event loop ([`Driver`]) that hands over to a successor. [`Handoff`] holds the
//! state of a handoff.
//!
//! This module also reports the outcome of a handoff: it replies to the operator's reload request,
//! notifies the service manager, and writes a log record. Before the commit, it writes the pid of
//! the successor to the pid file.

mod announce;
mod barrier;
mod outcome;
mod reload;
mod stage;

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::Driver;
use super::machine::State;
use super::timers::deadline;
use crate::carry::{self, CarriedState};
use crate::control::{Answer, Refusal};
use crate::data_plane::DataPlane;
use crate::error::HandoffFailure;
use crate::handoff::{Commit, LaunchSpec, StopMode, Successor};
use crate::report::{GenerationState, Outcome, Report};
pub(super) use barrier::Barrier;
use reload::Reload;
pub(super) use reload::milliseconds;
pub(super) use stage::Stage;

/// How long a successor may take to answer a request at the end of the bake. A busy machine may
/// delay the answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for the last messages of a successor whose handoff has failed.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of a handoff, from the reload request until the successor has ended.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    pub(super) stage: Stage,
    /// The longest time that the successor had to become ready.
    pub(super) ready_limit: Duration,
    pub(super) successor: Option<Successor>,
    /// The operator's reload request that started the handoff, until it is answered. `None` if a
    /// signal started the handoff.
    reload: Option<Reload>,
    /// The pending reply to an operator who waits until all connections of this generation have
    /// ended.
    waits_for_drain: Option<Answer>,
    /// The channel through which connections move to the successor. It is created when the handoff
    /// is committed. The drain takes it out of this field.
    pub(super) carry_channel: Option<OwnedFd>,
    /// The wait until the service manager treats the successor as the main process. `None` before
    /// the commit, and after the wait.
    pub(super) barrier: Option<Barrier>,
}

impl Handoff {
    /// Returns when the operator who requested the handoff stops waiting. The handoff fails at that
    /// time. Returns `None` if there is no such limit.
    pub(super) fn given_up_at(&self) -> Option<Instant> {
        self.reload.as_ref().and_then(|reload| reload.until)
    }
}

impl<P: DataPlane> Driver<P> {
    /// Starts a successor. Delays the start if connections still move here from older generations
    /// and one more generation would exceed `max_generations`.
    pub(super) fn start_successor(&mut self) {
        let is_asked = self.handoff.as_ref().is_some_and(|handoff| handoff.reload.is_some());
        let status = self.status().to_string();
        if let Some(active) = &mut self.active {
            // Report a reload to systemd as a reload only if a signal requested it. An operator who
            // requested it over the control socket gets a separate reply, so systemd gets only the
            // new status text.
            if is_asked { active.say(status) } else { active.reloading(status) }
        }
        if self.is_start_delayed() {
            let until = deadline(self.config.drain_timeout);
            self.handoff.get_or_insert_default().stage = Stage::Delayed(until);
            tracing::info!(
                event = "handoff.delayed",
                "the handoff waits until an older process has moved its connections to this one, \
                because max_generations is reached"
            );
        } else {
            self.launch_successor();
        }
    }

    /// Returns whether the start of a successor must wait. A generation that takes over cuts the
    /// oldest generation if more than `max_generations` are alive. So the start waits if it could
    /// lead to such a cut while older generations still move connections to this process.
    pub(super) fn is_start_delayed(&self) -> bool {
        self.plane.is_taking_over()
            && self.predecessors.count() + 1 >= self.config.max_generations.get()
    }

    /// Starts the process of the successor, and sets the deadline by which it must be ready.
    pub(super) fn launch_successor(&mut self) {
        let handoff = self.handoff.get_or_insert_default();
        handoff.stage = Stage::Starting(deadline(self.config.ready_timeout));
        handoff.ready_limit = self.config.ready_timeout;
        let generation = self.process.generation.next();
        let program = self.process.program.path().display();
        tracing::info!(
            event = "handoff.started", successor = %generation, %program,
            "starting a new process: generation {generation}"
        );
        let started = Successor::start(&mut LaunchSpec {
            program: &self.process.program,
            generation,
            listeners: &self.listeners.set,
            predecessors: &self.predecessors,
            init: self.process.init.as_ref(),
            slot: &mut self.process.slot,
            forecast: self.plane.forecast(),
        });
        match started {
            Ok(successor) => handoff.successor = Some(successor),
            Err(failure) => self.raised.push_back(failure.into()),
        }
    }

    /// Starts the probation of the successor. When the probation ends, the handoff is committed.
    pub(super) fn start_bake(&mut self) {
        if let Some(handoff) = &mut self.handoff {
            handoff.stage = Stage::Baking(deadline(self.config.bake));
        }
    }

    /// Asks the successor for its status at the end of the bake. The handoff continues with the
    /// answer. It continues at once without a bake, or if a successor of an older version does not
    /// know the request.
    pub(super) fn check_successor(&mut self) {
        let Some(Handoff { stage, successor: Some(successor), .. }) = &mut self.handoff else {
            return;
        };
        if !self.config.bake.is_zero() {
            successor.ask();
        }
        if successor.poll().is_due() {
            *stage = Stage::Checking(deadline(ANSWER_TIMEOUT));
        } else {
            self.end_alone_tasks();
        }
    }

    /// Continues the handoff after the successor has answered, if the handoff waits for the answer.
    pub(super) fn successor_answered(&mut self) {
        if self.handoff.as_ref().is_some_and(|one| matches!(one.stage, Stage::Checking(_))) {
            self.end_alone_tasks();
        }
    }

    /// Commits the handoff, which makes the successor the active generation. The pid file and the
    /// service manager already name the successor (see [`Driver::announce`]).
    pub(super) async fn commit(&mut self, commit: Commit) {
        let until = Instant::now() + ANSWER_TIMEOUT;
        let Some(handoff) = &mut self.handoff else { return };
        handoff.stage = Stage::Idle;
        let Some(successor) = &mut handoff.successor else { return };
        let pid = successor.pid();
        if let (Some(init), Some(pid)) = (&self.process.init, pid) {
            init.tell_active(pid);
        }
        self.operators.control.close();
        let next = self.process.generation.next();
        self.active = None;
        // Send the reports of older generations before the commit message. After the commit, the
        // successor may start another process, which inherits this channel and could read messages
        // that are meant for the successor.
        for (generation, poll) in self.predecessors.reports() {
            let known = || Report::placeholder(generation, GenerationState::Retiring);
            successor.draining(poll.report().cloned().unwrap_or_else(known), until).await;
        }
        self.predecessors.leave();
        handoff.carry_channel = successor.carry(carry::VERSION, until).await;
        if let Some(CarriedState { format, bytes, .. }) = self.life.offered() {
            successor.offer(format, &bytes, until).await;
        }
        successor.counted(self.history.past.clone(), until).await;
        if let Err(uncommitted) = successor.commit(commit, until).await {
            return self.lose_uncommitted(uncommitted).await;
        }
        self.raise_barrier();
        self.history.handoffs.succeeded += 1;
        tracing::info!(
            event = "handoff.committed", successor = %next, successor_pid = pid,
            "handed over to the new process: generation {next}"
        );
        self.warn_of_stop_in_bake(commit, pid);
        self.answer_status();
        self.answer_reload(pid);
    }

    /// Reports that the handoff has failed, and ends the successor unless it stops by itself.
    pub(super) async fn drop_successor(&mut self, failure: HandoffFailure) {
        self.listeners.given_up.clear();
        self.listeners.set.restore();
        self.release_waiting_event();
        let Some(mut handoff) = self.handoff.take() else { return };
        let successor = self.process.generation.next();
        self.report_failure(successor, &failure);
        let was_ready = handoff.successor.as_ref().is_some_and(Successor::is_ready);
        let is_too_late =
            matches!(failure, HandoffFailure::OutOfTime { .. } | HandoffFailure::NotStarted { .. });
        let (outcome, why) = match (is_too_late, was_ready) {
            (true, _) => (Outcome::TimedOut, Refusal::TryAgain),
            (false, true) => (Outcome::RolledBack, Refusal::RolledBack),
            (false, false) => (Outcome::Failed, Refusal::Failed),
        };
        // Answer an operator whose time is over before the waits below.
        if matches!(failure, HandoffFailure::OutOfTime { .. }) {
            if let Some(reload) = handoff.reload.take() {
                reload.answer.refuse(why, failure.to_string());
            }
        }
        let rolled_back = match handoff.successor.take() {
            Some(successor) => self.release(successor, &failure).await,
            None => None,
        };
        self.history.failed(successor, outcome, failure.to_string());
        if let Some(answer) = handoff.waits_for_drain.take() {
            answer.refuse(Refusal::RolledBack, failure.to_string());
        }
        if let Some(mut reload) = handoff.reload.take() {
            if self.state == State::Stopping {
                // Keep the operator's reload request, because `exit` answers it when this process
                // ends.
                reload.until = None;
                self.handoff = Some(Handoff { reload: Some(reload), ..Handoff::default() });
            } else {
                reload.answer.refuse(why, failure.to_string());
            }
        }
        let status = self.status().to_string();
        if let Some(active) = &mut self.active {
            active.not_handed_over(status);
            // A generation that has retired must not wait here, because nobody accepts until it
            // resumes.
            if let Some(mut successor) = rolled_back.filter(|_| self.state.accepts()) {
                successor.confirm_rollback(SETTLE_TIMEOUT).await;
            }
        }
    }

    /// Adds the counters of a failed successor to the totals, and kills the successor. If the
    /// successor has rolled back the handoff and is only draining its connections, returns it
    /// instead of killing it.
    async fn release(
        &mut self,
        mut successor: Successor,
        failure: &HandoffFailure,
    ) -> Option<Successor> {
        // Let the successor drain its connections if it was told to stop, or if it accepts
        // connections but the handoff took too long. Any other successor that is still alive hangs
        // or violates the protocol.
        let serves = successor.is_ready()
            && matches!(
                failure,
                HandoffFailure::OutOfTime { .. }
                    | HandoffFailure::NotYielded { .. }
                    | HandoffFailure::NotAnnounced { .. }
            );
        let is_well = failure.is_rollback() || serves && successor.gives_back(SETTLE_TIMEOUT).await;
        if let Some(last) = successor.poll().report() {
            let (last, live) = (last.counters.clone(), self.live_counters());
            self.history.add(last, &live);
        }
        if is_well {
            return Some(successor);
        }
        if matches!(failure, HandoffFailure::Refused { .. }) {
            // Wait until the successor has ended. It ends by itself, and first removes its files
            // and stops its program.
            successor.ended(SETTLE_TIMEOUT).await;
        }
        successor.end(StopMode::Kill);
        self.log_lost_connections().await;
        None
    }

    /// Logs how many connections may have been lost because they had moved to a successor that
    /// failed.
    pub(super) async fn log_lost_connections(&mut self) {
        // First wait for the answers that the successor sent before it failed, because they say
        // which connections it took over.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, self.plane.settled()).await;
        let (successor, lost) = (self.process.generation.next(), self.plane.lost_with_successor());
        if lost > 0 {
            tracing::error!(
                event = "carry.lost", %successor, lost,
                "lost up to {lost} client connections that generation {successor}, the new \
                process, had taken over"
            );
        }
    }

    /// Stops using the channel to the successor, which had taken over and now stops together with
    /// the whole service.
    pub(super) fn forget_successor(&mut self) {
        if let Some(successor) = self.handoff.as_mut().and_then(|one| one.successor.as_mut()) {
            successor.release();
        }
    }

    /// Tells the successor to stop, and clears the deadline of the handoff.
    pub(super) fn stop_successor(&mut self) {
        let Some(handoff) = &mut self.handoff else { return };
        handoff.stage = Stage::Idle;
        if let Some(successor) = &handoff.successor {
            successor.end(StopMode::Stop);
        }
    }
}
