//! Hears what the generations before and after this one say, and makes events of it: the part of
//! the driver that is about their words.
//!
//! What is done about an event is for the machine to say; what is only to be answered, or to be
//! remembered, is done here.

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

/// The handoffs of this generation, and what ended generations have counted.
#[derive(Debug)]
pub(super) struct History {
    /// Since when the generation has been in its present state.
    pub(super) since: Since,
    pub(super) last_handoff: Option<LastHandoff>,
    /// How the handoffs ended that this generation has begun.
    pub(super) handoffs: HandoffCounters,
    /// The counters of generations that have ended, as far as they are known here.
    pub(super) past: Counters,
}

impl History {
    /// A history without handoffs.
    pub(super) fn new() -> Self {
        Self {
            since: Since::now(),
            last_handoff: None,
            handoffs: HandoffCounters::default(),
            past: Counters::default(),
        }
    }

    /// Notes that the state has changed now.
    pub(super) fn state_changed(&mut self) {
        self.since = Since::now();
    }

    /// Adds the last counters of another generation. Sums never fall, whatever becomes of it.
    pub(super) fn add(&mut self, mut last: Counters, own: &Counters) {
        last.settle();
        self.past.add(&last);
        self.past.fold_departed(own);
    }

    /// Notes that this generation has taken over, unless a later handoff is noted already.
    pub(super) fn took_over(&mut self, generation: Generation) {
        if self.last_handoff.is_none() {
            self.note(generation, Outcome::Committed, None);
        }
    }

    /// Notes a handoff that failed.
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
    /// What a predecessor's word means.
    pub(super) fn heard_predecessor(&mut self, event: PredecessorEvent) -> Option<Occurrence> {
        match event {
            PredecessorEvent::Committed(commit) => Some(Event::Committed(commit).into()),
            PredecessorEvent::Lost => Some(Event::PredecessorLost.into()),
            PredecessorEvent::Stop => Some(Event::Terminate.into()),
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
                    event = "carry.unknown_format",
                    version,
                    "the predecessor carries connections in words that are not known here: they stay with it"
                );
                None
            }
            PredecessorEvent::Carrying(_, channel) => {
                if let Err(error) = self.plane.take_over(channel) {
                    tracing::error!(
                        event = "carry.unavailable", reason = %error,
                        "the predecessor's connections stay with it: {error}"
                    );
                }
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
                    self.history.add(last.counters, &self.plane.counters());
                }
                self.reported();
                None
            }
        }
    }

    /// What the successor's word means.
    pub(super) async fn heard_successor(&mut self, event: SuccessorEvent) -> Option<Occurrence> {
        let retired = matches!(self.state, State::Retiring { .. });
        match event {
            SuccessorEvent::Ready { pid, given_up, replaced } => {
                tracing::info!(
                    event = "successor.ready",
                    successor_pid = pid,
                    "the successor is ready"
                );
                self.listeners.set.mark_replaced(&replaced);
                self.listeners.given_up = given_up;
                Some(Event::SuccessorReady.into())
            }
            SuccessorEvent::Lost(failure) => {
                // A service manager ends the service when its main process dies, and starts it
                // anew.
                if retired && self.process.notifier.watches_head() {
                    let what = "the successor is lost, and for the service manager to mend";
                    tracing::error!(
                        event = "successor.died", reason = %failure,
                        "{what}: {failure}"
                    );
                    self.log_lost_connections().await;
                    self.refuse_drain_waiter(&failure);
                    return Some(Event::ServiceStopping.into());
                }
                Some(failure.into())
            }
            SuccessorEvent::Stopping => Some(Event::ServiceStopping.into()),
            SuccessorEvent::GivenUp(sockets) => {
                // Whoever has not taken over decides nothing.
                if retired {
                    // Whoever waits in a queue is reset when the last that holds it lets go.
                    let given_up = self.listeners.set.remove_sockets(&sockets);
                    self.plane.accept_backlog(&given_up);
                }
                None
            }
            SuccessorEvent::Cut if retired => Some(Event::CutNow.into()),
            // Nonsense, before it has taken over: we would end, and nobody would serve.
            SuccessorEvent::Cut => {
                let why = "to cut a drain, before it has taken over".to_owned();
                Some(HandoffFailure::Garbage { why }.into())
            }
            SuccessorEvent::Asked => {
                self.report_to_successor();
                None
            }
            SuccessorEvent::Reported => {
                self.reported();
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

    /// The end of an older generation is in order if it has said so itself; which may have been to
    /// another head: one that had ended when this one took the line is not known here, and one that
    /// ended while another was the head is left to that.
    fn say_if_it_died(&self, generation: Generation, last: Option<&Report>) {
        match last.map(|last| (last.state, last.connections)) {
            Some((GenerationState::Stopped | GenerationState::Unknown, _)) => {}
            Some((_, Some(Connections { open, .. }))) => tracing::error!(
                event = "generation.died", died = %generation, open,
                "generation {generation} has died, and with it what was left of the {open} connections that it had when it was last heard"
            ),
            None if generation.next() != self.process.generation => {}
            Some((_, None)) | None => {
                tracing::error!(
                    event = "generation.died", died = %generation,
                    "generation {generation} has died, and with it what it still served"
                );
            }
        }
    }
}
