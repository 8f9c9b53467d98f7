//! The part of the event loop ([`Driver`]) that handles messages from the successor and from older
//! generations, and turns them into events.
//!
//! The state machine in `machine` decides what to do after an event. Some messages only need a
//! reply or are only recorded. They cause no event.

use std::os::fd::OwnedFd;
use std::time::SystemTime;

use super::driver::{Driver, Occurrence};
use super::machine::{Event, State};
use super::status::{Since, unix_ms};
use crate::carry;
use crate::data_plane::DataPlane;
use crate::error::HandoffFailure;
use crate::generation::Generation;
use crate::handoff::{Message, PredecessorEvent, SuccessorEvent};
use crate::report::{
    Connections, Counters, GenerationState, HandoffCounters, LastHandoff, Outcome, Report,
};

/// What this generation remembers for status reports: its handoffs, and the counters of generations
/// that have ended.
#[derive(Debug)]
pub(super) struct History {
    /// The time when this generation entered its current state.
    pub(super) since: Since,
    pub(super) last_handoff: Option<LastHandoff>,
    /// The outcomes of the handoffs that this generation started.
    pub(super) handoffs: HandoffCounters,
    /// The sum of the counters of generations that have ended, as far as this process has received
    /// them.
    pub(super) past: Counters,
}

impl History {
    /// Creates a history without handoffs.
    pub(super) fn new() -> Self {
        Self {
            since: Since::now(),
            last_handoff: None,
            handoffs: HandoffCounters::default(),
            past: Counters::default(),
        }
    }

    /// Records that this generation has entered another state now.
    pub(super) fn state_changed(&mut self) {
        self.since = Since::now();
    }

    /// Adds the last counters of a generation that has ended or sends no more reports, so that the
    /// totals of the service never decrease. `live` is the sum of all generations that still run.
    pub(super) fn add(&mut self, mut last: Counters, live: &Counters) {
        last.settle();
        self.past.add(&last);
        self.past.fold_departed(live);
    }

    /// Records that this generation has taken over, unless a later handoff is already recorded.
    pub(super) fn took_over(&mut self, generation: Generation) {
        if self.last_handoff.is_none() {
            self.note(generation, Outcome::Committed, None);
        }
    }

    /// Records a failed handoff to `successor`, with its outcome and the reason.
    pub(super) fn failed(&mut self, successor: Generation, outcome: Outcome, reason: String) {
        if outcome == Outcome::RolledBack {
            self.handoffs.rolled_back += 1;
        } else {
            self.handoffs.failed += 1;
        }
        self.note(successor, outcome, Some(reason));
    }

    fn note(&mut self, successor: Generation, outcome: Outcome, reason: Option<String>) {
        let unix_ms = unix_ms(SystemTime::now());
        self.last_handoff = Some(LastHandoff { unix_ms, successor, outcome, reason });
    }
}

impl<P: DataPlane> Driver<P> {
    /// Handles a message from an older generation. Returns an event for the state machine, or
    /// `None` if the message needs no decision.
    pub(super) fn heard_predecessor(&mut self, event: PredecessorEvent) -> Option<Occurrence> {
        match event {
            PredecessorEvent::Committed(commit) => Some(Event::Committed(commit).into()),
            PredecessorEvent::Lost => Some(Event::PredecessorLost.into()),
            PredecessorEvent::Stop => Some(Event::Terminate.into()),
            PredecessorEvent::RolledBack => Some(Event::RollbackConfirmed.into()),
            PredecessorEvent::Asked => {
                self.predecessors.tell_predecessor(&Message::Report(Box::new(self.report())));
                None
            }
            PredecessorEvent::Reported => {
                self.answer_complete_status();
                None
            }
            PredecessorEvent::Carrying(version, channel) => {
                self.take_over(version, channel);
                None
            }
            PredecessorEvent::Offered(format, file) => {
                self.receive_state(format, file);
                None
            }
            PredecessorEvent::Counted(counters) => {
                self.history.past = *counters;
                None
            }
            PredecessorEvent::Draining(report) => {
                self.predecessors.remember(report);
                None
            }
            PredecessorEvent::Ended(generation, last) => {
                self.say_if_it_died(generation, last.as_deref());
                if let Some(last) = last {
                    let live = self.live_counters();
                    self.history.add(last.counters, &live);
                }
                self.answer_complete_status();
                None
            }
        }
    }

    /// Takes over connections of the predecessor, which arrive over `channel` in the given version
    /// of the format.
    fn take_over(&mut self, version: u32, channel: OwnedFd) {
        if version != carry::VERSION {
            tracing::warn!(
                event = "carry.unknown_format",
                version,
                "cannot take over client connections, which stay in the old process: it sends \
                them in a format of the unknown version {version}"
            );
        } else if let Err(error) = self.plane.take_over(channel) {
            tracing::error!(
                event = "carry.unavailable", reason = %error,
                "cannot take over client connections, which stay in the old process: {error}"
            );
        }
    }

    /// Handles a message from the successor. Returns an event for the state machine, or `None` if
    /// the message needs no decision.
    pub(super) async fn heard_successor(&mut self, event: SuccessorEvent) -> Option<Occurrence> {
        let retired = matches!(self.state, State::Retiring { .. });
        match event {
            SuccessorEvent::Ready { pid, given_up, replaced } => {
                self.successor_is_ready(pid, given_up, &replaced);
                Some(Event::SuccessorReady.into())
            }
            SuccessorEvent::Lost(failure)
                if retired && self.process.notifier.watches_active_generation() =>
            {
                self.stop_with_successor(failure).await;
                Some(Event::ServiceStopping.into())
            }
            SuccessorEvent::Lost(failure) => Some(failure.into()),
            SuccessorEvent::NeedsTime(time) => {
                self.extend_start(time);
                None
            }
            SuccessorEvent::Stopping => Some(Event::ServiceStopping.into()),
            SuccessorEvent::GivenUp(sockets) if retired => {
                self.close_given_up(&sockets);
                None
            }
            // Ignore the message, because the successor has not taken over yet.
            SuccessorEvent::GivenUp(_) => None,
            SuccessorEvent::Cut if retired => Some(Event::CutNow.into()),
            // Treat `Cut` as a protocol violation if the successor has not taken over yet. If this
            // generation ended now, no active generation would be left.
            SuccessorEvent::Cut => {
                let why = "it told this process to cut its connections, but had not taken over"
                    .to_owned();
                Some(HandoffFailure::Garbage { why }.into())
            }
            SuccessorEvent::Asked => {
                self.report_to_successor();
                None
            }
            SuccessorEvent::Reported => {
                self.successor_answered();
                self.answer_complete_status();
                None
            }
            SuccessorEvent::Ended => {
                if let Some(handoff) = &mut self.handoff {
                    handoff.successor = None;
                }
                None
            }
        }
    }

    /// Handles the successor's message that it is ready, which lists the listeners that it closed.
    fn successor_is_ready(&mut self, pid: Option<u32>, given_up: Vec<usize>, replaced: &[usize]) {
        tracing::info!(event = "successor.ready", successor_pid = pid, "the new process is ready");
        self.listeners.set.mark_replaced(replaced);
        self.listeners.given_up = given_up;
    }

    /// Logs the end of a successor that had taken over, and why this generation stops too. The
    /// successor was the main process, so the service manager stops the whole service when it ends.
    /// Whether the service starts again depends on the unit, and on whether an operator has stopped
    /// it.
    async fn stop_with_successor(&mut self, failure: HandoffFailure) {
        if failure.is_rollback() {
            tracing::warn!(
                event = "successor.stopped", reason = %failure,
                "it is too late to roll back the handoff, so this process stops too: {failure}"
            );
        } else {
            tracing::error!(
                event = "successor.died", reason = %failure,
                "the new process died, so this process stops too: {failure}"
            );
            // The service manager may not know the successor yet. It then starts the service again
            // only because this process fails.
            self.liveness.successor_died(failure.to_string());
        }
        self.log_lost_connections().await;
        // The operator still waits for the outcome if the successor was lost during the commit.
        self.refuse_reload(&failure.to_string());
        self.refuse_drain_waiter(&failure);
    }

    /// Closes the sockets on which the service no longer listens.
    fn close_given_up(&mut self, sockets: &[u64]) {
        // Accept the clients in the backlog now, because the kernel resets their connections when
        // the last file descriptor of the listening socket is closed.
        let given_up = self.listeners.set.remove_sockets(sockets);
        self.plane.accept_backlog(&given_up);
    }

    /// Logs an error if an older generation died while it still had connections.
    ///
    /// A generation that ends normally sends a final report to the process that is active at that
    /// time. A missing report may have gone to another process, but the direct predecessor reports
    /// only to this process. So without a report, this function logs an error only for the direct
    /// predecessor.
    fn say_if_it_died(&self, generation: Generation, last: Option<&Report>) {
        match last.map(|last| (last.state, last.connections)) {
            Some((GenerationState::Stopped | GenerationState::Unknown, _)) => {}
            Some((_, Some(Connections { open, .. }))) => tracing::error!(
                event = "generation.died", died = %generation, open,
                "generation {generation}, an older process, died while it drained, and up to \
                {open} connections were lost"
            ),
            None if generation.next() != self.process.generation => {}
            Some((_, None)) | None => {
                tracing::error!(
                    event = "generation.died", died = %generation,
                    "generation {generation}, an older process, died while it drained, and its \
                    remaining connections were lost"
                );
            }
        }
    }
}
