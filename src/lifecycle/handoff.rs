//! The part of the driver that hands over to a successor, and [`Handoff`]: what exists only while
//! it does.
//!
//! Everybody who asked for a handoff learns from here how it ended: an operator by the answer to a
//! reload, the service manager by its notification, everybody else by the log and the pid file.

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

/// How long to wait for the last messages of a successor that died or was told to stop.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// A handoff, from the request until its successor is gone.
#[derive(Debug, Default)]
pub(super) struct Handoff {
    pub(super) stage: Stage,
    pub(super) successor: Option<Successor>,
    /// The reload that an operator asked for, until it is answered.
    reload: Option<Reload>,
    /// The operator who waits until this generation has drained.
    waits_for_drain: Option<Answer>,
    /// The channel by which connections go to the successor: from the commit until the drain.
    pub(super) carry_channel: Option<OwnedFd>,
}

/// How far a handoff has come, with the deadline of that stage. The deadline is none when the clock
/// cannot hold it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Stage {
    /// The successor may not start yet: connections are still carried here.
    Delayed(Option<Instant>),
    /// The successor starts.
    Starting(Option<Instant>),
    /// The successor is ready, and on probation.
    Baking(Option<Instant>),
    /// Nothing is awaited: not begun yet, committed, or told to stop.
    #[default]
    Idle,
}

impl Stage {
    /// Returns the deadline of this stage.
    pub(super) fn timer(self) -> Option<(Instant, Timer)> {
        match self {
            Self::Delayed(until) => until.map(|until| (until, Timer::Delay)),
            Self::Starting(until) => until.map(|until| (until, Timer::Ready)),
            Self::Baking(until) => until.map(|until| (until, Timer::Bake)),
            Self::Idle => None,
        }
    }

    /// Returns whether the successor waits for carried connections.
    pub(super) const fn is_delayed(self) -> bool {
        matches!(self, Self::Delayed(_))
    }
}

impl Handoff {
    /// Returns when the operator who asked for the handoff wants to wait no longer.
    pub(super) fn given_up_at(&self) -> Option<Instant> {
        self.reload.as_ref().and_then(|reload| reload.until)
    }
}

impl<P: DataPlane> Driver<P> {
    /// Starts a successor as soon as there may be one more generation.
    pub(super) fn start_successor(&mut self) {
        let is_asked = self.handoff.as_ref().is_some_and(|handoff| handoff.reload.is_some());
        let status = self.status().to_string();
        if let Some(head) = &mut self.head {
            // An operator's command waits for the outcome itself, and systemd for the command.
            if is_asked { head.say(status) } else { head.reloading(status) }
        }
        if self.is_start_delayed() {
            let until = deadline(self.config.drain_timeout);
            self.handoff.get_or_insert_default().stage = Stage::Delayed(until);
            tracing::info!(
                event = "handoff.delayed",
                "handoff delayed: connections are still being carried and max_generations is reached"
            );
        } else {
            self.launch_successor();
        }
    }

    /// Returns whether a successor would exceed `max_generations` while older generations still
    /// carry connections here. The oldest is cut when the successor takes over.
    pub(super) fn is_start_delayed(&self) -> bool {
        self.plane.is_taking_over()
            && self.predecessors.count() + 1 >= self.config.max_generations.get()
    }

    /// Starts the successor's process.
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

    /// Starts the successor's probation.
    pub(super) fn start_bake(&mut self) {
        if let Some(handoff) = &mut self.handoff {
            handoff.stage = Stage::Baking(deadline(self.config.bake));
        }
    }

    /// Hands over. The pid file comes first: a script that reads it from now on signals a process
    /// that heeds the signal.
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
        // Before the successor learns that it is the active generation: from then on a successor of
        // its own might read what is meant for it.
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

    /// Releases the successor after a failure, and reports the failure.
    pub(super) async fn drop_successor(&mut self, failure: HandoffFailure) {
        self.listeners.given_up.clear();
        self.listeners.set.restore();
        let Some(mut handoff) = self.handoff.take() else { return };
        let successor = self.process.generation.next();
        // It had taken over if this generation is no longer the active one.
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
                // The answer comes at the end of this process, see `exit`.
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

    /// Keeps what a lost successor has counted, and kills it unless it gives everything back.
    async fn release(&mut self, mut successor: Successor, failure: &HandoffFailure) {
        // A successor that serves is well, and drains what it has accepted; so is a successor that
        // was told to stop. Any other may be alive too, but it hangs or breaks the protocol.
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

    /// Logs how many connections are lost with the successor.
    pub(super) async fn log_lost_connections(&mut self) {
        // Its last answers may be unread.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, self.plane.settled()).await;
        let (successor, lost) = (self.process.generation.next(), self.plane.lost_with_successor());
        if lost > 0 {
            tracing::error!(
                event = "carry.lost", %successor, lost,
                "up to {lost} connections that the successor had taken over are lost"
            );
        }
    }

    /// Lets go of a successor that has taken over and stops with the whole service.
    pub(super) fn forget_successor(&mut self) {
        if let Some(successor) = self.handoff.as_mut().and_then(|one| one.successor.as_mut()) {
            successor.release();
        }
    }

    /// Tells the successor to stop.
    pub(super) fn stop_successor(&mut self) {
        let Some(handoff) = &mut self.handoff else { return };
        handoff.stage = Stage::Idle;
        if let Some(successor) = &handoff.successor {
            successor.end(StopMode::Stop);
        }
    }
}
