//! Counts what was passed on, by listener and by upstream: live connections, and the sums of those
//! that have ended.
//!
//! One short lock for each connection at its beginning and one at its end; a live connection counts
//! its own bytes, and whoever asks pays for the sum.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::upstream::Upstream;
use super::upstreams::Upstreams;
use crate::config::HostPort;
use crate::net::Traffic;
use crate::report::UpstreamCounters;

/// What was passed on by one proxy.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Rows>);

/// One row for each listener, in the order in which they were first seen.
#[derive(Debug, Default)]
struct Rows {
    all: Vec<Row>,
    by_listener: HashMap<Arc<str>, usize>,
}

/// By one listener.
#[derive(Debug)]
struct Row {
    listener: Arc<str>,
    /// By the number of the upstream.
    cells: BTreeMap<usize, Cell>,
    /// Sums of addresses that their host name no longer has, by the name. Addresses may come and go
    /// for as long as a process lives: one that is gone has no room of its own.
    departed: BTreeMap<Arc<HostPort>, UpstreamCounters>,
}

/// To one upstream.
#[derive(Debug)]
struct Cell {
    upstream: Arc<Upstream>,
    /// Of connections that have ended; `active` and `ejected` are not counted here. What one had
    /// carried already when it was taken over is counted elsewhere, and taken off here: without
    /// those that are live the sums may be below zero, and wrap.
    sums: UpstreamCounters,
    /// The live ones. A place that is free is taken again before there is a new one.
    open: Vec<Option<Arc<Traffic>>>,
    free: Vec<usize>,
}

/// How a connection to an upstream came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// It was made.
    Made,
    /// It was taken over from the predecessor, which has counted it.
    Carried,
}

/// Keeps a connection in the tally for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted<'a> {
    tally: &'a Tally,
    row: usize,
    upstream: Arc<Upstream>,
    place: usize,
}

impl Tally {
    /// Knows a listener before anybody has come by it.
    pub(super) fn expect(&self, listener: &Arc<str>) {
        self.lock().row(listener);
    }

    /// Enters a connection.
    pub(super) fn enter(
        &self,
        listener: &Arc<str>,
        upstream: &Arc<Upstream>,
        came: Came,
        traffic: &Arc<Traffic>,
    ) -> Counted<'_> {
        let mut rows = self.lock();
        let row = rows.row(listener);
        let Cell { sums, open, free, .. } = rows.all[row].cell(upstream);
        match came {
            Came::Made => sums.connected += 1,
            Came::Carried => {
                sums.sent = sums.sent.wrapping_sub(traffic.sent());
                sums.received = sums.received.wrapping_sub(traffic.received());
            }
        }
        let place = free.pop().unwrap_or(open.len());
        if place == open.len() {
            open.push(None);
        }
        open[place] = Some(Arc::clone(traffic));
        Counted { tally: self, row, upstream: Arc::clone(upstream), place }
    }

    /// Counts one that was not.
    pub(super) fn failed(&self, listener: &Arc<str>, upstream: &Arc<Upstream>) {
        let mut rows = self.lock();
        let row = rows.row(listener);
        rows.all[row].cell(upstream).sums.failed += 1;
    }

    /// All upstreams that have been met, also those whose host name no longer has their address.
    pub(super) fn known(&self) -> Vec<Arc<Upstream>> {
        let rows = self.lock();
        rows.all
            .iter()
            .flat_map(|row| row.cells.values())
            .map(|cell| Arc::clone(&cell.upstream))
            .collect()
    }

    /// Remembers upstreams whose host name no longer has their address, until they are folded.
    pub(super) fn depart(&self, gone: &[Arc<Upstream>]) {
        let mut rows = self.lock();
        for row in &mut rows.all {
            for upstream in gone {
                row.cell(upstream);
            }
        }
    }

    /// Adds the sums of addresses that their host name no longer has, and that have no connection
    /// left, to those of the name. `current` are the upstreams that clients may be passed on to.
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
            // Several listeners may have met it, and it is in the list for each.
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

    /// All listeners that are known, for whoever names them.
    pub(super) fn listeners(&self) -> String {
        let rows = self.lock();
        let names: Vec<&str> = rows.all.iter().map(|row| &*row.listener).collect();
        names.join(",")
    }

    /// How it stands, by listener and by upstream. A host name is there as well: with how often it
    /// did not resolve, and with the sums of addresses that it no longer has.
    pub(super) fn counters(
        &self,
        upstreams: &Upstreams,
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
        // Nothing panics while it is held; if something did, the rows would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    /// Returns the place of a listener's row, which is made if there is none.
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

impl Counted<'_> {
    /// Which of the upstreams it is with.
    pub(super) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }
}

impl Drop for Counted<'_> {
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
    use super::super::upstreams::Upstreams;
    use super::*;
    use crate::config::ProxyConfig;

    #[test]
    fn the_live_and_the_ended_are_counted_by_listener_and_upstream() {
        let addresses =
            crate::config::Upstreams::new(vec!["@a".parse().unwrap(), "@b".parse().unwrap()])
                .unwrap();
        let upstreams = Upstreams::new(&ProxyConfig::to(addresses));
        let (web, api): (Arc<str>, Arc<str>) = ("web".into(), "api".into());
        let (tally, all) = (Tally::default(), upstreams.current());
        tally.expect(&api);
        let first = tally.enter(&web, &all[1], Came::Made, &Arc::default());
        let second = tally.enter(&web, &all[1], Came::Made, &Arc::default());
        drop(first);
        let third = tally.enter(&web, &all[1], Came::Made, &Arc::default());
        tally.failed(&web, &all[0]);
        let counters = tally.counters(&upstreams);
        let one = counters["web"]["@b"];
        assert_eq!((one.connected, one.active, one.failed), (3, 2, 0));
        assert_eq!(
            (counters["web"]["@a"].failed, counters["api"]["@a"]),
            (1, UpstreamCounters::default())
        );
        let traffic = Arc::new(Traffic::so_far(5, 6));
        let carried = tally.enter(&web, &all[1], Came::Carried, &traffic);
        let one = tally.counters(&upstreams)["web"]["@b"];
        assert_eq!((one.connected, one.active, one.received, one.sent), (3, 3, 0, 0));
        drop((second, third, carried));
        assert_eq!(tally.counters(&upstreams)["web"]["@b"].active, 0);
        // Places are taken again.
        assert_eq!(tally.lock().all[1].cells[&all[1].id()].open.len(), 3);
    }
}
