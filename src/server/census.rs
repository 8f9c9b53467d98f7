//! Knows every open connection: how many there are, how old the oldest is, what they have carried.
//!
//! One short lock for each connection at its beginning and one at its end; whoever asks pays for the sum. Ending them is
//! not its affair: that is `drain`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::net::Traffic;
use crate::report::Connections;

/// All open connections of a server. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Census(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    /// In the order in which they came: the first is the oldest.
    open: BTreeMap<u64, Entry>,
    next: u64,
    /// Bytes that those have carried that have ended.
    carried: u64,
}

#[derive(Debug)]
struct Entry {
    since: Instant,
    traffic: Arc<Traffic>,
}

/// Keeps a connection in the census for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted {
    census: Census,
    number: u64,
    since: Instant,
}

impl Census {
    /// Enters a connection that began at `since`.
    pub(super) fn enter(&self, since: Instant, traffic: Arc<Traffic>) -> Counted {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        entries.open.insert(number, Entry { since, traffic });
        Counted { census: self.clone(), number, since }
    }

    /// How they stand now.
    pub(super) fn connections(&self) -> Connections {
        let entries = self.lock();
        let carried = entries.open.values().map(|entry| carried(&entry.traffic)).sum::<u64>();
        let oldest = entries.open.values().next().map(|entry| entry.since.elapsed().as_millis());
        Connections {
            open: entries.open.len() as u64,
            oldest_ms: oldest.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            carried: entries.carried + carried,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing panics while it is held; if something did, the entries would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// When the connection began.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut entries = self.census.lock();
        if let Some(entry) = entries.open.remove(&self.number) {
            entries.carried += carried(&entry.traffic);
        }
    }
}

fn carried(traffic: &Traffic) -> u64 {
    traffic.received() + traffic.sent()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_is_the_one_that_came_first_and_is_still_there() {
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let census = Census::default();
        let first = census.enter(ago(3000), Arc::default());
        let second = census.enter(ago(1000), Arc::default());
        let Connections { open, oldest_ms, carried } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000), carried), (2, Some(3), 0));
        drop(first);
        let Connections { open, oldest_ms, .. } = census.connections();
        assert_eq!((open, oldest_ms.map(|age| age / 1_000_000)), (1, Some(1)));
        drop(second);
        assert_eq!(census.connections(), Connections::default());
    }
}
