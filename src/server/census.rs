//! Knows the connections of one listener: which are open, how old the oldest is, what all of them
//! have carried.
//!
//! One short lock for each connection at its beginning and one at its end, and each thread that
//! accepts has a census of its own; whoever asks pays for the sum. Ending connections is not its
//! affair: that is `drain`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::places::Place;
use super::workers::Load;
use crate::net::Traffic;
use crate::report::{Connections, ListenerCounters};

/// The connections of one listener that one thread has accepted. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Census(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    /// The oldest first; no two have the same number.
    open: BTreeMap<(Instant, u64), Arc<Traffic>>,
    next: u64,
    /// All that came; and what those have carried that have ended. What one had carried already
    /// when it was taken over is counted elsewhere, and taken off here: without those that are open
    /// the sums may be below zero, and wrap.
    sums: ListenerCounters,
    /// How many had been taken over by a successor when the last drain began.
    carried_before: u64,
    /// Whether that successor is dead: of what it had taken over more may be heard.
    successor_is_lost: bool,
}

/// How a connection came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// It was accepted.
    Accepted,
    /// It was taken over from the predecessor, which has counted it.
    Carried,
}

/// Keeps a connection in the census for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted {
    census: Census,
    number: u64,
    since: Instant,
    end: End,
    /// Its place among those that the listener may have at once.
    _place: Option<Place>,
    /// It is one of its worker's.
    _load: Load,
}

/// What is counted of how a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// While nobody drained.
    Served,
    /// In a drain, by itself.
    Drained,
    /// Not at all: the successor has it.
    Carried,
    /// By us.
    Cut,
}

impl Census {
    /// Enters a connection that began at `since`.
    pub(super) fn enter(
        &self,
        since: Instant,
        came: Came,
        traffic: Arc<Traffic>,
        load: Load,
        place: Option<Place>,
    ) -> Counted {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        match came {
            Came::Accepted => entries.sums.accepted += 1,
            Came::Carried => {
                entries.sums.received = entries.sums.received.wrapping_sub(traffic.received());
                entries.sums.sent = entries.sums.sent.wrapping_sub(traffic.sent());
            }
        }
        entries.open.insert((since, number), traffic);
        Counted {
            census: self.clone(),
            number,
            since,
            end: End::Served,
            _place: place,
            _load: load,
        }
    }

    /// Nobody is accepted for now, because there are as many as there may be.
    pub(super) fn limited(&self) {
        self.lock().sums.limited += 1;
    }

    /// A drain begins: from now on those are counted that a successor takes over.
    pub(super) fn begin_drain(&self) {
        let mut entries = self.lock();
        entries.carried_before = entries.sums.carried;
        entries.successor_is_lost = false;
    }

    /// The successor has died, and with it those that it had taken over since: how many they were.
    pub(super) fn successor_lost(&self) -> u64 {
        let mut entries = self.lock();
        let lost = entries.sums.carried - entries.carried_before;
        entries.carried_before = entries.sums.carried;
        entries.sums.lost += lost;
        entries.successor_is_lost = true;
        lost
    }

    /// How many are open now.
    pub(super) fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// How they stand now.
    pub(super) fn connections(&self) -> Connections {
        let entries = self.lock();
        let oldest = entries.open.keys().next().map(|(since, _)| since.elapsed().as_millis());
        let ListenerCounters { active, received, sent, .. } = entries.counters();
        Connections {
            open: active,
            oldest_ms: oldest.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            carried: received + sent,
        }
    }

    /// What they have done until now.
    pub(super) fn counters(&self) -> ListenerCounters {
        self.lock().counters()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics while it is held; if something did, the entries would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn counters(&self) -> ListenerCounters {
        let active = self.open.len() as u64;
        self.open.values().fold(ListenerCounters { active, ..self.sums }, with)
    }
}

/// With what one has carried.
fn with(sums: ListenerCounters, traffic: &Arc<Traffic>) -> ListenerCounters {
    let (received, sent) =
        (sums.received.wrapping_add(traffic.received()), sums.sent.wrapping_add(traffic.sent()));
    ListenerCounters { received, sent, ..sums }
}

impl Counted {
    /// When the connection began.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// The successor would not take it.
    pub(super) fn refused(&self) {
        self.census.lock().sums.refused += 1;
    }

    /// Takes it out of the census.
    pub(super) fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut entries = self.census.lock();
        if let Some(traffic) = entries.open.remove(&(self.since, self.number)) {
            entries.sums = with(entries.sums, &traffic);
        }
        match self.end {
            End::Served => {}
            End::Carried => {
                entries.sums.carried += 1;
                if entries.successor_is_lost {
                    entries.carried_before += 1;
                    entries.sums.lost += 1;
                }
            }
            End::Drained => entries.sums.drained += 1,
            End::Cut => entries.sums.cut += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::workers::Workers;
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_is_the_one_that_came_first_and_is_still_there() {
        let worker = Workers::start(std::num::NonZeroUsize::MIN).unwrap();
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let census = Census::default();
        let first =
            census.enter(ago(3000), Came::Accepted, Arc::default(), worker.all()[0].load(), None);
        let second =
            census.enter(ago(1000), Came::Accepted, Arc::default(), worker.all()[0].load(), None);
        let Connections { open, oldest_ms, carried } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), carried), (2, Some(3), 0));
        drop(first);
        let Connections { open, oldest_ms, .. } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000)), (1, Some(1)));
        second.end(End::Cut);
        assert_eq!(
            census.counters(),
            ListenerCounters { accepted: 2, cut: 1, ..ListenerCounters::default() }
        );
        assert_eq!(census.connections(), Connections::default());
    }

    #[test]
    fn what_is_taken_over_is_counted_from_then_on_and_may_be_the_oldest() {
        let worker = Workers::start(std::num::NonZeroUsize::MIN).unwrap();
        let (census, load) = (Census::default(), || worker.all()[0].load());
        let now = Instant::now();
        let _accepted = census.enter(now, Came::Accepted, Arc::default(), load(), None);
        let before = now - Duration::from_secs(1000);
        let traffic = Arc::new(Traffic::so_far(7, 8));
        let taken = census.enter(before, Came::Carried, Arc::clone(&traffic), load(), None);
        let Connections { open, oldest_ms, carried } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), carried), (2, Some(1), 0));
        census.begin_drain();
        taken.refused();
        taken.end(End::Carried);
        let counters = census.counters();
        assert_eq!(
            (counters.accepted, counters.carried, counters.refused, counters.received),
            (1, 1, 1, 0)
        );
        assert_eq!(
            (census.successor_lost(), census.successor_lost(), census.counters().lost),
            (1, 0, 1)
        );
    }
}
