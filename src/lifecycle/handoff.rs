//! Hands the line over, takes it, or says why not: the part of the driver that is about a
//! successor.
//!
//! Whoever asked for a handoff hears from here how it ended: an operator by the answer to a reload,
//! the service manager by its notification, everybody else by the log and the pid file.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::data_plane::Plane;
use super::driver::Driver;
use super::head::Head;
use super::machine::{Event, State};
use super::pid_file::log_failure;
use super::status::unix_ms;
use super::timers::deadline;
use crate::carry;
use crate::control::{Answer, Refusal, ReloadOptions, Reply};
use crate::drain::DrainReport;
use crate::error::{Error, HandoffFailure};
use crate::generation::Generation;
use crate::handoff::{Bequest, Fate, Successor};
use crate::report::{LastHandoff, Outcome, Report, Standing};

/// How long the last words of a successor may take that has died, for the kernel has only to close
/// its end, or is told to stop.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much later than promised a handoff may end that an operator has asked for: less than the
/// client waits.
const PROMISE_GRACE: Duration = Duration::from_secs(2);

/// How much of a client's limit is left for the way back, so that the answer arrives within it.
fn time_to_answer(limit: Duration) -> Duration {
    (limit / 10).min(Duration::from_secs(1))
}

/// A reload that an operator has asked for.
#[derive(Debug)]
pub(super) struct Reload {
    answer: Answer,
    began: Instant,
    limit: Duration,
    waits_for_drain: bool,
}

impl<P: Plane> Driver<P> {
    /// An operator asks for a handoff. What stands against it is said at once.
    pub(super) fn asked_to_reload(
        &mut self,
        options: &ReloadOptions,
        answer: Answer,
    ) -> Option<Event> {
        let why_not = match self.state {
            State::Serving => None,
            State::HandingOff { .. } | State::Baking { .. } => Some("a handoff is under way"),
            State::Stopping | State::Stopped => Some("the service is told to stop"),
            State::Starting { .. } | State::Probation { .. } | State::Retiring { .. } => {
                answer.send(Reply::Moved {});
                return None;
            }
        };
        let expected = options.expect_generation.filter(|expected| *expected != self.generation);
        let why_not = why_not.map(str::to_owned).or_else(|| {
            expected.map(|expected| {
                format!("generation {} serves, not {expected} as expected", self.generation)
            })
        });
        if let Some(reason) = why_not {
            answer.refuse(Refusal::TryAgain, reason);
            return None;
        }
        let limit = options.timeout_ms.map(Duration::from_millis);
        let carry =
            if self.is_start_to_wait() { self.config.drain_timeout } else { Duration::ZERO };
        let longest = total([carry, self.config.ready_timeout, self.config.bake]);
        let within = limit.map_or(longest, |limit| limit.min(longest));
        answer.send(Reply::Started {
            successor: self.generation.next(),
            within_ms: milliseconds(within),
        });
        // A client waits for its own limit, or a little longer than it was promised, and then
        // believes that nothing has changed. So the handoff ends before that: a process that is
        // stopped meanwhile must not go on with it later.
        self.deadlines.given = deadline(
            limit.map_or(total([longest, PROMISE_GRACE]), |limit| limit - time_to_answer(limit)),
        );
        let limit = limit.unwrap_or(longest);
        self.reload = Some(Reload {
            answer,
            began: Instant::now(),
            limit,
            waits_for_drain: options.wait_drained,
        });
        Some(Event::Hangup)
    }

    /// Whoever asked for the handoff wants to wait no longer.
    pub(super) fn out_of_time(&mut self) -> Event {
        let limit = self.reload.as_ref().map(|reload| reload.limit).unwrap_or_default();
        self.failure = Some(HandoffFailure::OutOfTime { limit });
        Event::SuccessorLost
    }

    /// Becomes the head of the line: the process to signal, to ask, and to hear from.
    pub(super) fn take_the_line(&mut self) -> Result<(), Error> {
        let is_up = self.generation != Generation::FIRST || self.handoffs.succeeded > 0;
        if let Some(pid_file) = &mut self.pid_file {
            match pid_file.name(std::process::id()) {
                // Nobody has been told that the service is up. Once it is, a pid file must not end
                // it.
                Err(error) if !is_up => return Err(error),
                Err(error) => log_failure(&error),
                Ok(()) => {}
            }
        }
        if let Some(init) = &self.init {
            init.tell_head(std::process::id());
        }
        self.predecessors.attend();
        self.predecessors.cut_all_but(self.config.max_generations.get() - 1);
        let head = Head::new(self.notifier.clone(), self.program.watchdog());
        self.keep_with_the_service_manager(&head);
        self.head = Some(head);
        self.listeners.grant_access();
        self.listeners.forget_replacements();
        if let Some(control) = self.listeners.control() {
            self.control.open(control.clone());
        }
        if !self.plane.is_taking_over() {
            // They were offered before this, if they are.
            self.plane.expect_no_more();
        }
        if self.generation != Generation::FIRST && self.last_handoff.is_none() {
            self.ended(self.generation, Outcome::Committed, None);
        }
        tracing::info!(
            event = "generation.serving",
            draining = self.predecessors.count(),
            "generation {} is serving",
            self.generation
        );
        Ok(())
    }

    /// What the line bound itself the service manager keeps, in case all of us die.
    fn keep_with_the_service_manager(&self, head: &Head) {
        if !self.notifier.is_supervised() {
            return;
        }
        for name in self.listeners.no_longer_stored() {
            head.unstore(name);
        }
        for (listener, name) in self.listeners.to_store() {
            match name {
                Some(name) => head.store(&name, listener),
                None => tracing::warn!(
                    event = "store.refused", listener = %listener.name(),
                    address = listener.address(),
                    "the service manager cannot keep this socket: its name and address are too long"
                ),
            }
        }
    }

    /// Whether with a successor there would be too many generations, and connections are still on
    /// their way from those: when it has taken over, the oldest is cut.
    fn is_start_to_wait(&self) -> bool {
        self.plane.is_taking_over()
            && self.predecessors.count() + 1 >= self.config.max_generations.get()
    }

    /// Starts a successor, as soon as that may be.
    pub(super) fn start_successor(&mut self) {
        let status = self.status().to_string();
        if let Some(head) = &mut self.head {
            // An operator's command waits for the outcome itself, and systemd for the command.
            if self.reload.is_some() { head.say(status) } else { head.reloading(status) }
        }
        self.is_start_due = self.is_start_to_wait();
        if self.is_start_due {
            self.deadlines.start = deadline(self.config.drain_timeout);
            tracing::info!(
                event = "handoff.delayed",
                "the handoff waits for the connections that are still taken over: one generation more is too many"
            );
        } else {
            self.launch_successor();
        }
    }

    /// All connections have been taken over that were on their way: starts the successor that has
    /// waited for that.
    pub(super) fn taken_over(&mut self) {
        (self.is_start_due, self.deadlines.start) = (false, None);
        // Whoever waited may have been told to stop.
        if matches!(self.state, State::HandingOff { .. }) {
            self.launch_successor();
        }
    }

    /// They were not in time: their generation hangs, or may take longer than we.
    pub(super) fn start_expired(&mut self) -> Option<Event> {
        (self.is_start_due, self.deadlines.start) = (false, None);
        // Whoever waited may have been told to stop.
        let waits = matches!(self.state, State::HandingOff { .. });
        waits.then(|| self.expired(HandoffFailure::NotStarted { limit: self.config.drain_timeout }))
    }

    fn launch_successor(&mut self) {
        let generation = self.generation.next();
        self.deadlines.ready = deadline(self.config.ready_timeout);
        let program = self.program.path().display();
        tracing::info!(
            event = "handoff.started", successor = %generation, %program,
            "starting a successor: generation {generation}"
        );
        let (program, listeners, predecessors) =
            (&self.program, &self.listeners, &self.predecessors);
        let (init, slot) = (self.init.as_ref(), &mut self.slot);
        let coming = self.plane.carries();
        let started = Successor::start(&mut Bequest {
            program,
            generation,
            listeners,
            predecessors,
            init,
            slot,
            coming,
        });
        match started {
            Ok(successor) => self.successor = Some(successor),
            Err(failure) => {
                self.failure = Some(failure);
                self.pending.push_back(Event::SuccessorLost);
            }
        }
    }

    /// Hands the line over. The pid file first: whoever reads it from now on signals a process that
    /// heeds it.
    pub(super) fn commit(&mut self, tell: impl FnOnce(&mut Successor)) {
        self.deadlines.bake = None;
        self.deadlines.given = None;
        let Some(successor) = &mut self.successor else { return };
        let pid = successor.pid();
        if let (Some(pid_file), Some(pid)) = (&mut self.pid_file, pid) {
            if let Err(error) = pid_file.hand_over(pid) {
                log_failure(&error);
            }
        }
        if let (Some(init), Some(pid)) = (&self.init, pid) {
            init.tell_head(pid);
        }
        self.control.close();
        if let (Some(head), Some(pid)) = (self.head.take(), pid) {
            head.hand_over(pid, &format!("generation {} serving", self.generation.next()));
        }
        self.handoffs.succeeded += 1;
        // Before it hears that the line is its own: after that a successor of its own might read
        // what is meant for it.
        for (generation, inquiry) in self.predecessors.reports() {
            let known = || Report::unheard(generation, Standing::Retiring);
            successor.draining(inquiry.report().cloned().unwrap_or_else(known));
        }
        self.predecessors.leave();
        self.to_successor = successor.carry(carry::VERSION);
        successor.counted(self.past.clone());
        tell(successor);
        let successor = self.generation.next();
        tracing::info!(
            event = "handoff.committed", %successor, successor_pid = pid,
            "handed over to generation {successor}"
        );
        self.answer_inquirers();
        let Some(Reload { answer, began, waits_for_drain, .. }) = self.reload.take() else {
            return;
        };
        answer.send(Reply::Serving {
            generation: self.generation.next(),
            pid,
            after_ms: milliseconds(began.elapsed()),
            draining: self.plane.connections().map(|now| now.open),
            drain_within_ms: milliseconds(self.config.drain_timeout),
        });
        self.waits_for_drain = waits_for_drain.then_some(answer);
    }

    /// Says why the successor will not take over, or no longer, and lets go of it.
    pub(super) async fn drop_successor(&mut self) {
        self.deadlines.ready = None;
        self.deadlines.bake = None;
        self.deadlines.given = None;
        self.given_up.clear();
        self.listeners.restore();
        let Some(failure) = self.failure.take() else { return };
        let successor = self.generation.next();
        // It had taken over if this is the head no longer.
        if self.head.is_some() {
            tracing::error!(
                event = "handoff.failed", %successor, reason = %failure,
                "the handoff failed: {failure}"
            );
        } else {
            tracing::error!(
                event = "handoff.failed", %successor, reason = %failure,
                "the handoff failed after all: {failure}"
            );
        }
        let was_ready = self.successor.as_ref().is_some_and(Successor::is_ready);
        if let Some(mut successor) = self.successor.take() {
            // One that serves is well, and drains what it has accepted; so does one that has said
            // that it was told to stop. Any other may be alive as well: it hangs, or talks
            // nonsense.
            let serves = was_ready && matches!(failure, HandoffFailure::OutOfTime { .. });
            let is_well = matches!(failure, HandoffFailure::ToldToStop)
                || serves && successor.gives_back(SETTLE_TIMEOUT).await;
            // What it has done it has done, whatever becomes of it: sums never fall.
            if let Some(mut last) = successor.inquiry().report().cloned() {
                last.counters.settle();
                self.past.add(&last.counters);
                self.past.fold_departed(&self.plane.counters());
            }
            if !is_well {
                successor.end(Fate::Kill);
                self.tell_what_is_lost().await;
            }
        }
        let out_of_time =
            matches!(failure, HandoffFailure::OutOfTime { .. } | HandoffFailure::NotStarted { .. });
        let (outcome, why, count) = if out_of_time {
            (Outcome::TimedOut, Refusal::TryAgain, &mut self.handoffs.failed)
        } else if was_ready {
            (Outcome::RolledBack, Refusal::RolledBack, &mut self.handoffs.rolled_back)
        } else {
            (Outcome::Failed, Refusal::Failed, &mut self.handoffs.failed)
        };
        *count += 1;
        self.ended(self.generation.next(), outcome, Some(failure.to_string()));
        self.refuse_who_waits_for_drain(&failure);
        // One that was told to stop had no choice: it says so at its end.
        if let Some(reload) = self.reload.take_if(|_| self.state != State::Stopping) {
            reload.answer.refuse(why, failure.to_string());
        }
        let status = self.status().to_string();
        if let Some(head) = &mut self.head {
            head.not_handed_over(status);
        }
    }

    /// Says how many connections are lost with the successor.
    pub(super) async fn tell_what_is_lost(&mut self) {
        // What it has answered before its end may be unread.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, self.plane.settled()).await;
        let (successor, lost) = (self.generation.next(), self.plane.successor_lost());
        if lost > 0 {
            tracing::error!(
                event = "carry.lost", %successor, lost,
                "up to {lost} connections that it had taken over are lost with it"
            );
        }
    }

    /// Tells whoever asked for the handoff that is under way that it has no end.
    pub(super) fn refuse_reload(&mut self, why: &str) {
        self.deadlines.given = None;
        if let Some(reload) = self.reload.take() {
            reload.answer.refuse(Refusal::Failed, why);
        }
    }

    /// Tells whoever waits for the drain that the new generation is gone.
    pub(super) fn refuse_who_waits_for_drain(&mut self, failure: &HandoffFailure) {
        if let Some(answer) = self.waits_for_drain.take() {
            answer.refuse(Refusal::RolledBack, failure.to_string());
        }
    }

    /// Tells them how the drain ended.
    pub(super) fn tell_drained(&mut self, DrainReport { ended, carried, cut }: DrainReport) {
        if let Some(answer) = self.waits_for_drain.take() {
            let [ended, carried, cut] = [ended, carried, cut].map(|count| count as u64);
            answer.send(Reply::Drained { generation: self.generation, ended, carried, cut });
        }
    }

    fn ended(&mut self, successor: Generation, outcome: Outcome, reason: Option<String>) {
        self.last_handoff =
            Some(LastHandoff { unix_ms: unix_ms(SystemTime::now()), successor, outcome, reason });
    }
}

/// The sum of durations that a user has configured. Each may be as long as `Duration::MAX`, so the
/// sum saturates.
fn total<const N: usize>(durations: [Duration; N]) -> Duration {
    durations.into_iter().fold(Duration::ZERO, Duration::saturating_add)
}

/// As many as a message can hold.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_long_as_there_are_do_not_overflow() {
        assert_eq!(total([Duration::MAX, Duration::MAX, Duration::from_secs(1)]), Duration::MAX);
        assert_eq!(
            total([Duration::from_secs(2), Duration::ZERO, Duration::from_secs(1)]),
            Duration::from_secs(3)
        );
        assert_eq!(milliseconds(Duration::MAX), u64::MAX);
    }
}
