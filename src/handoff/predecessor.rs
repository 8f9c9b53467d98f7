//! Holds the channels to the generations before this one: the predecessor, and those that still
//! drain.
//!
//! Every generation keeps, until it ends, its end of the channel to each older one that lives, and
//! hands a copy to its successor at birth. So the newest generation can speak to all of them, and
//! an old one sees the end of its channel only when nobody after it is left. What an older
//! generation says that has retired, the head of the line reads and nobody else: several hold the
//! channel, and a packet is read once ([`Attention`]).

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use super::channel::{Channel, Received};
use super::inquiry::Inquiry;
use super::message::{Hangup, Message};
use crate::generation::Generation;
use crate::report::{Counters, Report, Standing};
use crate::text::one_line;

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
    attention: Attention,
}

/// Whom this process listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    /// Its predecessor: another process is the head of the line.
    Predecessor,
    /// All: it is the head itself.
    All,
}

#[derive(Debug)]
struct Older {
    generation: Generation,
    channel: Channel,
    role: Role,
    inquiry: Inquiry,
}

impl Older {
    fn new(generation: Generation, channel: OwnedFd, role: Role) -> io::Result<Self> {
        Ok(Self {
            generation,
            channel: Channel::to_its_maker(channel)?,
            role,
            inquiry: Inquiry::default(),
        })
    }
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
#[derive(Debug)]
pub(crate) enum PredecessorEvent {
    /// The predecessor has retired.
    Committed(Hangup),
    /// The same, and it was told to stop.
    CommittedForGood(Hangup),
    /// The predecessor died before it retired.
    Lost,
    /// The predecessor wants the line to stop.
    Stop,
    /// The predecessor asks how this process stands.
    Asked,
    /// The predecessor knows what those before it have done.
    Counted(Box<Counters>),
    /// The predecessor knows this of one before it that has not ended.
    Draining(Box<Report>),
    /// The predecessor will carry its connections by this channel, in words of this version.
    Carrying(u32, OwnedFd),
    /// One that drains has said how it stands.
    Reported,
    /// One that drained has ended. What it said last, to this process or the predecessor; nothing
    /// if it had ended before.
    Ended(Generation, Option<Box<Report>>),
}

impl Predecessors {
    /// Must be called in a tokio runtime.
    pub(crate) fn connect(inherited: Unconnected, ours: Generation) -> io::Result<Self> {
        let mut older = Vec::new();
        for (generation, channel) in inherited.draining {
            older.push(Older::new(generation, channel, Role::Draining)?);
        }
        if let Some(channel) = inherited.predecessor {
            // Its number is only for the log; the line numbers by one.
            let generation = ours.previous();
            older.push(Older::new(generation, channel, Role::Predecessor)?);
        }
        Ok(Self { older, attention: Attention::Predecessor })
    }

    /// Whether this process is a successor.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.older.iter().any(|older| older.role == Role::Predecessor)
    }

    /// How many older generations live, by the word of the kernel and their own.
    pub(crate) fn count(&self) -> usize {
        self.older.iter().filter(|older| !older.is_over()).count()
    }

    /// Whether the last of them has ended, by the word of those that were listened to.
    pub(crate) fn is_empty(&self) -> bool {
        self.older.is_empty()
    }

    /// Listens to all of them, as the head of the line does.
    pub(crate) fn attend(&mut self) {
        self.attention = Attention::All;
    }

    /// Leaves those that drain to the next head, which hears from now on what they say.
    pub(crate) fn leave(&mut self) {
        self.attention = Attention::Predecessor;
        self.older.iter_mut().for_each(|older| older.inquiry.leave());
    }

    /// Asks those that drain how they stand.
    pub(crate) fn ask(&mut self) {
        for older in &mut self.older {
            if let Some(question) = older.inquiry.question() {
                older.tell(&question);
            }
        }
    }

    /// Takes what one that drains has said to the predecessor, when that was the head.
    pub(crate) fn remember(&mut self, report: Box<Report>) {
        if let Some(older) =
            self.older.iter_mut().find(|older| older.generation == report.generation)
        {
            older.inquiry.remember(report);
        }
    }

    /// What each that drains has said last, the newest first: none when it has never said anything.
    pub(crate) fn reports(&self) -> impl Iterator<Item = (Generation, &Inquiry)> {
        self.older.iter().rev().map(|older| (older.generation, &older.inquiry))
    }

    /// The channels, for a successor to be born with.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (Generation, BorrowedFd<'_>)> {
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

    /// Closes our ends of all channels: from now on the others' lives decide what the older
    /// generations hear.
    pub(crate) fn let_go(&mut self) {
        self.older.clear();
    }

    /// Tells the oldest ones to cut their drain short, so that no more than `keep` go on. Those
    /// that have ended do not count, although their ends may not be heard here yet.
    pub(crate) fn cut_all_but(&self, keep: usize) {
        let left: Vec<_> = self.older.iter().filter(|older| !older.is_over()).collect();
        let excess = left.len().saturating_sub(keep);
        for older in &left[..excess] {
            tracing::warn!(
                event = "drain.cut_short", generation_cut = %older.generation,
                "too many generations: told the oldest to cut its drain short"
            );
            older.tell(&Message::Cut);
        }
    }

    /// The next thing that matters. Pends for ever when no older generation lives. Cancel safe.
    pub(crate) async fn next(&mut self) -> PredecessorEvent {
        poll_fn(|cx| {
            let mut place = 0;
            while let Some(older) = self.older.get_mut(place) {
                let is_heard = older.role == Role::Predecessor || self.attention == Attention::All;
                let Some(received) =
                    is_heard.then(|| older.channel.poll_receive(cx)).and_then(ready)
                else {
                    place += 1;
                    continue;
                };
                match older.take(received) {
                    Taken::Event(event) => return Poll::Ready(event),
                    Taken::Nothing => {}
                    Taken::End(role) => {
                        let gone = self.older.remove(place);
                        return Poll::Ready(match role {
                            Role::Predecessor => PredecessorEvent::Lost,
                            Role::Draining => {
                                PredecessorEvent::Ended(gone.generation, gone.inquiry.into_report())
                            }
                        });
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
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
            Received::Message(Message::CommittedForGood(hangup))
                if self.role == Role::Predecessor =>
            {
                self.role = Role::Draining;
                Taken::Event(PredecessorEvent::CommittedForGood(hangup))
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
            Received::Message(Message::Stop) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Stop)
            }
            Received::Message(Message::Ask) if self.role == Role::Predecessor => {
                Taken::Event(PredecessorEvent::Asked)
            }
            // A descriptor that nobody asked for is closed.
            Received::Message(message) | Received::Passed(message, _) => {
                match self.inquiry.hear(message) {
                    Ok(()) => Taken::Event(PredecessorEvent::Reported),
                    Err(message) => {
                        tracing::debug!(
                            event = "message.unexpected", from = %self.generation, ?message,
                            "passed over a message of an older generation"
                        );
                        Taken::Nothing
                    }
                }
            }
            Received::Garbage(why) => {
                let why = one_line(&why);
                tracing::warn!(
                    event = "message.invalid", from = %self.generation, why,
                    "an older generation sent what is not a message; no longer listening to it"
                );
                Taken::End(self.role)
            }
            Received::End => {
                tracing::debug!(
                    event = "generation.gone", ended = %self.generation,
                    "an older generation is gone"
                );
                Taken::End(self.role)
            }
        }
    }

    /// Whether it has ended, or is about to: it has said its last word. The kernel is asked, for
    /// whoever is not the head does not hear of an end.
    fn is_over(&self) -> bool {
        let has_said_so = self.inquiry.report().is_some_and(|last| last.state == Standing::Stopped);
        has_said_so || self.channel.is_over()
    }

    fn tell(&self, message: &Message) {
        if let Err(error) = self.channel.send(message) {
            tracing::debug!(
                event = "generation.unreachable", to = %self.generation, ?message, %error,
                "an older generation no longer hears"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::channel_pair;

    fn report(state: Standing) -> Box<Report> {
        Box::new(Report::unheard(Generation::FIRST, state))
    }

    #[tokio::test]
    async fn the_last_word_to_the_predecessor_is_the_last_word() {
        let (oldest, to_oldest) = channel_pair().unwrap();
        let (predecessor, to_predecessor) = channel_pair().unwrap();
        let draining = vec![(Generation::FIRST, to_oldest)];
        let inherited = Unconnected { draining, predecessor: Some(to_predecessor) };
        let mut predecessors =
            Predecessors::connect(inherited, Generation::FIRST.next().next()).unwrap();
        let predecessor = Channel::new(predecessor).unwrap();
        predecessor.send(&Message::Draining(report(Standing::Stopped))).unwrap();
        predecessor.send(&Message::Committed(Hangup::None)).unwrap();
        drop(oldest);
        let PredecessorEvent::Draining(word) = predecessors.next().await else {
            panic!("not what was said")
        };
        predecessors.remember(word);
        assert!(matches!(predecessors.next().await, PredecessorEvent::Committed(Hangup::None)));
        predecessors.attend();
        let PredecessorEvent::Ended(Generation::FIRST, Some(last)) = predecessors.next().await
        else {
            panic!("not its end, or no last word")
        };
        assert_eq!(last.state, Standing::Stopped);
    }

    #[tokio::test]
    async fn what_may_have_been_said_to_another_head_is_unknown() {
        let (oldest, to_oldest) = channel_pair().unwrap();
        let inherited =
            Unconnected { draining: vec![(Generation::FIRST, to_oldest)], predecessor: None };
        let mut predecessors = Predecessors::connect(inherited, Generation::FIRST.next()).unwrap();
        predecessors.remember(report(Standing::Retiring));
        predecessors.leave();
        drop(oldest);
        predecessors.attend();
        let PredecessorEvent::Ended(_, Some(last)) = predecessors.next().await else {
            panic!("not its end")
        };
        assert_eq!(last.state, Standing::Unknown);
    }
}
