//! Ledgers: lists of the open connections, with totals over all connections so far. The server and
//! the proxy keep ledgers for status reports, and store their own counters next to the totals.
//!
//! The bytes of an open connection are counted in one of two ways. A connection that is listed
//! counts them in its own [`Traffic`], without a lock, and a reader adds up all listed connections.
//! A connection that is not listed takes no memory here. Its owner adds its bytes to the totals, as
//! a relay plane does after each turn.

mod limit;
mod listener;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use crate::net::{ByteCounts, Traffic};

pub(crate) use limit::{ConnectionLimit, HeldPermit, Permit};
pub(crate) use listener::{ListenerEntry, ListenerEvents, ListenerLedger, open_connections};

/// A list of the open connections, with totals over all connections so far. `C` holds additional
/// counters of the owner, such as the proxy. `N` is a note that the owner attaches to each open
/// connection, such as its start time. Clones share the same data.
#[derive(Debug)]
pub(crate) struct Ledger<C, N = ()>(Arc<Mutex<Records<C, N>>>);

#[derive(Debug)]
struct Records<C, N> {
    open: Slab<OpenEntry<N>>,
    /// The number of open connections that are not in `open`. Their owners add their bytes to the
    /// totals.
    unlisted: usize,
    opened: u64,
    /// The bytes received and sent on connections that have ended or are not listed. When a
    /// connection moves here from the predecessor, the bytes that the predecessor has already
    /// counted are subtracted. So both numbers can wrap below zero. They become valid when the
    /// bytes of the listed connections are added.
    received: u64,
    sent: u64,
    counters: C,
}

/// An open connection in the list. Status reports read its bytes from `traffic`.
#[derive(Debug)]
struct OpenEntry<N> {
    traffic: Arc<Traffic>,
    note: N,
}

/// The origin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This process accepted the client's connection or connected to the upstream itself.
    New,
    /// The connection moved here from the predecessor, which has already counted the connection and
    /// its bytes up to that point.
    Carried,
}

/// The entry of one open connection in a [`Ledger`]. Dropping this value removes the entry.
#[derive(Debug)]
pub(crate) struct LedgerEntry<C, N = ()> {
    /// `None` after the entry has been removed.
    ledger: Option<Ledger<C, N>>,
    /// The position of the connection in the list of connections, or `None` if it is not listed.
    row: Option<RowIndex>,
}

/// A position in the list of connections, plus one, so that an `Option` needs no more memory.
#[derive(Clone, Copy, Debug)]
struct RowIndex(NonZeroUsize);

impl RowIndex {
    const fn get(self) -> usize {
        self.0.get() - 1
    }
}

/// The totals over all connections in a ledger (list), open and ended, at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LedgerSums<C, N> {
    pub(crate) opened: u64,
    pub(crate) active: u64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// The smallest note on a listed connection, such as the earliest start time. `None` if no
    /// connection is listed.
    pub(crate) least_note: Option<N>,
    pub(crate) counters: C,
}

// `Clone` and `Default` are not derived, because a derive would require `N` to implement these
// traits too.
impl<C, N> Clone for Ledger<C, N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Default, N> Default for Ledger<C, N> {
    fn default() -> Self {
        let (open, unlisted, counters) = (Slab::new(), 0, C::default());
        Self(Arc::new(Mutex::new(Records {
            open,
            unlisted,
            opened: 0,
            received: 0,
            sent: 0,
            counters,
        })))
    }
}

impl<C, N> Ledger<C, N> {
    /// Adds an open connection.
    pub(crate) fn enter(
        &self,
        source: Source,
        traffic: &Arc<Traffic>,
        note: N,
    ) -> LedgerEntry<C, N> {
        let mut records = self.lock();
        match source {
            Source::New => records.opened += 1,
            Source::Carried => records.subtract(traffic.counts()),
        }
        let row = records.insert(traffic, note);
        LedgerEntry { ledger: Some(self.clone()), row }
    }

    /// Counts a new open connection without listing it, which saves memory. The owner adds the
    /// bytes of the connection with [`LedgerEntry::add`].
    #[cfg(feature = "proxy")]
    pub(crate) fn enter_unlisted(&self) -> LedgerEntry<C, N> {
        let mut records = self.lock();
        records.opened += 1;
        records.unlisted += 1;
        LedgerEntry { ledger: Some(self.clone()), row: None }
    }

    /// Calls `change` with the additional counters of the owner, and returns its result.
    pub(crate) fn count<T>(&self, change: impl FnOnce(&mut C) -> T) -> T {
        change(&mut self.lock().counters)
    }

    /// Returns the number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.lock().active()
    }

    fn lock(&self) -> MutexGuard<'_, Records<C, N>> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Copy, N: Copy + Ord> Ledger<C, N> {
    /// Returns the sums over all connections, and the additional counters of the owner.
    pub(crate) fn sums(&self) -> LedgerSums<C, N> {
        let records = self.lock();
        let Records { ref open, opened, received, sent, counters, .. } = *records;
        let least_note = open.iter().map(|(_, connection)| connection.note).min();
        let active = records.active() as u64;
        let sums = LedgerSums { opened, active, received, sent, least_note, counters };
        let traffic = open.iter().map(|(_, connection)| connection.traffic.counts());
        traffic.fold(sums, |sums, counts| LedgerSums {
            received: sums.received.wrapping_add(counts.received),
            sent: sums.sent.wrapping_add(counts.sent),
            ..sums
        })
    }
}

impl<C, N> Records<C, N> {
    fn active(&self) -> usize {
        self.open.len() + self.unlisted
    }

    fn insert(&mut self, traffic: &Arc<Traffic>, note: N) -> Option<RowIndex> {
        let index = self.open.insert(OpenEntry { traffic: Arc::clone(traffic), note });
        NonZeroUsize::new(index + 1).map(RowIndex)
    }

    /// Removes an open connection. If it is in the list, at the position `row`, adds its bytes to
    /// the totals. The bytes of a connection that is not listed are already in the totals.
    fn remove(&mut self, row: Option<RowIndex>) {
        match row.and_then(|row| self.open.try_remove(row.get())) {
            Some(connection) => self.add(connection.traffic.counts()),
            None => self.unlisted -= 1,
        }
    }

    const fn add(&mut self, bytes: ByteCounts) {
        self.received = self.received.wrapping_add(bytes.received);
        self.sent = self.sent.wrapping_add(bytes.sent);
    }

    const fn subtract(&mut self, bytes: ByteCounts) {
        self.received = self.received.wrapping_sub(bytes.received);
        self.sent = self.sent.wrapping_sub(bytes.sent);
    }
}

impl<C, N> LedgerEntry<C, N> {
    /// Calls `change` with the additional counters of the owner.
    pub(crate) fn count(&self, change: impl FnOnce(&mut C)) {
        if let Some(ledger) = &self.ledger {
            ledger.count(change);
        }
    }

    /// Adds bytes that the connection has transferred to the totals. Only for bytes that the
    /// listed [`Traffic`], if there is one, does not count.
    #[cfg(feature = "proxy")]
    pub(crate) fn add(&self, bytes: ByteCounts) {
        if let Some(ledger) = self.ledger.as_ref().filter(|_| bytes != ByteCounts::default()) {
            ledger.lock().add(bytes);
        }
    }

    /// Adds the connection to the list. From now on, status reports read its bytes from `traffic`.
    /// The bytes that `traffic` has counted so far must be in the totals already.
    #[cfg(feature = "proxy")]
    pub(crate) fn list(&mut self, traffic: &Arc<Traffic>, note: N) {
        let Some(ledger) = &self.ledger else { return };
        let mut records = ledger.lock();
        records.remove(self.row.take());
        records.subtract(traffic.counts());
        self.row = records.insert(traffic, note);
    }

    /// Removes the connection from the list, and adds its bytes so far to the totals. From now on,
    /// the owner adds its bytes with [`LedgerEntry::add`].
    #[cfg(feature = "proxy")]
    pub(crate) fn unlist(&mut self) {
        let Some(ledger) = &self.ledger else { return };
        let mut records = ledger.lock();
        records.remove(self.row.take());
        records.unlisted += 1;
    }

    /// Removes the entry of this connection, and calls `change` with the additional counters. Both
    /// happen under one lock, so that no reader sees only one of the changes.
    pub(crate) fn end(mut self, change: impl FnOnce(&mut C)) {
        self.remove(change);
    }

    fn remove(&mut self, change: impl FnOnce(&mut C)) {
        let Some(ledger) = self.ledger.take() else { return };
        let mut records = ledger.lock();
        records.remove(self.row);
        change(&mut records.counters);
    }
}

impl<C, N> Drop for LedgerEntry<C, N> {
    fn drop(&mut self) {
        self.remove(|_| {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sums include open and ended connections. A new connection reuses the entry of an old
    /// one.
    #[test]
    fn open_and_ended_connections_are_summed() {
        let ledger = Ledger::<u64, u8>::default();
        let traffic = Arc::new(Traffic::so_far(ByteCounts { received: 3, sent: 4 }));
        let [first, second] = [7, 5].map(|note| ledger.enter(Source::New, &traffic, note));
        assert_eq!((ledger.open(), ledger.sums().least_note), (2, Some(5)));
        second.end(|counter| *counter += 1);
        let third = ledger.enter(Source::New, &Arc::default(), 9);
        let LedgerSums { opened, active, received, sent, least_note, counters } = ledger.sums();
        assert_eq!((opened, active, received, sent, counters), (3, 2, 6, 8, 1));
        assert_eq!(least_note, Some(7));
        third.count(|counter| *counter += 1);
        drop((first, third));
        let LedgerSums { active, received, sent, least_note, counters, .. } = ledger.sums();
        assert_eq!((active, received, sent, least_note, counters), (0, 6, 8, None, 2));
        assert!(ledger.lock().open.vacant_key() < 2, "an entry is not reused");
    }

    /// A connection may leave the list and return. No byte is lost or counted twice.
    #[cfg(feature = "proxy")]
    #[test]
    fn the_owner_may_add_the_bytes_of_a_connection() {
        let ledger = Ledger::<(), u8>::default();
        let sums = || {
            let LedgerSums { opened, active, received, sent, least_note, .. } = ledger.sums();
            ((opened, active), (received, sent), least_note)
        };
        let bytes = |received, sent| ByteCounts { received, sent };
        let mut one = ledger.enter_unlisted();
        one.add(bytes(3, 4));
        assert_eq!(sums(), ((1, 1), (3, 4), None));
        let traffic = Arc::new(Traffic::so_far(bytes(3, 4)));
        one.list(&traffic, 7);
        one.list(&traffic, 6);
        assert_eq!(sums(), ((1, 1), (3, 4), Some(6)));
        one.unlist();
        one.unlist();
        one.add(bytes(1, 0));
        let other = ledger.enter_unlisted();
        assert_eq!(sums(), ((2, 2), (4, 4), None));
        drop((one, other));
        assert_eq!(sums(), ((2, 0), (4, 4), None));
    }

    /// Bytes that the predecessor has already counted are not counted again, whether the connection
    /// is open or has ended.
    #[test]
    fn bytes_that_the_predecessor_has_counted_are_left_out() {
        let ledger = Ledger::<(), ()>::default();
        let carried = ledger.enter(
            Source::Carried,
            &Arc::new(Traffic::so_far(ByteCounts { received: 7, sent: 8 })),
            (),
        );
        let sums = || {
            let LedgerSums { opened, active, received, sent, .. } = ledger.sums();
            (opened, active, received, sent)
        };
        assert_eq!(sums(), (0, 1, 0, 0));
        drop(carried);
        assert_eq!(sums(), (0, 0, 0, 0));
    }
}
