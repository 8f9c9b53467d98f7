//! Serves: an accept loop for each listener on each worker, a task for each connection, and a drain
//! over all of them.
//!
//! A stranger to handoffs: it accepts, stops, resumes, drains and cuts when it is told to.
//! Listeners on which it stops accepting stay open, for what waits in their queues belongs to
//! whoever accepts next; which of them to close, the caller decides.

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

/// How long the accept loops may take to stop. One that hangs in accept(2) is interrupted sooner.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A service on its listeners.
#[derive(Debug)]
pub(crate) struct Server<S> {
    config: Config,
    workers: Workers,
    /// For each listener that has a limit, the places that it has.
    places: HashMap<String, Arc<Places>>,
    /// For each listener that says so, what becomes of its connections.
    on_handoff: HashMap<String, OnHandoff>,
    /// For each worker and listener. They outlive the accept loops.
    census: BTreeMap<(usize, Arc<str>), Census>,
    connections: Connections<S>,
    drain: Drain,
    /// Ends the accept loops that run now; they are owned, and waited for, here.
    stop: CancellationToken,
    loops: JoinSet<()>,
    /// The way to each loop for a heartbeat: a token that it drops when it comes round.
    hearts: Vec<mpsc::Sender<TaskTrackerToken>>,
    /// The names of all listeners on which it has accepted.
    names: BTreeSet<Arc<str>>,
    /// Reads what the successor answers to those that are carried to it; and the end of that.
    carrying: JoinSet<()>,
    carry_ended: Option<watch::Receiver<Option<CarryEnd>>>,
    /// Take over what the predecessor carries here, until this is cancelled.
    taking: TaskTracker,
    stop_taking: CancellationToken,
    /// Accept the last clients of replaced listeners, until this is cancelled.
    late: TaskTracker,
    stop_late: CancellationToken,
}

impl<S: Service> Server<S> {
    /// Serves nothing yet.
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
    /// The loops run once a [`Server::heartbeat`] is over.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel will not watch a listener, and [`Error::Died`] when a
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
            // The worker's runtime watches.
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

    /// Stops accepting: when this returns nothing more is accepted, and the kernel watches no
    /// listener for us. A worker that hangs is not waited for: it stops when it comes round.
    pub(crate) async fn stop_accepting(&mut self) {
        self.stop.cancel();
        self.hearts.clear();
        let stopped = async { while self.loops.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, stopped).await.is_err() {
            let workers = self.loops.len();
            tracing::error!(
                event = "worker.hung",
                workers,
                "{workers} workers hang and have not stopped accepting: going on without them"
            );
            self.loops.detach_all();
        }
    }

    /// Asks every accept loop to come round once: the beat is over when all have. A loop that
    /// hangs, that has died, or that the runtime does not get to, never does; and where there is no
    /// loop, no beat is ever over.
    pub(crate) fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        let takes = |heart: &mpsc::Sender<TaskTrackerToken>| heart.try_send(beat.token()).is_ok();
        // One that stays open has no end.
        if !self.hearts.is_empty() && self.hearts.iter().all(takes) {
            beat.close();
        }
        beat
    }

    /// Waits until a worker or an accept loop has died. Cancel safe.
    pub(crate) async fn died(&self) -> Error {
        self.workers.deaths().wait().await
    }

    /// The connections of a listener that a worker serves.
    fn census(&mut self, worker: usize, listener: &Arc<str>) -> Census {
        self.census.entry((worker, Arc::clone(listener))).or_default().clone()
    }

    /// What becomes of a listener's connections in a drain.
    fn way(&self, listener: &str) -> Way {
        match self.on_handoff.get(listener).copied().unwrap_or(self.config.on_handoff) {
            OnHandoff::Carry if self.connections.service().carries(listener) => Way::Carry,
            OnHandoff::Carry | OnHandoff::Drain => Way::End,
        }
    }

    /// Waits until no connection is left. Pends for ever unless [`Server::drain`] came first.
    /// Cancel safe.
    pub(crate) async fn drained(&self) {
        self.taking.wait().await;
        self.late.wait().await;
        self.drain.drained().await;
    }

    /// Cuts the connections that are left.
    pub(crate) fn cut(&mut self) {
        self.stop_taking.cancel();
        self.stop_late.cancel();
        // First, so that none is given up any more, and none that was is cut as if it were on its
        // way.
        self.end_carry();
        self.drain.cut();
    }

    /// How its connections stand.
    pub(crate) fn connections(&self) -> report::Connections {
        let all = self.census.values().map(Census::connections);
        all.fold(report::Connections::default(), |sum, one| report::Connections {
            open: sum.open + one.open,
            oldest_ms: sum.oldest_ms.max(one.oldest_ms),
            carried: sum.carried + one.carried,
        })
    }

    /// What it has done until now.
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

    /// How they ended that were there when the drain began, or came after that.
    pub(crate) fn report(&self) -> DrainReport {
        self.drain.report(self.connections.turns().carried())
    }
}
