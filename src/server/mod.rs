//! The server: accept loops for each worker and listener, a task for each connection, and a drain
//! over all of them.
//!
//! The server knows nothing about handoffs. It accepts, stops, resumes, drains and cuts when its
//! caller says so. A listener stays open after accepting stops, because clients in its backlog
//! belong to the process that accepts next. The caller decides which listeners to close.

mod accept;
mod carry;
mod census;
mod connection;
mod deaths;
mod late;
mod places;
mod takeover;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config::{Config, OnHandoff};
use crate::drain::{Drain, DrainReport, Way};
use crate::error::Error;
use crate::net::{Acceptor, Listener};
use crate::report::{self, Counters};
use crate::service::Service;
use accept::Accepting;
use census::Census;
use connection::Connections;
use places::Places;

pub(crate) use carry::CarryEnd;
pub use workers::Workers;

/// How long the accept loops may take to stop. A loop that hangs in accept(2) is interrupted
/// earlier.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A service together with the listeners that it is served on.
#[derive(Debug)]
pub(crate) struct Server<S> {
    config: Config,
    workers: Workers,
    /// The connection limit of each listener that has one.
    places: HashMap<String, Arc<Places>>,
    /// What happens to the connections of a listener at a handoff, where the listener overrides the
    /// default.
    on_handoff: HashMap<String, OnHandoff>,
    /// The census of each worker and listener. It outlives the accept loops.
    census: BTreeMap<(usize, Arc<str>), Census>,
    connections: Connections<S>,
    drain: Drain,
    /// Stops the current accept loops. The server owns these tasks and waits for them.
    stop: CancellationToken,
    loops: JoinSet<()>,
    /// A channel to each accept loop for heartbeats. The loop drops the token that it receives on
    /// its next iteration.
    hearts: Vec<mpsc::Sender<TaskTrackerToken>>,
    /// The names of all listeners that the server has ever accepted on.
    names: BTreeSet<Arc<str>>,
    /// The tasks that read the successor's answers to carried connections, and how the carry ended.
    carrying: JoinSet<()>,
    carry_ended: Option<watch::Receiver<Option<CarryEnd>>>,
    /// The tasks that take over connections from the predecessor, until the token is cancelled.
    taking: TaskTracker,
    stop_taking: CancellationToken,
    /// The tasks that accept the last clients of replaced listeners, until the token is cancelled.
    late: TaskTracker,
    stop_late: CancellationToken,
}

impl<S: Service> Server<S> {
    /// Returns a server that does not accept yet.
    pub(crate) fn new(service: S, workers: Workers, config: Config) -> Self {
        let taking = TaskTracker::new();
        taking.close();
        let late = TaskTracker::new();
        late.close();
        let limits = config.listeners.limits();
        let places =
            limits.iter().map(|(name, limit)| (name.clone(), Arc::new(Places::new(*limit))));
        Self {
            workers,
            places: places.collect(),
            on_handoff: config.listeners.on_handoff(),
            census: BTreeMap::new(),
            connections: Connections::new(service, config.first_request_grace, limits),
            drain: Drain::new(),
            stop: CancellationToken::new(),
            loops: JoinSet::new(),
            hearts: Vec::new(),
            names: BTreeSet::new(),
            carrying: JoinSet::new(),
            carry_ended: None,
            taking,
            stop_taking: CancellationToken::new(),
            late,
            stop_late: CancellationToken::new(),
            config,
        }
    }

    /// Accepts on all of `listeners`, for the first time or again. Must be called in a tokio
    /// runtime.
    ///
    /// The loops are known to run once a [`Server::heartbeat`] has completed.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel refuses to watch a listener, and [`Error::Died`] when a
    /// worker has died.
    pub(crate) fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        if let Some(died) = self.workers.deaths().first() {
            return Err(died);
        }
        self.drain.resume();
        self.end_carry();
        if self.stop_taking.is_cancelled() {
            self.stop_taking = CancellationToken::new();
        }
        self.names.extend(listeners.iter().map(|listener| Arc::clone(listener.name())));
        self.stop = CancellationToken::new();
        let workers = Arc::clone(self.workers.all());
        for (own, worker) in workers.iter().enumerate() {
            // Register the listener with the runtime of this worker.
            let _within = worker.handle().enter();
            let (mut loops, stop) = (Vec::new(), CancellationToken::new());
            for listener in listeners {
                let acceptor =
                    Acceptor::new(listener.clone()).map_err(Error::system("watch a listener"))?;
                let (heart, beats) = mpsc::channel(1);
                self.hearts.push(heart);
                loops.push(Accepting {
                    acceptor,
                    connections: self.connections.clone(),
                    workers: Arc::clone(&workers),
                    own,
                    census: (0..workers.len())
                        .map(|number| self.census(number, listener.name()))
                        .collect(),
                    places: self.places.get(&**listener.name()).cloned(),
                    way: self.way(listener.name()),
                    entry: self.drain.entry(self.way(listener.name())),
                    stop: stop.clone(),
                    beats,
                });
            }
            let deaths = self.workers.deaths().clone();
            self.loops
                .spawn_on(accept::run_all(loops, stop, self.stop.clone(), deaths), worker.handle());
        }
        Ok(())
    }

    /// Stops accepting. When this returns, no loop accepts and the kernel watches no listener for
    /// this process. A worker that hangs is not waited for; its loops stop when it runs again.
    pub(crate) async fn stop_accepting(&mut self) {
        self.stop.cancel();
        self.hearts.clear();
        let stopped = async { while self.loops.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, stopped).await.is_err() {
            let workers = self.loops.len();
            tracing::error!(
                event = "worker.hung",
                workers,
                "{workers} workers hang and have not stopped accepting: continuing without them"
            );
            self.loops.detach_all();
        }
    }

    /// Asks every accept loop for a sign of life. The returned tracker completes when all loops
    /// have run once. It never completes if a loop hangs, has died, gets no processor time, or if
    /// there are no loops.
    pub(crate) fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        let takes = |heart: &mpsc::Sender<TaskTrackerToken>| heart.try_send(beat.token()).is_ok();
        // A tracker that is never closed never completes.
        if !self.hearts.is_empty() && self.hearts.iter().all(takes) {
            beat.close();
        }
        beat
    }

    /// Waits until a worker or an accept loop has died. Cancel safe.
    pub(crate) async fn died(&self) -> Error {
        self.workers.deaths().wait().await
    }

    /// Returns the census of a listener on a worker, creating it if necessary.
    fn census(&mut self, worker: usize, listener: &Arc<str>) -> Census {
        self.census.entry((worker, Arc::clone(listener))).or_default().clone()
    }

    /// Returns what happens to the connections of a listener in a drain.
    fn way(&self, listener: &str) -> Way {
        match self.on_handoff.get(listener).copied().unwrap_or(self.config.on_handoff) {
            OnHandoff::Carry if self.connections.service().carries(listener) => Way::Carry,
            OnHandoff::Carry | OnHandoff::Drain => Way::End,
        }
    }

    /// Waits until no connection is left. Never returns unless [`Server::drain`] was called. Cancel
    /// safe.
    pub(crate) async fn drained(&self) {
        self.taking.wait().await;
        self.late.wait().await;
        self.drain.drained().await;
    }

    /// Cuts the remaining connections.
    pub(crate) fn cut(&mut self) {
        self.stop_taking.cancel();
        self.stop_late.cancel();
        // End the carry first. No service then detaches another connection, and detached ones that
        // are not sent yet are cut like all others.
        self.end_carry();
        self.drain.cut();
    }

    /// Returns the current state of the connections, for a status report.
    pub(crate) fn connections(&self) -> report::Connections {
        let all = self.census.values().map(Census::connections);
        all.fold(report::Connections::default(), |sum, one| report::Connections {
            open: sum.open + one.open,
            oldest_ms: sum.oldest_ms.max(one.oldest_ms),
            carried: sum.carried + one.carried,
        })
    }

    /// Returns the totals so far.
    pub(crate) fn counters(&self) -> Counters {
        let service = self.connections.service();
        let mut counters = Counters { upstreams: service.upstreams(), ..Counters::default() };
        for ((_, listener), census) in &self.census {
            counters.listeners.entry(listener.to_string()).or_default().add(census.counters());
        }
        for (listener, count) in service.header_errors() {
            counters.listeners.entry(listener).or_default().header_errors += count;
        }
        counters
    }

    /// Returns how the connections ended that existed when the drain began or came later.
    pub(crate) fn report(&self) -> DrainReport {
        self.drain.report(self.connections.turns().carried())
    }
}
