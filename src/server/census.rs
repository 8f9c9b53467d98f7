//! The census of a listener: the list of its open connections, with the age and the transferred
//! bytes of each.
//!
//! Each worker has a separate census for each listener. A connection locks it briefly when it
//! begins and when it ends. A status request adds up the numbers of all open connections. This
//! module does not end connections; the module `drain` does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::limit::Permit;
use super::workers::Load;
use crate::net::Traffic;
use crate::report::{Connections, ListenerCounters};

/// The open connections of one listener on one worker, with their counters. Clones share the same
/// data.
#[derive(Clone, Debug, Default)]
pub(super) struct Census(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    /// The open connections, oldest first. The key is the time when the connection began, and a
    /// number that differs for connections that began at the same time.
    open: BTreeMap<(Instant, u64), Arc<Traffic>>,
    next: u64,
    /// The counters of all connections so far, with the bytes of connections that have ended. When
    /// a connection arrives from the predecessor, the bytes that the predecessor has already
    /// counted are subtracted. The byte counters may therefore wrap below zero until the bytes of
    /// the open connections are added.
    sums: ListenerCounters,
    /// How many connections had moved to successors when the last drain began.
    carried_before: u64,
    /// Whether the successor of the last drain has died. If a connection that moved to this
    /// successor is counted only after its death, it counts as lost too.
    successor_is_lost: bool,
}

/// The origin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A listener of this process accepted the connection.
    Accepted,
    /// The connection moved here from the predecessor, which has already counted it as accepted.
    Carried,
}

/// The entry of one connection in the census, the list of open connections. Dropping this value
/// removes the entry.
#[derive(Debug)]
pub(super) struct CensusEntry {
    census: Census,
    number: u64,
    since: Instant,
    end: EntryEnd,
    /// The permit of this connection under the listener's connection limit.
    _place: Option<Permit>,
    /// The share of this connection in the load of its worker. Dropping it lowers the load.
    _load: Load,
}

/// How a connection ended. Each variant has its own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryEnd {
    /// The connection ended before a drain asked it to end. Only the number of accepted connections
    /// includes it.
    Served,
    /// The connection finished after it was asked to end by a drain.
    Drained,
    /// The connection moved to the successor, which now serves it.
    Carried,
    /// This process cut the connection.
    Cut,
}

impl Census {
    /// Adds a connection that began at `since` to the list of open connections.
    pub(super) fn enter(
        &self,
        since: Instant,
        came: Source,
        traffic: Arc<Traffic>,
        load: Load,
        place: Option<Permit>,
    ) -> CensusEntry {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        match came {
            Source::Accepted => entries.sums.accepted += 1,
            Source::Carried => {
                entries.sums.received = entries.sums.received.wrapping_sub(traffic.received());
                entries.sums.sent = entries.sums.sent.wrapping_sub(traffic.sent());
            }
        }
        entries.open.insert((since, number), traffic);
        CensusEntry {
            census: self.clone(),
            number,
            since,
            end: EntryEnd::Served,
            _place: place,
            _load: load,
        }
    }

    /// Counts that the listener has paused accepting. The reason is its connection limit, or a lack
    /// of file descriptors.
    pub(super) fn limited(&self) {
        self.lock().sums.limited += 1;
    }

    /// Records that a drain has begun. If the successor dies later, the connections that have moved
    /// there since this call count as lost.
    pub(super) fn begin_drain(&self) {
        let mut entries = self.lock();
        entries.carried_before = entries.sums.carried;
        entries.successor_is_lost = false;
    }

    /// Records that the successor has died. Returns how many connections had moved there since the
    /// drain began, because these connections are now lost.
    pub(super) fn successor_lost(&self) -> u64 {
        let mut entries = self.lock();
        let lost = entries.sums.carried - entries.carried_before;
        entries.carried_before = entries.sums.carried;
        entries.sums.lost += lost;
        entries.successor_is_lost = true;
        lost
    }

    /// Returns the number of open connections.
    pub(super) fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// Returns the number, age and traffic of the open connections, for a status report.
    pub(super) fn connections(&self) -> Connections {
        let entries = self.lock();
        let oldest = entries.open.keys().next().map(|(since, _)| since.elapsed().as_millis());
        let ListenerCounters { active, received, sent, .. } = entries.counters();
        Connections {
            open: active,
            oldest_ms: oldest.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            transferred: received + sent,
        }
    }

    /// Returns the counters of all connections so far, including open ones.
    pub(super) fn counters(&self) -> ListenerCounters {
        self.lock().counters()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Use the data even if a thread panicked while it held the lock. No code panics there, and
        // the data would still be consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn counters(&self) -> ListenerCounters {
        let active = self.open.len() as u64;
        self.open.values().fold(ListenerCounters { active, ..self.sums }, with)
    }
}

/// Returns `sums` with the bytes of one more connection added.
fn with(sums: ListenerCounters, traffic: &Arc<Traffic>) -> ListenerCounters {
    let (received, sent) =
        (sums.received.wrapping_add(traffic.received()), sums.sent.wrapping_add(traffic.sent()));
    ListenerCounters { received, sent, ..sums }
}

impl CensusEntry {
    /// Returns when the connection began.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// Counts that the successor refused this connection.
    pub(super) fn refused(&self) {
        self.census.lock().sums.refused += 1;
    }

    /// Removes the connection from the list of open connections, and counts how it ended.
    pub(super) fn end(mut self, end: EntryEnd) {
        self.end = end;
    }
}

impl Drop for CensusEntry {
    fn drop(&mut self) {
        let mut entries = self.census.lock();
        if let Some(traffic) = entries.open.remove(&(self.since, self.number)) {
            entries.sums = with(entries.sums, &traffic);
        }
        match self.end {
            EntryEnd::Served => {}
            EntryEnd::Carried => {
                entries.sums.carried += 1;
                if entries.successor_is_lost {
                    entries.carried_before += 1;
                    entries.sums.lost += 1;
                }
            }
            EntryEnd::Drained => entries.sums.drained += 1,
            EntryEnd::Cut => entries.sums.cut += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::workers::Workers;
    use super::*;
    use std::time::Duration;

    /// The census, the list of open connections, reports the age of the oldest open connection.
    #[test]
    fn the_oldest_open_connection_determines_the_age() {
        let worker = Workers::start(std::num::NonZeroUsize::MIN).unwrap();
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let census = Census::default();
        let first =
            census.enter(ago(3000), Source::Accepted, Arc::default(), worker.all()[0].load(), None);
        let second =
            census.enter(ago(1000), Source::Accepted, Arc::default(), worker.all()[0].load(), None);
        let Connections { open, oldest_ms, transferred } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), transferred), (2, Some(3), 0));
        drop(first);
        let Connections { open, oldest_ms, .. } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000)), (1, Some(1)));
        second.end(EntryEnd::Cut);
        assert_eq!(
            census.counters(),
            ListenerCounters { accepted: 2, cut: 1, ..ListenerCounters::default() }
        );
        assert_eq!(census.connections(), Connections::default());
    }

    /// A connection that moved here from the predecessor keeps its age. Only the bytes that it
    /// transfers in this process are counted.
    #[test]
    fn a_carried_connection_keeps_its_age() {
        let worker = Workers::start(std::num::NonZeroUsize::MIN).unwrap();
        let (census, load) = (Census::default(), || worker.all()[0].load());
        let now = Instant::now();
        let _accepted = census.enter(now, Source::Accepted, Arc::default(), load(), None);
        let before = now - Duration::from_secs(1000);
        let traffic = Arc::new(Traffic::so_far(7, 8));
        let taken = census.enter(before, Source::Carried, Arc::clone(&traffic), load(), None);
        let Connections { open, oldest_ms, transferred } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), transferred), (2, Some(1), 0));
        census.begin_drain();
        taken.refused();
        taken.end(EntryEnd::Carried);
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
