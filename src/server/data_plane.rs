//! The server's implementation of [`DataPlane`]. This trait has the methods that start and stop the
//! server and drain its connections.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Server;
use super::accept::{self, Accepting, WorkerLoops};
use super::late::Latecomers;
#[cfg(feature = "proxy")]
use super::relays::RelayedConnections;
use super::workers::processors;
use crate::data_plane::DataPlane;
use crate::drain::{DrainReport, OnDrain};
use crate::error::Error;
use crate::ledger::{ListenerEvents, open_connections};
use crate::net::{Listener, WatchedListener, pending};
use crate::report::{Connections, Counters};
use crate::service::Service;

/// How long to wait until all accept loops have stopped. If a loop blocks in accept(2), a signal
/// interrupts the call before this timeout.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

impl<S: Service> DataPlane for Server<S> {
    /// Starts the accept loops of all listeners, each on a few of the workers.
    ///
    /// # Errors
    /// Returns [`Error::System`] when the kernel refuses to watch a listener, and [`Error::Died`]
    /// when a worker has died.
    fn start(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        if let Some(died) = self.workers.deaths().first() {
            return Err(died);
        }
        self.drain.resume();
        #[cfg(feature = "proxy")]
        self.context.relays.forget_refusals();
        self.carrying.end();
        self.taking.resume();
        self.names.extend(listeners.iter().map(|listener| Arc::clone(listener.name())));
        self.stop = CancellationToken::new();
        let slots = listeners
            .iter()
            .map(|listener| Arc::new(self.slot(listener.name(), self.on_drain(listener.name()))));
        let slots: Vec<_> = slots.collect();
        let workers = Arc::clone(self.workers.all());
        for (own, worker) in workers.iter().enumerate() {
            // Enter the runtime of this worker, so that the listener is registered with that
            // runtime.
            let _within = worker.handle().enter();
            #[cfg(feature = "proxy")]
            self.context
                .prepare_to_relay(listeners, own)
                .map_err(Error::system("create an epoll instance"))?;
            let (mut loops, stop) = (Vec::new(), CancellationToken::new());
            for (number, (listener, slot)) in listeners.iter().zip(&slots).enumerate() {
                if !accept::accepts_on(number, own, processors(&workers)) {
                    continue;
                }
                let acceptor = WatchedListener::new(listener.clone())
                    .map_err(Error::system("register a listener for events"))?;
                // Make room for two heartbeats: the first one, which `started` waits for, and one
                // that the watchdog requests.
                let (heart, beats) = mpsc::channel(2);
                self.hearts.push(heart);
                let (slot, stop) = (Arc::clone(slot), stop.clone());
                loops.push(Accepting { acceptor, slot, own, stop, beats });
            }
            // Send heartbeats to the worker itself as well, because it may have no accept loop.
            let (heart, beats) = mpsc::channel(2);
            self.hearts.push(heart);
            let (stop_all, deaths) = (self.stop.clone(), self.workers.deaths().clone());
            let worker_loops = WorkerLoops { loops, beats, stop, stop_all, deaths };
            self.loops.spawn_on(worker_loops.run(), worker.handle());
        }
        self.starting = self.heartbeat();
        Ok(())
    }

    /// Waits until every accept loop has run at least once.
    async fn started(&self) -> Result<(), Error> {
        self.starting.wait().await;
        Ok(())
    }

    async fn died(&self) -> Error {
        self.workers.deaths().wait().await
    }

    /// Sends a heartbeat to every accept loop. The returned tracker completes when every loop has
    /// received the heartbeat. It never completes if a loop hangs or has died, or if no loop
    /// exists.
    fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        let takes = |heart: &mpsc::Sender<TaskTrackerToken>| heart.try_send(beat.token()).is_ok();
        // Close the tracker only if a heartbeat was sent to every loop. A tracker that stays open
        // never completes.
        if !self.hearts.is_empty() && self.hearts.iter().all(takes) {
            beat.close();
        }
        beat
    }

    /// Stops the accept loops, and removes their listeners from the runtimes. Waits at most
    /// [`STOP_TIMEOUT`] for a worker that hangs. The loops of that worker stop when it runs again.
    async fn stop_accepting(&mut self) {
        self.stop.cancel();
        self.hearts.clear();
        let stopped = async { while self.loops.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, stopped).await.is_err() {
            let workers = self.loops.len();
            tracing::error!(
                event = "worker.hung",
                workers,
                "{workers} worker threads hang and have not stopped accepting clients: the process \
                continues without them"
            );
            self.loops.detach_all();
        }
    }

    fn accept_backlog(&mut self, listeners: &[Listener]) {
        for (listener, worker) in listeners.iter().zip((0..self.workers.all().len()).cycle()) {
            let slot = self.slot(listener.name(), self.on_drain(listener.name()));
            let _within = slot.enter(worker);
            // Ignore the connection limit, because the kernel would reset the clients that stay in
            // the backlog.
            pending(listener).for_each(|client| slot.serve(worker, client, None));
        }
    }

    fn accept_late(&mut self, replaced: Vec<Listener>) {
        let workers = Arc::clone(self.workers.all());
        for (listener, worker) in replaced.into_iter().zip((0..workers.len()).cycle()) {
            // Ask late connections to finish, because they can no longer move to the successor.
            let slot = self.slot(listener.name(), OnDrain::Finish);
            let latecomers = Latecomers { listener, slot, worker, stop: self.late.stop.clone() };
            self.late.all.spawn_on(latecomers.run(), workers[worker].handle());
        }
    }

    fn drain(&mut self, successor: Option<OwnedFd>) {
        self.ledgers.values().for_each(|ledger| ledger.count(ListenerEvents::begin_drain));
        self.drain.begin();
        let arriving = self.taking.tracker().clone();
        #[cfg(feature = "proxy")]
        let others = RelayedConnections::begin_carry(&self.context, self.workers.all());
        #[cfg(not(feature = "proxy"))]
        let others = crate::carry::AllRegistered;
        if !successor.is_some_and(|channel| self.carrying.begin(channel, arriving, others)) {
            self.taking.stop();
            self.drain.drain_uncarried();
        }
    }

    async fn drained(&self) {
        self.taking.tracker().wait().await;
        self.late.all.wait().await;
        self.drain.drained().await;
    }

    fn cut(&mut self) {
        self.taking.stop();
        self.late.stop.cancel();
        // Stop moving connections before the cut, so that no service detaches another connection.
        // Connections that have not been sent yet are then cut like all others.
        self.carrying.end();
        self.drain.cut();
        #[cfg(feature = "proxy")]
        self.context.relays.cut();
    }

    fn connections(&self) -> Option<Connections> {
        #[cfg(feature = "proxy")]
        let oldest = self.context.relays.oldest();
        #[cfg(not(feature = "proxy"))]
        let oldest = None;
        Some(open_connections(self.ledgers.values(), oldest))
    }

    fn counters(&self) -> Counters {
        let service = &self.context.service;
        let mut counters = Counters { upstreams: service.upstreams(), ..Counters::default() };
        for ((_, listener), ledger) in &self.ledgers {
            counters.listeners.entry(listener.to_string()).or_default().add(ledger.counters());
        }
        for (listener, limit) in &self.limit {
            if let Some(counters) = counters.listeners.get_mut(listener) {
                counters.limited += limit.times_full();
            }
        }
        for (listener, count) in service.header_errors() {
            counters.listeners.entry(listener).or_default().header_errors += count;
        }
        counters
    }

    fn report(&self) -> DrainReport {
        self.drain.report()
    }
}
