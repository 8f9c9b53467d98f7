//! Serves: an accept loop for each listener on each worker, a task for each connection, and a drain over all of them.
//!
//! A stranger to handoffs: it accepts, stops, resumes, drains and cuts when it is told to. Listeners on which it stops
//! accepting stay open, for what waits in their queues belongs to whoever accepts next; which of them to close, the
//! caller decides.

mod accept;
mod census;
mod connection;
mod places;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::drain::{Drain, DrainReport};
use crate::error::Error;
use crate::net::{Acceptor, Listener, waiting};
use crate::report::{self, Counters};
use crate::service::Service;
use accept::Accepting;
use census::Census;
use connection::Connections;
use places::Places;

pub use workers::Workers;

/// How many connections listeners may have at once, by their names: those of which that is said.
pub(crate) type Limits = HashMap<String, NonZeroUsize>;

/// A service on its listeners.
#[derive(Debug)]
pub(crate) struct Server<S> {
    workers: Workers,
    /// For each listener that has a limit, the places that it has.
    places: HashMap<String, Arc<Places>>,
    /// For each worker and listener. They outlive the accept loops.
    census: BTreeMap<(usize, Arc<str>), Census>,
    connections: Connections<S>,
    drain: Drain,
    /// Ends the accept loops that run now; they are owned, and waited for, here.
    stop: CancellationToken,
    loops: JoinSet<()>,
    /// The way to each loop for a heartbeat: a token that it drops when it comes round.
    hearts: Vec<mpsc::Sender<TaskTrackerToken>>,
}

impl<S: Service> Server<S> {
    /// Serves nothing yet.
    pub(crate) fn new(service: S, first_request_grace: Duration, workers: Workers, limits: &Limits) -> Self {
        let places = limits.iter().map(|(name, limit)| (name.clone(), Arc::new(Places::new(*limit))));
        Self {
            workers,
            places: places.collect(),
            census: BTreeMap::new(),
            connections: Connections::new(service, first_request_grace),
            drain: Drain::new(),
            stop: CancellationToken::new(),
            loops: JoinSet::new(),
            hearts: Vec::new(),
        }
    }

    /// Accepts on all of `listeners`, for the first time or again. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel will not watch a listener.
    pub(crate) fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        self.drain.resume();
        self.stop = CancellationToken::new();
        let workers = Arc::clone(self.workers.all());
        for (own, worker) in workers.iter().enumerate() {
            // The worker's runtime watches.
            let _within = worker.handle().enter();
            for listener in listeners {
                let acceptor = Acceptor::new(listener.clone()).map_err(Error::system("watch a listener"))?;
                let (heart, beats) = mpsc::channel(1);
                self.hearts.push(heart);
                let accepting = Accepting {
                    acceptor,
                    connections: self.connections.clone(),
                    workers: Arc::clone(&workers),
                    own,
                    census: (0..workers.len()).map(|number| self.census(number, listener)).collect(),
                    places: self.places.get(&**listener.name()).cloned(),
                    entry: self.drain.entry(),
                    stop: self.stop.clone(),
                    beats,
                };
                self.loops.spawn_on(accepting.run(), worker.handle());
            }
        }
        Ok(())
    }

    /// Stops accepting: when this returns nothing more is accepted, and the kernel watches no listener for us.
    pub(crate) async fn stop_accepting(&mut self) {
        self.stop.cancel();
        self.hearts.clear();
        while self.loops.join_next().await.is_some() {}
    }

    /// Asks every accept loop to come round once: the beat is over when all have. A loop that hangs, or that the runtime
    /// does not get to, never does.
    pub(crate) fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        beat.close();
        for heart in &self.hearts {
            // A loop that has not yet taken the last one has not come round either.
            let _ = heart.try_send(beat.token());
        }
        beat
    }

    /// Accepts what waits in the queues of listeners that nobody will accept on any more. Comes before [`Server::drain`].
    pub(crate) fn sweep(&mut self, listeners: &[Listener]) {
        let entry = self.drain.entry();
        let workers = Arc::clone(self.workers.all());
        for (listener, (number, worker)) in listeners.iter().zip(workers.iter().enumerate().cycle()) {
            let _within = worker.handle().enter();
            let census = self.census(number, listener);
            for (stream, peer) in waiting(listener) {
                // However many there may be: they came when they were welcome.
                let counted = census.enter(Instant::now(), Arc::clone(stream.traffic()), worker.load(), None);
                self.connections.spawn(stream, peer, listener, &entry, counted);
            }
        }
    }

    /// The connections of a listener that a worker serves.
    fn census(&mut self, worker: usize, listener: &Listener) -> Census {
        self.census.entry((worker, Arc::clone(listener.name()))).or_default().clone()
    }

    /// Tells every connection to come to an end.
    pub(crate) fn drain(&mut self) {
        self.drain.begin();
    }

    /// Waits until no connection is left. Pends for ever unless [`Server::drain`] came first. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.drain.drained().await;
    }

    /// Cuts the connections that are left.
    pub(crate) fn cut(&mut self) {
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
        let mut counters = Counters { upstreams: self.connections.service().upstreams(), ..Counters::default() };
        for ((_, listener), census) in &self.census {
            counters.listeners.entry(listener.to_string()).or_default().add(census.counters());
        }
        counters
    }

    /// How they ended that were there when the drain began.
    pub(crate) fn report(&self) -> DrainReport {
        self.drain.report()
    }
}
