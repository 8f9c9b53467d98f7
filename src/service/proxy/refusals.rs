//! Counts of the clients that the proxy has refused because of an invalid or missing PROXY header.
//! The proxy counts all such clients, but logs only some of them.
//!
//! A misconfigured sender can cause thousands of refusals. The proxy therefore writes at most one
//! log record every ten seconds for each listener.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::service::Connection;

/// The shortest time between two log records about refused clients of one listener.
const INTERVAL: Duration = Duration::from_secs(10);

/// The number of refused clients of each listener.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<Arc<str>, Refused>>);

#[derive(Clone, Copy, Debug, Default)]
struct Refused {
    count: u64,
    /// The number of refused clients at the last log record.
    logged: u64,
    /// The time of the last log record.
    logged_at: Option<Instant>,
}

impl Refusals {
    /// Counts a client whose PROXY header could not be received because of `error`. A client that
    /// disconnects without sending a byte is not counted, because load balancers check a server in
    /// this way.
    pub(super) fn refused(&self, connection: &Connection, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::TimedOut) {
            return;
        }
        let Some(refused) = self.count(&connection.listener, Instant::now()) else { return };
        tracing::warn!(
            event = "client.refused", listener = connection.listener(), peer = %connection.peer(),
            refused, reason = %error,
            "refused a client because of its PROXY header: {error} ({refused} clients since the \
            last record)"
        );
    }

    /// Returns the number of refused clients, by listener name.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.lock();
        counts.iter().map(|(listener, refused)| (listener.to_string(), refused.count)).collect()
    }

    /// Counts a refused client. If a log record is due, returns the number of clients refused since
    /// the last record.
    fn count(&self, listener: &Arc<str>, now: Instant) -> Option<u64> {
        let mut counts = self.lock();
        let one = counts.entry(Arc::clone(listener)).or_default();
        one.count += 1;
        if one.logged_at.is_some_and(|at| now.duration_since(at) < INTERVAL) {
            return None;
        }
        one.logged_at = Some(now);
        Some(one.count - std::mem::replace(&mut one.logged, one.count))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Refused>> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The proxy counts every refused client, but logs at most one record per interval for each
    /// listener.
    #[test]
    fn all_are_counted_and_few_are_logged() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let (web, api): (Arc<str>, Arc<str>) = ("web".into(), "api".into());
        assert_eq!(refusals.count(&web, begin), Some(1));
        for _ in 0..1_000 {
            assert_eq!(refusals.count(&web, begin + INTERVAL / 2), None);
        }
        assert_eq!(refusals.count(&api, begin + INTERVAL / 2), Some(1));
        assert_eq!(refusals.count(&web, begin + INTERVAL), Some(1_001));
        assert_eq!(refusals.counts(), BTreeMap::from([("web".into(), 1_002), ("api".into(), 1)]));
    }
}
