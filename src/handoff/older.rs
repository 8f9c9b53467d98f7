//! This module handles the messages that an older generation sends over its channel.

use std::io;
use std::os::fd::OwnedFd;

use super::channel::Channel;
use super::message::Message;
use super::packet::Received;
use super::predecessor::PredecessorEvent;
use super::status_poll::StatusPoll;
use crate::generation::Generation;
use crate::report::GenerationState;
use crate::text::one_line;

/// An older generation that is alive.
#[derive(Debug)]
pub(super) struct Older {
    pub(super) generation: Generation,
    pub(super) channel: Channel,
    pub(super) role: Role,
    pub(super) poll: StatusPoll,
}

/// The relation of an older generation to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The older generation still serves. It has not committed the handoff to this process yet.
    Predecessor,
    /// The older generation has handed over. It accepts no new connections and finishes the ones
    /// that it has.
    Draining,
}

/// The result of reading a packet from an older generation.
pub(super) enum Taken {
    Event(PredecessorEvent),
    Nothing,
    End(Role),
}

impl Older {
    pub(super) fn new(generation: Generation, channel: OwnedFd, role: Role) -> io::Result<Self> {
        Ok(Self {
            generation,
            channel: Channel::to_its_maker(channel)?,
            role,
            poll: StatusPoll::default(),
        })
    }

    pub(super) fn take(&mut self, received: Received) -> Taken {
        match received {
            Received::Message(Message::Committed(commit)) if self.role == Role::Predecessor => {
                self.role = Role::Draining;
                Taken::Event(PredecessorEvent::Committed(commit))
            }
            Received::Message(Message::Counted(counters)) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Counted(counters))
            }
            Received::Message(Message::Draining(report)) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Draining(report))
            }
            Received::Passed(Message::Carry { version }, channel)
                if self.role == Role::Predecessor =>
            {
                Taken::Event(PredecessorEvent::Carrying(version, channel))
            }
            Received::Passed(Message::Offer { format }, file) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Offered(format, file))
            }
            Received::Message(Message::Stop) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Stop)
            }
            Received::Message(Message::RolledBack) => Taken::Event(self.rolled_back()),
            Received::Message(Message::Ask) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Asked)
            }
            // Ignore a file descriptor that an older generation attached to this message by
            // mistake. Dropping the descriptor closes it.
            Received::Message(message) | Received::Passed(message, _) => self.take_report(message),
            Received::Garbage(why) => {
                let why = one_line(&why);
                tracing::warn!(
                    event = "message.invalid", from = %self.generation, why,
                    "an older process of this service sent an invalid message, so its further \
                    messages are ignored: {why}"
                );
                Taken::End(self.role)
            }
            Received::End => {
                tracing::debug!(
                    event = "generation.gone", ended = %self.generation,
                    "an older process of this service has ended"
                );
                Taken::End(self.role)
            }
        }
    }

    /// Handles the confirmation of a rollback. It is out of date if the predecessor has ended since
    /// then, or has stopped waiting for this process. Then this process may hold the last listening
    /// sockets.
    fn rolled_back(&self) -> PredecessorEvent {
        if self.channel.is_over() { PredecessorEvent::Lost } else { PredecessorEvent::RolledBack }
    }

    /// Takes a status report of the older generation, and ignores any other message.
    fn take_report(&mut self, message: Message) -> Taken {
        match self.poll.hear(message) {
            Ok(()) => Taken::Event(PredecessorEvent::Reported),
            Err(message) => {
                tracing::debug!(
                    event = "message.unexpected", from = %self.generation, ?message,
                    "ignored an unexpected message from an older process of this service"
                );
                Taken::Nothing
            }
        }
    }

    /// Returns whether this older generation has ended, or has sent its last report and is about to
    /// end. Also asks the kernel, because this process reads the channel only while it is the
    /// active generation.
    pub(super) fn is_over(&self) -> bool {
        let has_said_so =
            self.poll.report().is_some_and(|last| last.state == GenerationState::Stopped);
        has_said_so || self.channel.is_over()
    }

    pub(super) fn tell(&self, message: &Message) {
        if let Err(error) = self.channel.send(message) {
            tracing::debug!(
                event = "generation.unreachable", to = %self.generation, ?message, %error,
                "cannot send a message to an older process of this service: {error}"
            );
        }
    }
}
