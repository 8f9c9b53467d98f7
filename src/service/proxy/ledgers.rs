//! The counters of a proxy. Each ledger counts the connections and bytes from one listener to one
//! upstream.
//!
//! The addresses of a host name can change any number of times. To limit memory, the proxy adds the
//! counters of a removed address to the counters of the host name.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::upstream::Upstream;
use super::upstreams::UpstreamPool;
use crate::config::HostPort;
use crate::ledger::{Ledger, LedgerEntry, LedgerSums, Source};
use crate::net::Traffic;
use crate::report::UpstreamCounters;

/// The connection and byte counters of one proxy, by listener. The listeners are in the order in
/// which they were added.
#[derive(Debug, Default)]
pub(super) struct ProxyLedgers(Mutex<Vec<ListenerLedgers>>);

/// The entry of one open connection in the counters of its upstream.
pub(super) type UpstreamEntry = LedgerEntry<FailedAttempts>;

/// The number of failed connection attempts to an upstream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailedAttempts(u64);

/// The ledgers of one listener.
#[derive(Debug)]
struct ListenerLedgers {
    listener: Arc<str>,
    /// Each upstream with its connection and byte counters, keyed by the upstream's id.
    upstreams: BTreeMap<usize, (Arc<Upstream>, Ledger<FailedAttempts>)>,
    /// For each host name, the summed counters of all addresses that the name no longer has.
    departed: BTreeMap<Arc<HostPort>, UpstreamCounters>,
}

impl ProxyLedgers {
    /// Adds a listener, so that the counters list it before its first client arrives.
    pub(super) fn expect(&self, listener: &Arc<str>) {
        of_listener(&mut self.lock(), listener);
    }

    /// Adds an open connection to the counters of its listener and its upstream.
    pub(super) fn enter(
        &self,
        listener: &Arc<str>,
        upstream: &Arc<Upstream>,
        source: Source,
        traffic: &Arc<Traffic>,
    ) -> UpstreamEntry {
        of_listener(&mut self.lock(), listener).ledger(upstream).enter(source, traffic, ())
    }

    /// Counts a new open connection, whose owner counts its bytes.
    pub(super) fn enter_unlisted(
        &self,
        listener: &Arc<str>,
        upstream: &Arc<Upstream>,
    ) -> UpstreamEntry {
        of_listener(&mut self.lock(), listener).ledger(upstream).enter_unlisted()
    }

    /// Counts a failed connection attempt to an upstream.
    pub(super) fn failed(&self, listener: &Arc<str>, upstream: &Arc<Upstream>) {
        of_listener(&mut self.lock(), listener).ledger(upstream).count(|failed| failed.0 += 1);
    }

    /// Returns all upstreams that have counters, including addresses that their host names have
    /// since lost.
    pub(super) fn known(&self) -> Vec<Arc<Upstream>> {
        known(&self.lock()).map(Arc::clone).collect()
    }

    /// Creates counters for the removed upstreams in `gone` under every listener, because
    /// [`ProxyLedgers::fold`] finds only upstreams that have counters.
    pub(super) fn depart(&self, gone: &[Arc<Upstream>]) {
        for of_listener in self.lock().iter_mut() {
            for upstream in gone {
                of_listener.ledger(upstream);
            }
        }
    }

    /// Merges the counters of removed addresses into the counters of their host names. An address
    /// is merged once it has no connections. `current` lists the upstreams that are still in use.
    pub(super) fn fold(&self, current: &[Arc<Upstream>]) {
        let current: HashSet<usize> = current.iter().map(|upstream| upstream.id()).collect();
        let mut all = self.lock();
        let is_gone = |upstream: &&Arc<Upstream>| {
            let is_current = current.contains(&upstream.id());
            upstream.host().is_some() && !is_current && upstream.active.load(Ordering::Relaxed) == 0
        };
        let gone: Vec<_> = known(&all).filter(is_gone).map(Arc::clone).collect();
        for upstream in gone {
            let Some(host) = upstream.host() else { continue };
            // Add the ejections of an upstream only once, although `gone` can list an upstream
            // several times. The swap returns zero for every repetition.
            let ejected = upstream.ejected.swap(0, Ordering::Relaxed);
            for of_listener in all.iter_mut() {
                let ledger = of_listener.upstreams.remove(&upstream.id());
                let sums = ledger.map(|(_, ledger)| counters(&ledger)).unwrap_or_default();
                of_listener
                    .departed
                    .entry(Arc::clone(host))
                    .or_default()
                    .add(UpstreamCounters { ejected, ..sums });
            }
        }
    }

    /// Returns the names of all listeners, separated by commas, for log records.
    pub(super) fn listeners(&self) -> String {
        let all = self.lock();
        let names: Vec<&str> = all.iter().map(|of_listener| &*of_listener.listener).collect();
        names.join(",")
    }

    /// Returns all counters by listener and upstream. Each host name has its own entry, with its
    /// failed lookups and the sums of its removed addresses.
    pub(super) fn counters(
        &self,
        pool: &UpstreamPool,
    ) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        let (all, current) = (self.lock(), pool.current());
        all.iter().map(|one| (one.listener.to_string(), one.counters(pool, &current))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ListenerLedgers>> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the counters of a listener. Creates them if the listener has none yet.
fn of_listener<'a>(
    all: &'a mut Vec<ListenerLedgers>,
    listener: &Arc<str>,
) -> &'a mut ListenerLedgers {
    // Search linearly, because a proxy has few listeners.
    let found = all.iter().position(|one| one.listener == *listener);
    let index = found.unwrap_or(all.len());
    if found.is_none() {
        let (upstreams, departed) = (BTreeMap::new(), BTreeMap::new());
        all.push(ListenerLedgers { listener: Arc::clone(listener), upstreams, departed });
    }
    &mut all[index]
}

/// Returns the upstreams of all listeners. An upstream may occur several times.
fn known(all: &[ListenerLedgers]) -> impl Iterator<Item = &Arc<Upstream>> {
    all.iter().flat_map(|one| one.upstreams.values()).map(|(upstream, _)| upstream)
}

/// Returns the counters of one ledger, except `ejected`, which the upstream itself counts.
fn counters(ledger: &Ledger<FailedAttempts>) -> UpstreamCounters {
    let LedgerSums { opened: connected, active, received, sent, counters, .. } = ledger.sums();
    let FailedAttempts(failed) = counters;
    UpstreamCounters { connected, active, failed, sent, received, ..UpstreamCounters::default() }
}

impl ListenerLedgers {
    /// Returns the counters of an upstream. Creates them if the upstream has none yet.
    fn ledger(&mut self, upstream: &Arc<Upstream>) -> &Ledger<FailedAttempts> {
        let new = || (Arc::clone(upstream), Ledger::default());
        &self.upstreams.entry(upstream.id()).or_insert_with(new).1
    }

    fn counters(
        &self,
        pool: &UpstreamPool,
        current: &[Arc<Upstream>],
    ) -> BTreeMap<String, UpstreamCounters> {
        let mut all: BTreeMap<String, UpstreamCounters> = BTreeMap::new();
        for name in pool.names() {
            let departed = self.departed.get(name.host()).copied().unwrap_or_default();
            let resolve_failures = name.failures();
            all.insert(name.host().to_string(), UpstreamCounters { resolve_failures, ..departed });
        }
        let mut add = |upstream: &Upstream, counters| {
            let ejected = upstream.ejected();
            let sums = all.entry(upstream.label().to_owned()).or_default();
            sums.add(UpstreamCounters { ejected, ..counters });
        };
        for (upstream, ledger) in self.upstreams.values() {
            add(upstream, counters(ledger));
        }
        for upstream in current.iter().filter(|one| !self.upstreams.contains_key(&one.id())) {
            add(upstream, UpstreamCounters::default());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyConfig;
    use crate::net::ByteCounts;

    /// The counters include both open and ended connections, by listener and upstream.
    #[test]
    fn the_live_and_the_ended_are_counted_by_listener_and_upstream() {
        let addresses =
            crate::config::Upstreams::new(vec!["@a".parse().unwrap(), "@b".parse().unwrap()])
                .unwrap();
        let upstreams = UpstreamPool::new(&ProxyConfig::to(addresses));
        let (web, api): (Arc<str>, Arc<str>) = ("web".into(), "api".into());
        let (ledgers, all) = (ProxyLedgers::default(), upstreams.current());
        ledgers.expect(&api);
        let enter = || ledgers.enter(&web, &all[1], Source::New, &Arc::default());
        let (first, second) = (enter(), enter());
        drop(first);
        let third = enter();
        ledgers.failed(&web, &all[0]);
        let counters = ledgers.counters(&upstreams);
        let one = counters["web"]["@b"];
        assert_eq!((one.connected, one.active, one.failed), (3, 2, 0));
        assert_eq!(
            (counters["web"]["@a"].failed, counters["api"]["@a"]),
            (1, UpstreamCounters::default())
        );
        let traffic = Arc::new(Traffic::so_far(ByteCounts { received: 5, sent: 6 }));
        let carried = ledgers.enter(&web, &all[1], Source::Carried, &traffic);
        let one = ledgers.counters(&upstreams)["web"]["@b"];
        assert_eq!((one.connected, one.active, one.received, one.sent), (3, 3, 0, 0));
        drop((second, third, carried));
        assert_eq!(ledgers.counters(&upstreams)["web"]["@b"].active, 0);
        assert_eq!(ledgers.listeners(), "api,web");
    }
}
