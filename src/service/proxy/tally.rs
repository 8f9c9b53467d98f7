//! Counts what was passed on, by listener and by upstream: live connections, and the sums of those that have ended.
//!
//! One short lock for each connection at its beginning and one at its end; a live connection counts its own bytes, and whoever
//! asks pays for the sum.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::upstreams::Upstream;
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
    cells: Box<[Cell]>,
}

/// To one upstream.
#[derive(Debug, Default)]
struct Cell {
    /// Of connections that have ended; `active` and `ejected` are not counted here. What one had carried already when it was
    /// taken over is counted elsewhere, and taken off here: without those that are live the sums may be below zero, and wrap.
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
    cell: usize,
    place: usize,
}

impl Tally {
    /// Knows a listener before anybody has come by it.
    pub(super) fn expect(&self, listener: &Arc<str>, upstreams: usize) {
        self.lock().row(listener, upstreams);
    }

    /// Enters a connection.
    pub(super) fn enter(
        &self,
        listener: &Arc<str>,
        upstreams: &[Upstream],
        cell: usize,
        came: Came,
        traffic: &Arc<Traffic>,
    ) -> Counted<'_> {
        let mut rows = self.lock();
        let row = rows.row(listener, upstreams.len());
        let Cell { sums, open, free } = &mut rows.all[row].cells[cell];
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
        Counted { tally: self, row, cell, place }
    }

    /// Counts one that was not.
    pub(super) fn failed(&self, listener: &Arc<str>, upstreams: &[Upstream], cell: usize) {
        let mut rows = self.lock();
        let row = rows.row(listener, upstreams.len());
        rows.all[row].cells[cell].sums.failed += 1;
    }

    /// All listeners that are known, for whoever names them.
    pub(super) fn listeners(&self) -> String {
        let rows = self.lock();
        let names: Vec<&str> = rows.all.iter().map(|row| &*row.listener).collect();
        names.join(",")
    }

    /// How it stands, by listener and by upstream.
    pub(super) fn counters(&self, upstreams: &[Upstream]) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        let rows = self.lock();
        let by_upstream = |row: &Row| {
            let cells = row.cells.iter().zip(upstreams);
            cells.map(|(cell, upstream)| (upstream.address().to_string(), cell.counters(upstream.ejected()))).collect()
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
    fn row(&mut self, listener: &Arc<str>, upstreams: usize) -> usize {
        if let Some(row) = self.by_listener.get(listener) {
            return *row;
        }
        let row = self.all.len();
        let cells = (0..upstreams).map(|_| Cell::default()).collect();
        self.all.push(Row { listener: Arc::clone(listener), cells });
        self.by_listener.insert(Arc::clone(listener), row);
        row
    }
}

impl Cell {
    fn counters(&self, ejected: u64) -> UpstreamCounters {
        let mut counters = UpstreamCounters { ejected, ..self.sums };
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
    pub(super) const fn upstream(&self) -> usize {
        self.cell
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut rows = self.tally.lock();
        let Cell { sums, open, free } = &mut rows.all[self.row].cells[self.cell];
        if let Some(traffic) = open[self.place].take() {
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
        let addresses = crate::config::Upstreams::new(vec!["@a".parse().unwrap(), "@b".parse().unwrap()]).unwrap();
        let upstreams = Upstreams::new(&ProxyConfig::to(addresses));
        let (web, api): (Arc<str>, Arc<str>) = ("web".into(), "api".into());
        let (tally, all) = (Tally::default(), upstreams.all());
        tally.expect(&api, all.len());
        let first = tally.enter(&web, all, 1, Came::Made, &Arc::default());
        let second = tally.enter(&web, all, 1, Came::Made, &Arc::default());
        drop(first);
        let third = tally.enter(&web, all, 1, Came::Made, &Arc::default());
        tally.failed(&web, all, 0);
        let counters = tally.counters(all);
        let one = counters["web"]["@b"];
        assert_eq!((one.connected, one.active, one.failed), (3, 2, 0));
        assert_eq!((counters["web"]["@a"].failed, counters["api"]["@a"]), (1, UpstreamCounters::default()));
        let traffic = Arc::new(Traffic::so_far(5, 6));
        let carried = tally.enter(&web, all, 1, Came::Carried, &traffic);
        let one = tally.counters(all)["web"]["@b"];
        assert_eq!((one.connected, one.active, one.received, one.sent), (3, 3, 0, 0));
        drop((second, third, carried));
        assert_eq!(tally.counters(all)["web"]["@b"].active, 0);
        // Places are taken again.
        assert_eq!(tally.lock().all[1].cells[1].open.len(), 3);
    }
}
