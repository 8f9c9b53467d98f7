//! The counters of a proxy, by listener and upstream. They contain the number of open connections,
//! and the traffic of open and ended connections.
//!
//! A connection locks the counters briefly when it begins and when it ends. In between, it counts
//! its bytes in its own counter. A reader of the counters adds the bytes of all open connections.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::upstream::Upstream;
use super::upstreams::UpstreamPool;
use crate::config::HostPort;
use crate::net::Traffic;
use crate::report::UpstreamCounters;

/// The counters of one proxy, for all its listeners and upstreams.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Rows>);

/// One row of counters for each listener, in the order in which the rows were added.
#[derive(Debug, Default)]
struct Rows {
    all: Vec<Row>,
    by_listener: HashMap<Arc<str>, usize>,
}

/// The counters of one listener.
#[derive(Debug)]
struct Row {
    listener: Arc<str>,
    /// The counters of each upstream of this listener, by upstream id.
    cells: BTreeMap<usize, Cell>,
    /// The counters of addresses that a host name no longer has, summed by host name. A sum for
    /// each address would use more and more memory, because the addresses of a name can change any
    /// number of times.
    departed: BTreeMap<Arc<HostPort>, UpstreamCounters>,
}

/// The counters of one listener and one upstream.
#[derive(Debug)]
struct Cell {
    upstream: Arc<Upstream>,
    /// The sums over the ended connections, without `active` and `ejected`. When a connection moves
    /// here from the predecessor, the bytes that the predecessor has counted are subtracted. A sum
    /// can therefore wrap below zero until the bytes of open connections are added.
    sums: UpstreamCounters,
    /// The byte counters of the open connections. `None` is a free place, which a new connection
    /// reuses.
    open: Vec<Option<Arc<Traffic>>>,
    free: Vec<usize>,
}

/// The process that opened an upstream connection: this one or its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This process opened the connection.
    Made,
    /// The predecessor opened and counted the connection, which then moved to this process.
    Carried,
}

/// The entry of one open connection in the counters. Dropping this value removes the entry.
#[derive(Debug)]
pub(super) struct TallyEntry<'a> {
    tally: &'a Tally,
    row: usize,
    upstream: Arc<Upstream>,
    place: usize,
}

impl Tally {
    /// Adds the row of a listener, so that the counters list the listener before its first client
    /// arrives.
    pub(super) fn expect(&self, listener: &Arc<str>) {
        self.lock().row(listener);
    }

    /// Adds an open connection to the counters.
    pub(super) fn enter(
        &self,
        listener: &Arc<str>,
        upstream: &Arc<Upstream>,
        came: Source,
        traffic: &Arc<Traffic>,
    ) -> TallyEntry<'_> {
        let mut rows = self.lock();
        let row = rows.row(listener);
        let Cell { sums, open, free, .. } = rows.all[row].cell(upstream);
        match came {
            Source::Made => sums.connected += 1,
            Source::Carried => {
                sums.sent = sums.sent.wrapping_sub(traffic.sent());
                sums.received = sums.received.wrapping_sub(traffic.received());
            }
        }
        let place = free.pop().unwrap_or(open.len());
        if place == open.len() {
            open.push(None);
        }
        open[place] = Some(Arc::clone(traffic));
        TallyEntry { tally: self, row, upstream: Arc::clone(upstream), place }
    }

    /// Counts a failed connection attempt to an upstream.
    pub(super) fn failed(&self, listener: &Arc<str>, upstream: &Arc<Upstream>) {
        let mut rows = self.lock();
        let row = rows.row(listener);
        rows.all[row].cell(upstream).sums.failed += 1;
    }

    /// Returns all upstreams that have counters. They include addresses that a host name no longer
    /// has.
    pub(super) fn known(&self) -> Vec<Arc<Upstream>> {
        let rows = self.lock();
        rows.all
            .iter()
            .flat_map(|row| row.cells.values())
            .map(|cell| Arc::clone(&cell.upstream))
            .collect()
    }

    /// Adds the removed upstreams in `gone` to every row, so that [`Tally::fold`] later finds them
    /// there.
    pub(super) fn depart(&self, gone: &[Arc<Upstream>]) {
        let mut rows = self.lock();
        for row in &mut rows.all {
            for upstream in gone {
                row.cell(upstream);
            }
        }
    }

    /// Merges the counters of removed addresses into the counters of their host name. An address is
    /// merged once it has no connections. `current` lists the upstreams that are still in use.
    pub(super) fn fold(&self, current: &[Arc<Upstream>]) {
        let current: HashSet<usize> = current.iter().map(|upstream| upstream.id()).collect();
        let mut rows = self.lock();
        let is_gone = |upstream: &Arc<Upstream>| {
            let is_current = current.contains(&upstream.id());
            upstream.host().is_some() && !is_current && upstream.active.load(Ordering::Relaxed) == 0
        };
        let cells = rows.all.iter().flat_map(|row| row.cells.values());
        let gone: Vec<_> = cells.map(|cell| Arc::clone(&cell.upstream)).filter(is_gone).collect();
        for upstream in gone {
            let Some(host) = upstream.host() else { continue };
            // Add the ejections of an upstream only once, although `gone` can list an upstream
            // several times. The swap returns zero for every repetition.
            let ejected = upstream.ejected.swap(0, Ordering::Relaxed);
            for row in &mut rows.all {
                let sums =
                    row.cells.remove(&upstream.id()).map(|cell| cell.sums).unwrap_or_default();
                row.departed
                    .entry(Arc::clone(host))
                    .or_default()
                    .add(UpstreamCounters { ejected, ..sums });
            }
        }
    }

    /// Returns the names of all listeners in the counters, separated by commas, for log records.
    pub(super) fn listeners(&self) -> String {
        let rows = self.lock();
        let names: Vec<&str> = rows.all.iter().map(|row| &*row.listener).collect();
        names.join(",")
    }

    /// Returns all counters by listener and upstream. Each host name has its own entry, with its
    /// failed lookups and the sums of its removed addresses.
    pub(super) fn counters(
        &self,
        upstreams: &UpstreamPool,
    ) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        let (rows, current) = (self.lock(), upstreams.current());
        let by_upstream = |row: &Row| {
            let mut all: BTreeMap<String, UpstreamCounters> = BTreeMap::new();
            for name in upstreams.names() {
                let departed = row.departed.get(name.host()).copied().unwrap_or_default();
                let resolve_failures = name.failures();
                all.insert(
                    name.host().to_string(),
                    UpstreamCounters { resolve_failures, ..departed },
                );
            }
            let mut add =
                |label: &str, counters| all.entry(label.to_owned()).or_default().add(counters);
            for cell in row.cells.values() {
                add(cell.upstream.label(), cell.counters());
            }
            for upstream in
                current.iter().filter(|upstream| !row.cells.contains_key(&upstream.id()))
            {
                add(
                    upstream.label(),
                    UpstreamCounters { ejected: upstream.ejected(), ..UpstreamCounters::default() },
                );
            }
            all
        };
        rows.all.iter().map(|row| (row.listener.to_string(), by_upstream(row))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        // No code panics while it holds the lock. Even if it did, the rows would be consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    /// Returns the index of a listener's row. Adds the row if the listener has none.
    fn row(&mut self, listener: &Arc<str>) -> usize {
        if let Some(row) = self.by_listener.get(listener) {
            return *row;
        }
        let row = self.all.len();
        let (cells, departed) = (BTreeMap::new(), BTreeMap::new());
        self.all.push(Row { listener: Arc::clone(listener), cells, departed });
        self.by_listener.insert(Arc::clone(listener), row);
        row
    }
}

impl Row {
    fn cell(&mut self, upstream: &Arc<Upstream>) -> &mut Cell {
        self.cells.entry(upstream.id()).or_insert_with(|| Cell {
            upstream: Arc::clone(upstream),
            sums: UpstreamCounters::default(),
            open: Vec::new(),
            free: Vec::new(),
        })
    }
}

impl Cell {
    fn counters(&self) -> UpstreamCounters {
        let mut counters = UpstreamCounters { ejected: self.upstream.ejected(), ..self.sums };
        for traffic in self.open.iter().flatten() {
            counters.active += 1;
            counters.sent = counters.sent.wrapping_add(traffic.sent());
            counters.received = counters.received.wrapping_add(traffic.received());
        }
        counters
    }
}

impl TallyEntry<'_> {
    /// Returns the upstream of this connection.
    pub(super) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }
}

impl Drop for TallyEntry<'_> {
    fn drop(&mut self) {
        let mut rows = self.tally.lock();
        let Cell { sums, open, free, .. } = rows.all[self.row].cell(&self.upstream);
        if let Some(traffic) = open.get_mut(self.place).and_then(Option::take) {
            sums.sent = sums.sent.wrapping_add(traffic.sent());
            sums.received = sums.received.wrapping_add(traffic.received());
            free.push(self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::upstreams::UpstreamPool;
    use super::*;
    use crate::config::ProxyConfig;

    /// The counters include both open and ended connections, by listener and upstream.
    #[test]
    fn the_live_and_the_ended_are_counted_by_listener_and_upstream() {
        let addresses =
            crate::config::Upstreams::new(vec!["@a".parse().unwrap(), "@b".parse().unwrap()])
                .unwrap();
        let upstreams = UpstreamPool::new(&ProxyConfig::to(addresses));
        let (web, api): (Arc<str>, Arc<str>) = ("web".into(), "api".into());
        let (tally, all) = (Tally::default(), upstreams.current());
        tally.expect(&api);
        let first = tally.enter(&web, &all[1], Source::Made, &Arc::default());
        let second = tally.enter(&web, &all[1], Source::Made, &Arc::default());
        drop(first);
        let third = tally.enter(&web, &all[1], Source::Made, &Arc::default());
        tally.failed(&web, &all[0]);
        let counters = tally.counters(&upstreams);
        let one = counters["web"]["@b"];
        assert_eq!((one.connected, one.active, one.failed), (3, 2, 0));
        assert_eq!(
            (counters["web"]["@a"].failed, counters["api"]["@a"]),
            (1, UpstreamCounters::default())
        );
        let traffic = Arc::new(Traffic::so_far(5, 6));
        let carried = tally.enter(&web, &all[1], Source::Carried, &traffic);
        let one = tally.counters(&upstreams)["web"]["@b"];
        assert_eq!((one.connected, one.active, one.received, one.sent), (3, 3, 0, 0));
        drop((second, third, carried));
        assert_eq!(tally.counters(&upstreams)["web"]["@b"].active, 0);
        // The new connection has reused the place of an ended one, so the number of places has not
        // grown.
        assert_eq!(tally.lock().all[1].cells[&all[1].id()].open.len(), 3);
    }
}
