//! The census of a listener, that is, the list of its open connections with their age and the bytes
//! that they have transferred.
//!
//! Each worker has a separate census for each listener. A connection takes a short lock when it
//! begins and when it ends. A status request adds up the open connections. The module `drain`, not
//! this one, ends connections.

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
    /// The open connections, oldest first. The number in the key distinguishes connections that
    /// began at the same time.
    open: BTreeMap<(Instant, u64), Arc<Traffic>>,
    next: u64,
    /// The counts of all connections so far, and the bytes of the connections that have ended. If a
    /// connection came from the predecessor, the bytes that the predecessor has counted are
    /// subtracted when it arrives. The sums may therefore wrap below zero until the open
    /// connections are added.
    sums: ListenerCounters,
    /// How many connections successors had taken over in total when the last drain began.
    carried_before: u64,
    /// Whether the successor of the last drain is dead. Connections that it had taken over may
    /// still be counted later.
    successor_is_lost: bool,
}

/// The origin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A listener of this process accepted the connection.
    Accepted,
    /// The connection came from the predecessor, which has already counted it as accepted.
    Carried,
}

/// The entry of one connection in the census, the list of open connections. Dropping this value
/// removes the entry.
#[derive(Debug)]
pub(super) struct Counted {
    census: Census,
    number: u64,
    since: Instant,
    end: End,
    /// The permit of this connection under the listener's connection limit.
    _place: Option<Permit>,
    /// The share of this connection in its worker's load, given back when this entry is dropped.
    _load: Load,
}

/// How a connection ended, as the counters distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection ended before any drain asked it to end.
    Served,
    /// The connection finished after it was asked to end by a drain.
    Drained,
    /// The connection goes on in the successor, which took it over.
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
    ) -> Counted {
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
        Counted {
            census: self.clone(),
            number,
            since,
            end: End::Served,
            _place: place,
            _load: load,
        }
    }

    /// Counts that the listener has paused accepting, because it was full.
    pub(super) fn limited(&self) {
        self.lock().sums.limited += 1;
    }

    /// Records that a drain has begun. If the successor dies, connections that moved to it from now
    /// on count as lost.
    pub(super) fn begin_drain(&self) {
        let mut entries = self.lock();
        entries.carried_before = entries.sums.carried;
        entries.successor_is_lost = false;
    }

    /// Records that the successor has died. Returns how many connections it had taken over since
    /// the drain began, which are now lost.
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

impl Counted {
    /// Returns when the connection began.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// Counts that the successor refused this connection.
    pub(super) fn refused(&self) {
        self.census.lock().sums.refused += 1;
    }

    /// Removes the connection from the list of open connections, and counts how it ended.
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

    /// The census reports the age of the oldest connection that is still open.
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
        second.end(End::Cut);
        assert_eq!(
            census.counters(),
            ListenerCounters { accepted: 2, cut: 1, ..ListenerCounters::default() }
        );
        assert_eq!(census.connections(), Connections::default());
    }

    /// A connection that the predecessor carried here keeps its age, but only its traffic in this
    /// process is counted.
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
