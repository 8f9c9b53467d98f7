//! Hears what the generations before and after this one say, and makes events of it: the part of
//! the driver that is about their words.
//!
//! What is done about an event is for the machine to say; what is only to be answered, or to be
//! remembered, is done here.

use std::time::Duration;

use super::data_plane::Plane;
use super::driver::Driver;
use super::machine::{Event, State};
use super::timers::deadline;
use crate::carry;
use crate::error::HandoffFailure;
use crate::generation::Generation;
use crate::handoff::{Message, PredecessorEvent, SuccessorEvent};
use crate::report::{Connections, Report, Standing};
use crate::server::CarryEnd;

/// How long after a successor takes no more connections it may take to hear that it is dead.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

impl<P: Plane> Driver<P> {
    /// No more connections go to the successor. If that takes no more, it may be about to be heard
    /// that it is dead: a process that dies closes one channel before the other. Those that were
    /// not carried are told when it is not.
    pub(super) fn carry_ended(&mut self, end: CarryEnd) -> Option<Event> {
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
    pub(super) fn heard_predecessor(&mut self, event: PredecessorEvent) -> Option<Event> {
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
                self.past = *counters;
                None
            }
            PredecessorEvent::Draining(report) => {
                self.predecessors.remember(report);
                None
            }
            PredecessorEvent::Ended(generation, last) => {
                self.say_if_it_died(generation, last.as_deref());
                if let Some(mut last) = last {
                    last.counters.settle();
                    self.past.add(&last.counters);
                    self.past.fold_departed(&self.plane.counters());
                }
                self.reported();
                None
            }
        }
    }

    /// What the successor's word means.
    pub(super) async fn heard_successor(&mut self, event: SuccessorEvent) -> Option<Event> {
        let retired = matches!(self.state, State::Retiring { .. });
        match event {
            SuccessorEvent::Ready { pid, given_up, replaced } => {
                tracing::info!(
                    event = "successor.ready",
                    successor_pid = pid,
                    "the successor is ready"
                );
                self.listeners.mark_replaced(&replaced);
                self.given_up = given_up;
                Some(Event::SuccessorReady)
            }
            SuccessorEvent::Lost(failure) => {
                // A service manager ends the service when its main process dies, and starts it
                // anew.
                if retired && self.notifier.watches_head() {
                    let what = "the successor is lost, and for the service manager to mend";
                    tracing::error!(
                        event = "successor.died", reason = %failure,
                        "{what}: {failure}"
                    );
                    self.tell_what_is_lost().await;
                    self.refuse_who_waits_for_drain(&failure);
                    return Some(Event::LineStopping);
                }
                let rolled_back = matches!(failure, HandoffFailure::ToldToStop);
                self.failure = Some(failure);
                Some(if rolled_back { Event::SuccessorRolledBack } else { Event::SuccessorLost })
            }
            SuccessorEvent::Stopping => Some(Event::LineStopping),
            SuccessorEvent::GivenUp(sockets) => {
                // Whoever has not taken over decides nothing.
                if retired {
                    // Whoever waits in a queue is reset when the last that holds it lets go.
                    let given_up = self.listeners.remove_sockets(&sockets);
                    self.plane.sweep(&given_up);
                }
                None
            }
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

    /// The end of an older generation is in order if it has said so itself; which may have been to
    /// another head: one that had ended when this one took the line is not known here, and one that
    /// ended while another was the head is left to that.
    fn say_if_it_died(&self, generation: Generation, last: Option<&Report>) {
        match last.map(|last| (last.state, last.connections)) {
            Some((Standing::Stopped | Standing::Unknown, _)) => {}
            Some((_, Some(Connections { open, .. }))) => tracing::error!(
                event = "generation.died", died = %generation, open,
                "generation {generation} has died, and with it what was left of the {open} connections that it had when it was last heard"
            ),
            None if generation.next() != self.generation => {}
            Some((_, None)) | None => {
                tracing::error!(
                    event = "generation.died", died = %generation,
                    "generation {generation} has died, and with it what it still served"
                );
            }
        }
    }

    /// The successor is to be given up, for this reason.
    pub(super) fn expired(&mut self, failure: HandoffFailure) -> Event {
        self.failure = Some(failure);
        Event::SuccessorLost
    }
}
