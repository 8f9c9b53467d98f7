//! Holds the channels to the generations before this one: the predecessor, and those that still drain.
//!
//! Every generation keeps, until it ends, its end of the channel to each older one that lives, and hands a copy to its
//! successor at birth. So the newest generation can speak to all of them, and an old one sees the end of its channel
//! only when nobody after it is left. An older generation that has retired says nothing more but `unknown`, so it
//! does not matter who of those that hold its channel reads that.

use std::future::poll_fn;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::Poll;

use super::channel::{Channel, Received};
use super::message::{Hangup, Message};
use crate::generation::Generation;

/// Generations that drain, each with the channel to it.
pub(super) type Draining = Vec<(Generation, OwnedFd)>;

/// The channels as they were inherited, before there is a runtime.
#[derive(Debug, Default)]
pub(crate) struct Unconnected {
    /// Generations before the predecessor, the oldest first.
    pub(super) draining: Draining,
    /// The predecessor.
    pub(super) predecessor: Option<OwnedFd>,
}

/// All living generations before this one.
#[derive(Debug)]
pub(crate) struct Predecessors {
    /// The oldest first.
    older: Vec<Older>,
}

#[derive(Debug)]
struct Older {
    generation: Generation,
    channel: Channel,
    role: Role,
}

/// What an older generation is to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It serves, and this one is on probation.
    Predecessor,
    /// It has retired.
    Draining,
}

/// What came from an older generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PredecessorEvent {
    /// The predecessor has retired.
    Committed(Hangup),
    /// The same, and it was told to stop.
    CommittedForGood(Hangup),
    /// The predecessor died before it retired.
    Lost,
    /// The predecessor wants the line to stop.
    Stop,
}

impl Predecessors {
    /// Must be called in a tokio runtime.
    pub(crate) fn connect(inherited: Unconnected, ours: Generation) -> io::Result<Self> {
        let mut older = Vec::new();
        for (generation, channel) in inherited.draining {
            older.push(Older { generation, channel: Channel::new(channel)?, role: Role::Draining });
        }
        if let Some(channel) = inherited.predecessor {
            // Its number is only for the log; the line numbers by one.
            let generation = ours.previous();
            older.push(Older { generation, channel: Channel::new(channel)?, role: Role::Predecessor });
        }
        Ok(Self { older })
    }

    /// Whether this process is a successor.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.older.iter().any(|older| older.role == Role::Predecessor)
    }

    /// How many older generations live.
    pub(crate) fn count(&self) -> usize {
        self.older.len()
    }

    /// The channels, for a successor to be born with.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (Generation, BorrowedFd<'_>)> {
        use std::os::fd::AsFd;
        self.older.iter().map(|older| (older.generation, older.channel.as_fd()))
    }

    /// Tells the predecessor. When it cannot hear, its end is on the way and will be received.
    pub(crate) fn tell_predecessor(&self, message: &Message) {
        for older in self.older.iter().filter(|older| older.role == Role::Predecessor) {
            older.tell(message);
        }
    }

    /// Tells all of them.
    pub(crate) fn tell_all(&self, message: &Message) {
        self.older.iter().for_each(|older| older.tell(message));
    }

    /// Closes our ends of all channels: from now on the others' lives decide what the older generations hear.
    pub(crate) fn let_go(&mut self) {
        self.older.clear();
    }

    /// Tells the oldest ones to cut their drain short, so that no more than `keep` go on.
    pub(crate) fn cut_all_but(&self, keep: usize) {
        let excess = self.older.len().saturating_sub(keep);
        for older in &self.older[..excess] {
            tracing::warn!(generation_cut = %older.generation, "too many generations: told the oldest to cut its drain short");
            older.tell(&Message::Cut);
        }
    }

    /// The next thing that matters. Pends for ever when no older generation lives. Cancel safe.
    pub(crate) async fn next(&mut self) -> PredecessorEvent {
        poll_fn(|cx| {
            let mut place = 0;
            while let Some(older) = self.older.get_mut(place) {
                let Poll::Ready(received) = older.channel.poll_receive(cx) else {
                    place += 1;
                    continue;
                };
                match older.take(received) {
                    Taken::Event(event) => return Poll::Ready(event),
                    Taken::Nothing => {}
                    Taken::End(role) => {
                        self.older.remove(place);
                        if role == Role::Predecessor {
                            return Poll::Ready(PredecessorEvent::Lost);
                        }
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// What a packet of an older generation comes to.
enum Taken {
    Event(PredecessorEvent),
    Nothing,
    End(Role),
}

impl Older {
    fn take(&mut self, received: Received) -> Taken {
        match received {
            Received::Message(Message::Committed(hangup)) if self.role == Role::Predecessor => {
                self.role = Role::Draining;
                Taken::Event(PredecessorEvent::Committed(hangup))
            }
            Received::Message(Message::CommittedForGood(hangup)) if self.role == Role::Predecessor => {
                self.role = Role::Draining;
                Taken::Event(PredecessorEvent::CommittedForGood(hangup))
            }
            Received::Message(Message::Stop) if self.role == Role::Predecessor => Taken::Event(PredecessorEvent::Stop),
            Received::Message(message) => {
                tracing::debug!(from = %self.generation, ?message, "passed over a message of an older generation");
                Taken::Nothing
            }
            Received::Garbage(why) => {
                tracing::warn!(from = %self.generation, why, "an older generation sent what is not a message; no longer listening to it");
                Taken::End(self.role)
            }
            Received::End => {
                tracing::debug!(ended = %self.generation, "an older generation has ended");
                Taken::End(self.role)
            }
        }
    }

    fn tell(&self, message: &Message) {
        if let Err(error) = self.channel.send(message) {
            tracing::debug!(to = %self.generation, ?message, %error, "an older generation no longer hears");
        }
    }
}
