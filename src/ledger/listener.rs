//! Counts the connections of a listener for status reports: how many are open, how many bytes they
//! transfer, and how they end.
//!
//! In the built-in server, each worker has a ledger (list of connections) for each listener. A
//! status report adds up all ledgers. This module does not end connections; the module `drain`
//! does.

use tokio::time::Instant;

use super::{Ledger, LedgerEntry, LedgerSums};
use crate::report::{Connections, ListenerCounters};

/// The connections and counters of one listener. The note on each connection is its start time.
pub(crate) type ListenerLedger = Ledger<ListenerEvents, Instant>;

/// The entry of one open connection in the list of its listener.
pub(crate) type ListenerEntry = LedgerEntry<ListenerEvents, Instant>;

/// The counters of a listener that its [`Ledger`] does not keep by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ListenerEvents {
    /// The listener's counters. Fields that the ledger keeps by itself, such as `accepted`, stay
    /// zero here. `limited` counts only shortages of file descriptors, because the module `limit`
    /// counts how often the listener is full.
    pub(crate) counters: ListenerCounters,
    /// The value of `counters.carried` when the last drain began, plus the connections that were
    /// counted as lost since then.
    carried_before: u64,
    /// Whether the successor that got connections in the last drain has died. A move that is
    /// counted only after its death counts as a lost connection too.
    successor_is_lost: bool,
}

impl ListenerEvents {
    /// Counts a connection that has moved to the successor.
    pub(crate) const fn carried(&mut self) {
        self.counters.carried += 1;
        if self.successor_is_lost {
            self.carried_before += 1;
            self.counters.lost += 1;
        }
    }

    /// Records that a drain has begun. If the successor dies later, the connections that have moved
    /// to it since this call count as lost.
    pub(crate) const fn begin_drain(&mut self) {
        self.carried_before = self.counters.carried;
        self.successor_is_lost = false;
    }

    /// Records that the successor has died. Returns how many connections have moved to it since the
    /// drain began. These connections are now lost.
    pub(crate) const fn successor_lost(&mut self) -> u64 {
        let lost = self.counters.carried - self.carried_before;
        self.carried_before = self.counters.carried;
        self.counters.lost += lost;
        self.successor_is_lost = true;
        lost
    }
}

/// Returns the number and age of the open connections in all `ledgers`, and the traffic of all
/// connections, for a status report. `oldest` is when the oldest connection began that no ledger
/// lists, if there is one.
pub(crate) fn open_connections<'a>(
    ledgers: impl IntoIterator<Item = &'a ListenerLedger>,
    oldest: Option<Instant>,
) -> Connections {
    let all = ledgers.into_iter().map(ListenerLedger::connections);
    let unlisted = Connections { oldest_ms: age_ms(oldest), ..Connections::default() };
    all.fold(unlisted, |sum, one| Connections {
        open: sum.open + one.open,
        oldest_ms: sum.oldest_ms.max(one.oldest_ms),
        transferred: sum.transferred + one.transferred,
    })
}

fn age_ms(since: Option<Instant>) -> Option<u64> {
    since.map(|since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX))
}

impl ListenerLedger {
    /// Returns the number and age of the open connections, and the traffic of all connections, for
    /// a status report.
    pub(crate) fn connections(&self) -> Connections {
        let LedgerSums { active, received, sent, least_note, .. } = self.sums();
        Connections { open: active, oldest_ms: age_ms(least_note), transferred: received + sent }
    }

    /// Returns the counters of all connections so far, including open ones.
    pub(crate) fn counters(&self) -> ListenerCounters {
        let LedgerSums { opened: accepted, active, received, sent, counters, .. } = self.sums();
        ListenerCounters { accepted, active, received, sent, ..counters.counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Source;
    use crate::net::{ByteCounts, Traffic};
    use std::sync::Arc;
    use std::time::Duration;

    /// The reported age is the age of the oldest open connection.
    #[test]
    fn the_oldest_open_connection_determines_the_age() {
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let ledger = ListenerLedger::default();
        let [first, second] =
            [3000, 1000].map(|age| ledger.enter(Source::New, &Arc::default(), ago(age)));
        let Connections { open, oldest_ms, transferred } = ledger.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), transferred), (2, Some(3), 0));
        drop(first);
        let Connections { open, oldest_ms, .. } = ledger.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000)), (1, Some(1)));
        second.end(|events| events.counters.cut += 1);
        assert_eq!(
            ledger.counters(),
            ListenerCounters { accepted: 2, cut: 1, ..ListenerCounters::default() }
        );
        assert_eq!(ledger.connections(), Connections::default());
    }

    /// A connection that moved here from the predecessor keeps its age. Only the bytes that it
    /// transfers in this process are counted.
    #[test]
    fn a_carried_connection_keeps_its_age() {
        let (ledger, now) = (ListenerLedger::default(), Instant::now());
        let _accepted = ledger.enter(Source::New, &Arc::default(), now);
        let before = now - Duration::from_secs(1000);
        let carried = ledger.enter(
            Source::Carried,
            &Arc::new(Traffic::so_far(ByteCounts { received: 7, sent: 8 })),
            before,
        );
        let Connections { open, oldest_ms, transferred } = ledger.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), transferred), (2, Some(1), 0));
        ledger.count(ListenerEvents::begin_drain);
        carried.count(|events| events.counters.refused += 1);
        carried.end(ListenerEvents::carried);
        let counters = ledger.counters();
        assert_eq!(
            (counters.accepted, counters.carried, counters.refused, counters.received),
            (1, 1, 1, 0)
        );
        let lost = || ledger.count(ListenerEvents::successor_lost);
        assert_eq!((lost(), lost(), ledger.counters().lost), (1, 0, 1));
    }

    /// If the successor dies, a connection that moved to it counts as lost, even if the move is
    /// counted only after the death.
    #[test]
    fn a_connection_counted_after_the_successors_death_is_lost() {
        let ledger = ListenerLedger::default();
        let [early, late] =
            [(); 2].map(|()| ledger.enter(Source::New, &Arc::default(), Instant::now()));
        ledger.count(ListenerEvents::begin_drain);
        early.end(ListenerEvents::carried);
        assert_eq!(ledger.count(ListenerEvents::successor_lost), 1);
        late.end(ListenerEvents::carried);
        assert_eq!((ledger.counters().carried, ledger.counters().lost), (2, 2));
        ledger.count(ListenerEvents::begin_drain);
        assert_eq!(ledger.count(ListenerEvents::successor_lost), 0);
    }
}
