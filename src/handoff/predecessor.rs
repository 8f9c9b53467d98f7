//! The channels to all older generations: to the predecessor, and to the generations that are still
//! finishing their last connections.
//!
//! Every generation keeps a channel to each older generation that is alive, and passes copies of
//! these channels to its successor. So the newest generation can reach all older ones. An old
//! generation sees the end of its channel only when no newer generation is left.
//!
//! Several processes hold the channel to a retired generation, but only one process can read each
//! packet. So only the active generation reads these channels (see [`Attention`]).

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use super::message::Message;
use super::older::{Older, Role, Taken};
use super::payload::Commit;
use super::status_poll::StatusPoll;
use crate::generation::Generation;
use crate::report::{Counters, Report};

/// The generations that still finish their last connections, each with the channel to that
/// generation.
pub(super) type Draining = Vec<(Generation, OwnedFd)>;

/// The inherited channels to older generations, before they are registered with a tokio runtime.
#[derive(Debug, Default)]
pub(crate) struct Unconnected {
    /// The channels to the generations before the predecessor that still finish their last
    /// connections, the oldest generation first.
    pub(super) draining: Draining,
    /// The channel to the predecessor. `None` if this process has no predecessor.
    pub(super) predecessor: Option<OwnedFd>,
}

/// All older generations that are alive.
#[derive(Debug)]
pub(crate) struct Predecessors {
    /// The older generations that are alive, the oldest first.
    older: Vec<Older>,
    attention: Attention,
}

/// The older generations whose messages this process reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    /// This process reads only the messages of its predecessor, because another process is the
    /// active generation.
    Predecessor,
    /// This process reads the messages of all older generations, because it is the active
    /// generation.
    All,
}

/// An event from an older generation that this process must handle.
#[derive(Debug)]
pub(crate) enum PredecessorEvent {
    /// The predecessor has committed the handoff, so this process is now the active generation.
    Committed(Commit),
    /// The predecessor died before it committed the handoff, so this process must serve instead.
    Lost,
    /// The predecessor wants this process to stop.
    Stop,
    /// The predecessor has received the rollback of this process, and serves on.
    RolledBack,
    /// The predecessor asks for the status of this process.
    Asked,
    /// The predecessor has sent the counters of the older generations that have ended.
    Counted(Box<Counters>),
    /// The predecessor has passed on the latest status report of an older process, which still
    /// finishes its connections.
    Draining(Box<Report>),
    /// The predecessor will move its connections to this process over the given channel. The number
    /// is the version of the protocol for moving connections.
    Carrying(u32, OwnedFd),
    /// The predecessor passes the state of its server. The text names the format of the state, and
    /// the file contains the state.
    Offered(String, OwnedFd),
    /// A generation that has handed over, but still has connections, has reported its status.
    Reported,
    /// A draining generation has ended. The event contains its last status report, if it sent one
    /// to this process or to the predecessor.
    Ended(Generation, Option<Box<Report>>),
}

impl Predecessors {
    /// Registers the inherited channels with the tokio runtime. Must be called in a tokio runtime.
    pub(crate) fn connect(inherited: Unconnected, ours: Generation) -> io::Result<Self> {
        let mut older = Vec::new();
        for (generation, channel) in inherited.draining {
            older.push(Older::new(generation, channel, Role::Draining)?);
        }
        if let Some(channel) = inherited.predecessor {
            // The generation number is only for the log. The number of a predecessor is always one
            // less than ours.
            let generation = ours.previous();
            older.push(Older::new(generation, channel, Role::Predecessor)?);
        }
        Ok(Self { older, attention: Attention::Predecessor })
    }

    /// Returns whether this process has a predecessor that still serves.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.older.iter().any(|older| older.role == Role::Predecessor)
    }

    /// Returns how many older generations are alive. This function asks the kernel, and it does not
    /// count a generation that has reported its end.
    pub(crate) fn count(&self) -> usize {
        self.older.iter().filter(|older| !older.is_over()).count()
    }

    /// Returns whether all older generations have ended, according to the messages that this
    /// process has read so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.older.is_empty()
    }

    /// Starts to read the messages of all older generations, because this process is now the active
    /// generation.
    pub(crate) fn attend(&mut self) {
        self.attention = Attention::All;
    }

    /// Stops reading the messages of the draining generations, because the next active generation
    /// reads them from now on.
    pub(crate) fn leave(&mut self) {
        self.attention = Attention::Predecessor;
        self.older.iter_mut().for_each(|older| older.poll.leave());
    }

    /// Asks all older generations that have handed over, but still have connections, for their
    /// status.
    pub(crate) fn ask(&mut self) {
        for older in &mut self.older {
            if let Some(question) = older.poll.question() {
                older.tell(&question);
            }
        }
    }

    /// Stores a status report that a draining generation sent to the predecessor while the
    /// predecessor was the active generation.
    pub(crate) fn remember(&mut self, report: Box<Report>) {
        if let Some(older) =
            self.older.iter_mut().find(|older| older.generation == report.generation)
        {
            older.poll.remember(report);
        }
    }

    /// Returns the number and the last known status of each older generation, the newest first.
    pub(crate) fn reports(&self) -> impl Iterator<Item = (Generation, &StatusPoll)> {
        self.older.iter().rev().map(|older| (older.generation, &older.poll))
    }

    /// Returns the channels to older generations, to pass them to a successor.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (Generation, BorrowedFd<'_>)> {
        self.older.iter().map(|older| (older.generation, older.channel.as_fd()))
    }

    /// Sends a message to the predecessor. Ignores a failure, because [`Predecessors::next`]
    /// reports the end of the predecessor.
    pub(crate) fn tell_predecessor(&self, message: &Message) {
        for older in self.older.iter().filter(|older| older.role == Role::Predecessor) {
            older.tell(message);
        }
    }

    /// Sends a message to all older generations.
    pub(crate) fn tell_all(&self, message: &Message) {
        self.older.iter().for_each(|older| older.tell(message));
    }

    /// Closes our ends of the channels to all older generations. Other processes that hold these
    /// channels keep them open.
    pub(crate) fn let_go(&mut self) {
        self.older.clear();
    }

    /// Tells the oldest generations to close their connections early, so that at most `keep` older
    /// generations continue. Generations that have already ended do not count, even if this process
    /// has not read the end of their channels yet.
    pub(crate) fn cut_all_but(&self, keep: usize) {
        let left: Vec<_> = self.older.iter().filter(|older| !older.is_over()).collect();
        let excess = left.len().saturating_sub(keep);
        for older in &left[..excess] {
            tracing::warn!(
                event = "drain.cut_short", generation_cut = %older.generation,
                "told an older process (generation {}) to cut its remaining connections: \
                max_generations is exceeded",
                older.generation
            );
            older.tell(&Message::Cut);
        }
    }

    /// Waits for the next event from an older generation. Waits forever if no older generation is
    /// alive. Cancel safe.
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
                                PredecessorEvent::Ended(gone.generation, gone.poll.into_report())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::channel::Channel;
    use crate::handoff::payload::{OnSuccessorDeath, PendingReload};
    use crate::report::GenerationState;
    use crate::sys::socket::channel_pair;

    fn report(state: GenerationState) -> Box<Report> {
        Box::new(Report::placeholder(Generation::FIRST, state))
    }

    /// If an older generation reported its end to the predecessor, the new active generation also
    /// knows about it, even if the channel closes only after the takeover.
    #[tokio::test]
    async fn a_report_to_the_predecessor_counts_after_the_takeover() {
        let (oldest, to_oldest) = channel_pair().unwrap();
        let (predecessor, to_predecessor) = channel_pair().unwrap();
        let draining = vec![(Generation::FIRST, to_oldest)];
        let inherited = Unconnected { draining, predecessor: Some(to_predecessor) };
        let mut predecessors =
            Predecessors::connect(inherited, Generation::FIRST.next().next()).unwrap();
        let predecessor = Channel::new(predecessor).unwrap();
        predecessor.send(&Message::Draining(report(GenerationState::Stopped))).unwrap();
        let commit = Commit { pending: PendingReload::None, on_death: OnSuccessorDeath::Resume };
        predecessor.send(&Message::Committed(commit)).unwrap();
        drop(oldest);
        let PredecessorEvent::Draining(word) = predecessors.next().await else {
            panic!("expected the report of the oldest generation")
        };
        predecessors.remember(word);
        let heard = predecessors.next().await;
        assert!(matches!(heard, PredecessorEvent::Committed(heard) if heard == commit));
        predecessors.attend();
        let PredecessorEvent::Ended(Generation::FIRST, Some(last)) = predecessors.next().await
        else {
            panic!("expected the end of the oldest generation with its last report")
        };
        assert_eq!(last.state, GenerationState::Stopped);
    }

    /// If a generation ends while another process is active, this process does not know its last
    /// state. The generation may have reported its end to the active process.
    #[tokio::test]
    async fn a_generation_that_may_have_reported_elsewhere_is_unknown() {
        let (oldest, to_oldest) = channel_pair().unwrap();
        let inherited =
            Unconnected { draining: vec![(Generation::FIRST, to_oldest)], predecessor: None };
        let mut predecessors = Predecessors::connect(inherited, Generation::FIRST.next()).unwrap();
        predecessors.remember(report(GenerationState::Retiring));
        predecessors.leave();
        drop(oldest);
        predecessors.attend();
        let PredecessorEvent::Ended(_, Some(last)) = predecessors.next().await else {
            panic!("expected the end of the oldest generation")
        };
        assert_eq!(last.state, GenerationState::Unknown);
    }
}
