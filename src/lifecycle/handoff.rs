//! The part of the driver that hands over to a successor. [`Handoff`] is its state.
//!
//! This module also reports the outcome of a handoff. The operator gets a reply to the reload
//! request, and the service manager gets a notification. The outcome is also logged, and the pid
//! file names the active process.

mod reload;

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::Driver;
use super::machine::State;
use super::pid_file::log_failure;
use super::timers::{Timer, deadline};
use crate::carry;
use crate::control::{Answer, Refusal};
use crate::data_plane::DataPlane;
use crate::error::HandoffFailure;
use crate::handoff::{Commit, LaunchSpec, StopMode, Successor};
use crate::report::{GenerationState, Outcome, Report};
use reload::Reload;
pub(super) use reload::milliseconds;

/// How long to wait for the last messages of a successor that has died or was told to stop.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of a handoff, from the request until the successor is gone.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    pub(super) stage: Stage,
    pub(super) successor: Option<Successor>,
    /// The reload request of an operator, until it is answered. `None` if a signal started the
    /// handoff.
    reload: Option<Reload>,
    /// The pending reply to an operator that waits until this generation has drained.
    waits_for_drain: Option<Answer>,
    /// The channel through which connections move to the successor. It is present from the commit
    /// of the handoff until the drain begins.
    pub(super) carry_channel: Option<OwnedFd>,
}

/// The progress of a handoff, with the deadline of the current stage. The deadline is `None` if the
/// clock cannot represent it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Stage {
    /// The successor may not start yet, because a predecessor is still moving connections to this
    /// process.
    Delayed(Option<Instant>),
    /// The successor is starting, and must be ready by the deadline.
    Starting(Option<Instant>),
    /// The successor is ready, and runs on probation until the deadline.
    Baking(Option<Instant>),
    /// No deadline applies: the handoff has not begun, is committed, or the successor was told to
    /// stop.
    #[default]
    Idle,
}

impl Stage {
    /// Returns the deadline of this stage of the handoff with its purpose, or `None` if no deadline
    /// applies.
    pub(super) fn timer(self) -> Option<(Instant, Timer)> {
        match self {
            Self::Delayed(until) => until.map(|until| (until, Timer::Delay)),
            Self::Starting(until) => until.map(|until| (until, Timer::Ready)),
            Self::Baking(until) => until.map(|until| (until, Timer::Bake)),
            Self::Idle => None,
        }
    }

    /// Returns whether the successor must not start yet, because a predecessor is still moving
    /// connections to this process.
    pub(super) const fn is_delayed(self) -> bool {
        matches!(self, Self::Delayed(_))
    }
}

impl Handoff {
    /// Returns the time after which the operator who requested the handoff no longer waits for it.
    /// The handoff then fails.
    pub(super) fn given_up_at(&self) -> Option<Instant> {
        self.reload.as_ref().and_then(|reload| reload.until)
    }
}

impl<P: DataPlane> Driver<P> {
    /// Starts a successor. If another generation would exceed `max_generations` while connections
    /// still move here, the start is delayed.
    pub(super) fn start_successor(&mut self) {
        let is_asked = self.handoff.as_ref().is_some_and(|handoff| handoff.reload.is_some());
        let status = self.status().to_string();
        if let Some(head) = &mut self.head {
            // An operator who requests a reload over the control socket gets a separate reply, so
            // systemd is told only the status. A reload by a signal is reported to systemd as a
            // reload.
            if is_asked { head.say(status) } else { head.reloading(status) }
        }
        if self.is_start_delayed() {
            let until = deadline(self.config.drain_timeout);
            self.handoff.get_or_insert_default().stage = Stage::Delayed(until);
            tracing::info!(
                event = "handoff.delayed",
                "handoff delayed: connections are still being carried and max_generations is \
                reached"
            );
        } else {
            self.launch_successor();
        }
    }

    /// Returns whether the start of a successor must wait. If more than `max_generations` are
    /// alive, a generation that takes over cuts the oldest one. So the start waits while older
    /// generations still move connections to this process.
    pub(super) fn is_start_delayed(&self) -> bool {
        self.plane.is_taking_over()
            && self.predecessors.count() + 1 >= self.config.max_generations.get()
    }

    /// Starts the process of the successor and its deadline to become ready.
    pub(super) fn launch_successor(&mut self) {
        let handoff = self.handoff.get_or_insert_default();
        handoff.stage = Stage::Starting(deadline(self.config.ready_timeout));
        let generation = self.process.generation.next();
        let program = self.process.program.path().display();
        tracing::info!(
            event = "handoff.started", successor = %generation, %program,
            "starting a successor: generation {generation}"
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

    /// Starts the probation of the successor. At its end the handoff is committed.
    pub(super) fn start_bake(&mut self) {
        if let Some(handoff) = &mut self.handoff {
            handoff.stage = Stage::Baking(deadline(self.config.bake));
        }
    }

    /// Commits the handoff: makes the successor the active generation. The pid file is written
    /// first, so that a script that reads it signals the process that reacts to signals.
    pub(super) fn commit(&mut self, commit: Commit) {
        let Some(handoff) = &mut self.handoff else { return };
        handoff.stage = Stage::Idle;
        let Some(successor) = &mut handoff.successor else { return };
        let pid = successor.pid();
        if let (Some(pid_file), Some(pid)) = (&mut self.pid_file, pid) {
            if let Err(error) = pid_file.hand_over(pid) {
                log_failure(&error);
            }
        }
        if let (Some(init), Some(pid)) = (&self.process.init, pid) {
            init.tell_head(pid);
        }
        self.operators.control.close();
        let next = self.process.generation.next();
        if let (Some(head), Some(pid)) = (self.head.take(), pid) {
            head.hand_over(pid, &format!("generation {next} serving"));
        }
        self.history.handoffs.succeeded += 1;
        // Send the reports of older generations before the commit message. After the commit the
        // successor may start its own successor, which could then read messages that are meant for
        // its parent.
        for (generation, poll) in self.predecessors.reports() {
            let known = || Report::placeholder(generation, GenerationState::Retiring);
            successor.draining(poll.report().cloned().unwrap_or_else(known));
        }
        self.predecessors.leave();
        handoff.carry_channel = successor.carry(carry::VERSION);
        successor.counted(self.history.past.clone());
        successor.commit(commit);
        tracing::info!(
            event = "handoff.committed", successor = %next, successor_pid = pid,
            "handed over to generation {next}"
        );
        self.answer_status();
        self.answer_reload(pid);
    }

    /// Gives up the successor after a failed handoff, and reports the failure.
    pub(super) async fn drop_successor(&mut self, failure: HandoffFailure) {
        self.listeners.given_up.clear();
        self.listeners.set.restore();
        let Some(mut handoff) = self.handoff.take() else { return };
        let successor = self.process.generation.next();
        // If this generation is no longer active, the successor had already taken over.
        let when = if self.head.is_some() { "failed" } else { "failed after the commit" };
        tracing::error!(
            event = "handoff.failed", %successor, reason = %failure,
            "the handoff {when}: {failure}"
        );
        let was_ready = handoff.successor.as_ref().is_some_and(Successor::is_ready);
        if let Some(successor) = handoff.successor.take() {
            self.release(successor, &failure).await;
        }
        let is_too_late =
            matches!(failure, HandoffFailure::OutOfTime { .. } | HandoffFailure::NotStarted { .. });
        let (outcome, why) = if is_too_late {
            (Outcome::TimedOut, Refusal::TryAgain)
        } else if was_ready {
            (Outcome::RolledBack, Refusal::RolledBack)
        } else {
            (Outcome::Failed, Refusal::Failed)
        };
        self.history.failed(successor, outcome, failure.to_string());
        if let Some(answer) = handoff.waits_for_drain.take() {
            answer.refuse(Refusal::RolledBack, failure.to_string());
        }
        if let Some(mut reload) = handoff.reload.take() {
            if self.state == State::Stopping {
                // Keep the reload request, because it is answered only when this process ends (see
                // `exit`).
                reload.until = None;
                self.handoff = Some(Handoff { reload: Some(reload), ..Handoff::default() });
            } else {
                reload.answer.refuse(why, failure.to_string());
            }
        }
        let status = self.status().to_string();
        if let Some(head) = &mut self.head {
            head.not_handed_over(status);
        }
    }

    /// Adds the counters of a failed successor to the totals. Kills the successor, unless it stops
    /// in order and leaves the service to this process.
    async fn release(&mut self, mut successor: Successor, failure: &HandoffFailure) {
        // A successor may live on to drain if it was told to stop, or if it serves but ran out of
        // time. Any other successor that is still alive hangs or violates the protocol.
        let serves = successor.is_ready() && matches!(failure, HandoffFailure::OutOfTime { .. });
        let is_well = matches!(failure, HandoffFailure::ToldToStop)
            || serves && successor.gives_back(SETTLE_TIMEOUT).await;
        if let Some(last) = successor.poll().report() {
            self.history.add(last.counters.clone(), &self.plane.counters());
        }
        if !is_well {
            successor.end(StopMode::Kill);
            self.log_lost_connections().await;
        }
    }

    /// Logs how many connections may be lost, because they had moved to the successor that is now
    /// lost.
    pub(super) async fn log_lost_connections(&mut self) {
        // First read the answers that the successor sent before it was lost.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, self.plane.settled()).await;
        let (successor, lost) = (self.process.generation.next(), self.plane.lost_with_successor());
        if lost > 0 {
            tracing::error!(
                event = "carry.lost", %successor, lost,
                "up to {lost} connections that the successor had taken over are lost"
            );
        }
    }

    /// Gives up the channel to a successor that has taken over and now stops with the whole
    /// service.
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
