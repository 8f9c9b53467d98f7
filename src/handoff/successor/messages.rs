//! This module handles the messages that a successor sends over its channel.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::super::message::Message;
use super::super::packet::Received;
use super::super::successor_event::{SuccessorEvent, SuccessorStage};
use super::Successor;
use crate::error::HandoffFailure;
use crate::sys::fd::FIRST_PASSED;
use crate::text::one_line;

impl Successor {
    pub(super) fn take(&mut self, received: Received) -> Option<SuccessorEvent> {
        if self.stage == SuccessorStage::Released {
            return Self::take_after_release(received);
        }
        let lost = |failure| Some(SuccessorEvent::Lost(failure));
        let exec = |source| HandoffFailure::Exec { program: self.program.clone(), source };
        match received {
            Received::Message(Message::Born) => {
                self.channel.follow_sender();
                None
            }
            Received::Message(Message::Ready { closed, replaced }) => {
                Some(self.become_ready(&closed, &replaced))
            }
            Received::Message(Message::ForkFailed { errno }) => {
                lost(HandoffFailure::Fork { source: io::Error::from_raw_os_error(errno) })
            }
            Received::Message(Message::ExecFailed { errno }) => {
                lost(exec(io::Error::from_raw_os_error(errno)))
            }
            Received::Message(Message::Failed { reason }) => {
                lost(HandoffFailure::Refused { reason: one_line(&reason) })
            }
            Received::Message(Message::Rollback { reason }) if reason.is_empty() => {
                lost(HandoffFailure::ToldToStop)
            }
            Received::Message(Message::Rollback { reason }) => {
                lost(HandoffFailure::GivenBack { reason: one_line(&reason) })
            }
            Received::Message(Message::Extend { milliseconds }) => {
                Some(SuccessorEvent::NeedsTime(Duration::from_millis(milliseconds)))
            }
            Received::Message(Message::Stopping) => Some(SuccessorEvent::Stopping),
            Received::Message(Message::Cut) => Some(SuccessorEvent::Cut),
            Received::Message(Message::GivenUp { sockets }) => {
                Some(SuccessorEvent::GivenUp(sockets))
            }
            Received::Message(Message::Ask) => Some(SuccessorEvent::Asked),
            // Ignore a file descriptor that the successor attached by mistake. Dropping the
            // descriptor closes it.
            Received::Message(message) | Received::Passed(message, _) => self.take_report(message),
            Received::Garbage(why) => lost(HandoffFailure::Garbage { why: one_line(&why) }),
            // Ignore the end of the channel here, because [`Successor::next`] reports the end of
            // the successor.
            Received::End => None,
        }
    }

    /// Handles a packet from a successor that has taken over, while the whole service stops.
    /// Ignores messages that say the successor is ready or has failed.
    fn take_after_release(received: Received) -> Option<SuccessorEvent> {
        match received {
            Received::Message(Message::Ask) => Some(SuccessorEvent::Asked),
            Received::Message(Message::Cut) => Some(SuccessorEvent::Cut),
            Received::Message(Message::GivenUp { sockets }) => {
                Some(SuccessorEvent::GivenUp(sockets))
            }
            Received::Message(_) | Received::Passed(..) => None,
            Received::Garbage(_) | Received::End => Some(SuccessorEvent::Ended),
        }
    }

    /// Marks the successor as ready. `closed` and `replaced` contain the file descriptor numbers of
    /// the sockets in the successor.
    fn become_ready(&mut self, closed: &[RawFd], replaced: &[RawFd]) -> SuccessorEvent {
        // Treat the sender of the ready message as the successor. It may not be the process that
        // was started, because a wrapper script may have forked it.
        self.channel.follow_sender();
        self.stage = SuccessorStage::Ready;
        let place =
            |descriptor: &RawFd| usize::try_from(descriptor.checked_sub(FIRST_PASSED)?).ok();
        let given_up = closed.iter().filter_map(place).collect();
        let replaced = replaced.iter().filter_map(place).collect();
        SuccessorEvent::Ready { pid: self.pid(), given_up, replaced }
    }

    /// Takes a status report of the successor, and ignores any other message.
    fn take_report(&mut self, message: Message) -> Option<SuccessorEvent> {
        match self.poll.hear(message) {
            Ok(()) => Some(SuccessorEvent::Reported),
            Err(message) => {
                tracing::debug!(
                    event = "message.unexpected",
                    ?message,
                    "ignored an unexpected message from the new process"
                );
                None
            }
        }
    }
}
