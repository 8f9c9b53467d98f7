//! This module handles an operator's reload request, which arrives over the control socket, and
//! sends the replies.

use std::time::Duration;

use tokio::time::Instant;

use super::{ANSWER_TIMEOUT, Handoff};
use crate::control::{Answer, Refusal, ReloadOptions, Reply};
use crate::data_plane::DataPlane;
use crate::drain::DrainReport;
use crate::error::HandoffFailure;
use crate::lifecycle::driver::{Driver, Occurrence};
use crate::lifecycle::machine::{Event, State};
use crate::lifecycle::timers::deadline;

/// How far a handoff may exceed the duration that was announced to the operator. The operator's
/// client waits even longer.
const PROMISE_GRACE: Duration = Duration::from_secs(2);

/// A reload that an operator has requested over the control socket.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) answer: Answer,
    began: Instant,
    limit: Duration,
    /// Whether the operator has set the time limit in the request.
    is_limited: bool,
    waits_for_drain: bool,
    /// When the operator stops waiting. The handoff fails at that time. `None` if there is no such
    /// limit.
    pub(super) until: Option<Instant>,
}

/// Returns the time to reserve for the reply. The handoff must end this long before the client's
/// timeout `limit`.
fn time_to_answer(limit: Duration) -> Duration {
    (limit / 10).min(Duration::from_secs(1))
}

impl<P: DataPlane> Driver<P> {
    /// Handles an operator's reload request. Refuses it at once if it cannot be fulfilled.
    pub(in crate::lifecycle) fn asked_to_reload(
        &mut self,
        options: &ReloadOptions,
        answer: Answer,
    ) -> Option<Occurrence> {
        let generation = self.process.generation;
        let why_not = match self.state {
            State::Serving => None,
            State::HandingOff { .. } | State::Baking { .. } => {
                Some("another handoff is in progress")
            }
            State::Stopping | State::Stopped => Some("the service is stopping"),
            State::Starting { .. } | State::Probation { .. } | State::Retiring { .. } => {
                answer.send(Reply::Moved {});
                return None;
            }
        };
        let expected = options.expect_generation.filter(|expected| *expected != generation);
        let unexpected = expected.map(|expected| {
            format!("generation {generation} serves, but the request expects generation {expected}")
        });
        if let Some(reason) = why_not.map(str::to_owned).or(unexpected) {
            answer.refuse(Refusal::TryAgain, reason);
            return None;
        }
        let limit = options.timeout_ms.map(Duration::from_millis);
        let longest = self.longest_handoff();
        let within = limit.map_or(longest, |limit| limit.min(longest));
        answer.send(Reply::Started {
            successor: generation.next(),
            within_ms: milliseconds(within),
            is_watched: self.process.notifier.watches_active_generation(),
        });
        // A client that stops waiting assumes that the handoff has failed. So the handoff must not
        // continue after that, even if this process was suspended in the meantime. The client waits
        // for the timeout in its request. If the request has no timeout, the client waits a little
        // longer than announced.
        let given =
            limit.map_or(total([longest, PROMISE_GRACE]), |limit| limit - time_to_answer(limit));
        let reload = Reload {
            answer,
            began: Instant::now(),
            limit: limit.unwrap_or(longest),
            is_limited: limit.is_some(),
            waits_for_drain: options.wait_drained,
            until: deadline(given),
        };
        self.handoff = Some(Handoff { reload: Some(reload), ..Handoff::default() });
        Some(Event::ReloadRequested.into())
    }

    /// Returns the longest time that a handoff may take if it begins now.
    fn longest_handoff(&self) -> Duration {
        let config = &self.config;
        let carry = if self.is_start_delayed() { config.drain_timeout } else { Duration::ZERO };
        let alone_tasks =
            if self.life.state.has_alone_tasks() { config.alone_timeout } else { Duration::ZERO };
        total([carry, config.ready_timeout, config.bake, ANSWER_TIMEOUT, alone_tasks])
    }

    /// Gives a successor that is starting at least `time` from now until it must be ready. Also
    /// tells an operator who has set no time limit to wait longer.
    pub(in crate::lifecycle) fn extend_start(&mut self, time: Duration) {
        let successor = self.process.generation.next();
        let later = total([time, self.config.bake, ANSWER_TIMEOUT, self.config.alone_timeout]);
        let Some(handoff) = &mut self.handoff else { return };
        handoff.stage.extend_start(time);
        handoff.ready_limit = handoff.ready_limit.max(time);
        if let Some(reload) = handoff.reload.as_mut().filter(|reload| !reload.is_limited) {
            let until = deadline(total([later, PROMISE_GRACE]));
            reload.until = reload.until.and_then(|before| Some(before.max(until?)));
            reload.limit = reload.limit.max(reload.began.elapsed().saturating_add(later));
            let within_ms = milliseconds(later);
            let is_watched = self.process.notifier.watches_active_generation();
            reload.answer.send_news(Reply::Started { successor, within_ms, is_watched });
        }
    }

    /// Returns the error for a handoff that took longer than the timeout of the operator's reload
    /// request.
    pub(in crate::lifecycle) fn out_of_time(&self) -> HandoffFailure {
        let reload = self.handoff.as_ref().and_then(|handoff| handoff.reload.as_ref());
        HandoffFailure::OutOfTime { limit: reload.map(|reload| reload.limit).unwrap_or_default() }
    }

    /// Tells the operator who requested the reload that the successor, process `pid`, is now the
    /// active generation.
    pub(super) fn answer_reload(&mut self, pid: Option<u32>) {
        let Some(handoff) = &mut self.handoff else { return };
        let Some(Reload { answer, began, waits_for_drain, .. }) = handoff.reload.take() else {
            return;
        };
        answer.send(Reply::Serving {
            generation: self.process.generation.next(),
            pid,
            after_ms: milliseconds(began.elapsed()),
            draining: self.plane.connections().map(|now| now.open),
            drain_within_ms: milliseconds(self.config.drain_timeout),
        });
        handoff.waits_for_drain = waits_for_drain.then_some(answer);
    }

    /// Tells the operator who requested the reload that it has failed because of `why`. Does
    /// nothing if no operator requested it.
    pub(in crate::lifecycle) fn refuse_reload(&mut self, why: &str) {
        if let Some(reload) = self.handoff.as_mut().and_then(|handoff| handoff.reload.take()) {
            reload.answer.refuse(Refusal::Failed, why);
        }
    }

    /// Tells the operator who waits for the end of this drain that the successor has failed. Does
    /// nothing if no operator waits.
    pub(in crate::lifecycle) fn refuse_drain_waiter(&mut self, failure: &HandoffFailure) {
        if let Some(answer) = self.take_drain_waiter() {
            answer.refuse(Refusal::RolledBack, failure.to_string());
        }
    }

    /// Tells the operator who waits for the end of this drain how the connections ended. Does
    /// nothing if no operator waits.
    pub(in crate::lifecycle) fn tell_drained(&mut self, report: DrainReport) {
        let DrainReport { ended, carried, cut } = report;
        if let Some(answer) = self.take_drain_waiter() {
            let [ended, carried, cut] = [ended, carried, cut].map(|count| count as u64);
            let generation = self.process.generation;
            answer.send(Reply::Drained { generation, ended, carried, cut });
        }
    }

    fn take_drain_waiter(&mut self) -> Option<Answer> {
        self.handoff.as_mut().and_then(|handoff| handoff.waits_for_drain.take())
    }
}

/// Returns the sum of `durations`, at most `Duration::MAX`.
fn total<const N: usize>(durations: [Duration; N]) -> Duration {
    durations.into_iter().fold(Duration::ZERO, Duration::saturating_add)
}

/// Returns a duration in whole milliseconds, at most `u64::MAX`.
pub(in crate::lifecycle) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_durations_do_not_overflow() {
        assert_eq!(total([Duration::MAX, Duration::MAX, Duration::from_secs(1)]), Duration::MAX);
        assert_eq!(
            total([Duration::from_secs(2), Duration::ZERO, Duration::from_secs(1)]),
            Duration::from_secs(3)
        );
        assert_eq!(milliseconds(Duration::MAX), u64::MAX);
    }
}
