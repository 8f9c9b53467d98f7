//! The built-in server. A few workers accept the clients of each listener. Relay planes relay the
//! connections of a proxy. Every other connection has its own task. A drain ends connections
//! gently.
//!
//! The server knows nothing about handoffs. The caller decides when to start and stop accepting,
//! when to drain or cut the connections, and which listeners to close. A listener stays open when
//! the server stops accepting, because the next generation accepts the clients in the backlog.

mod accept;
mod carry;
mod connection;
mod data_plane;
mod deaths;
mod late;
mod listener;
#[cfg(feature = "proxy")]
mod relays;
mod slot;
mod takeover;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::carry::{DepartureTasks, Takeovers};
use crate::config::{Config, OnHandoff};
use crate::drain::{Drain, OnDrain};
use crate::ledger::{ConnectionLimit, ListenerLedger};
use crate::service::Service;
use connection::ConnectionContext;
use listener::ListenerSlot;

pub use workers::Workers;

/// A server that serves one service on a set of listeners.
#[derive(Debug)]
pub(crate) struct Server<S> {
    config: Config,
    workers: Workers,
    /// The connection limits of the listeners. A listener without a limit is not in this map.
    limit: HashMap<String, Arc<ConnectionLimit>>,
    /// What happens to the connections of a listener at a handoff. Contains only listeners that
    /// override the default.
    on_handoff: HashMap<String, OnHandoff>,
    /// The open connections and the counters, for each worker and listener. They are kept even when
    /// the accept loops stop.
    ledgers: BTreeMap<(usize, Arc<str>), ListenerLedger>,
    context: Arc<ConnectionContext<S>>,
    drain: Drain,
    /// A token that stops the accept loops when it is cancelled.
    stop: CancellationToken,
    /// The tasks that run the accept loops: one for each worker.
    loops: JoinSet<()>,
    /// A channel to each accept loop and each worker, which sends heartbeats. The receiver drops a
    /// heartbeat as soon as it can, to show that it does not hang.
    hearts: Vec<mpsc::Sender<TaskTrackerToken>>,
    /// A tracker that completes when all accept loops have run once.
    starting: TaskTracker,
    /// The names of all listeners that the server has ever accepted on.
    names: BTreeSet<Arc<str>>,
    carrying: DepartureTasks,
    /// The tasks that take over connections from the predecessor.
    taking: Takeovers,
    /// The tasks that accept the last clients of listeners that the successor has replaced.
    late: StoppableTasks,
}

/// Tasks that end on their own, or when they are stopped.
#[derive(Debug)]
struct StoppableTasks {
    all: TaskTracker,
    /// A token that stops the tasks when it is cancelled.
    stop: CancellationToken,
}

impl Default for StoppableTasks {
    fn default() -> Self {
        let all = TaskTracker::new();
        all.close();
        Self { all, stop: CancellationToken::new() }
    }
}

impl<S: Service> Server<S> {
    /// Creates a server that does not accept yet.
    pub(crate) fn new(service: S, workers: Workers, config: Config) -> Self {
        let carrying = DepartureTasks::default();
        let departures = Arc::clone(carrying.departures());
        let context = ConnectionContext::new(service, &config, &workers, departures);
        let limits = config.listeners.limits();
        let limit = limits
            .iter()
            .map(|(name, limit)| (name.clone(), Arc::new(ConnectionLimit::new(name, *limit))));
        let limit = limit.collect();
        Self {
            workers,
            limit,
            on_handoff: config.listeners.on_handoff(),
            ledgers: BTreeMap::new(),
            context: Arc::new(context),
            drain: Drain::new(),
            stop: CancellationToken::new(),
            loops: JoinSet::new(),
            hearts: Vec::new(),
            starting: TaskTracker::new(),
            names: BTreeSet::new(),
            carrying,
            taking: Takeovers::default(),
            late: StoppableTasks::default(),
            config,
        }
    }

    /// Returns the parts of the server that serve the connections of one listener. `on_drain` says
    /// whether a drain ends these connections or moves them to the successor.
    fn slot(&mut self, name: &Arc<str>, on_drain: OnDrain) -> ListenerSlot<S> {
        let workers = Arc::clone(self.workers.all());
        let ledgers = (0..workers.len()).map(|worker| (worker, Arc::clone(name)));
        let ledgers = ledgers.map(|key| self.ledgers.entry(key).or_default().clone()).collect();
        ListenerSlot {
            name: Arc::clone(name),
            context: Arc::clone(&self.context),
            workers,
            ledgers,
            limit: self.limit.get(&**name).cloned(),
            on_drain,
            entry: self.drain.entry(name, on_drain),
        }
    }

    /// Returns whether a drain ends the connections of a listener or moves them to the successor.
    fn on_drain(&self, listener: &str) -> OnDrain {
        match self.on_handoff.get(listener).copied().unwrap_or(self.config.on_handoff) {
            OnHandoff::Carry if self.context.service.carries(listener) => OnDrain::Carry,
            OnHandoff::Carry | OnHandoff::Drain => OnDrain::Finish,
        }
    }
}
