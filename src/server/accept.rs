//! The accept loop of a listener. It accepts clients until it is stopped, and pauses while the
//! listener's connection limit is reached.
//!
//! During a pause, new clients wait in the kernel's backlog and are not reset. The module
//! `connection` serves the accepted connections.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::deaths::{Deaths, panic_text};
use super::listener::ListenerSlot;
use super::workers::choose;
use crate::ledger::{ConnectionLimit, HeldPermit, ListenerEvents};
use crate::net::{Accepted, WatchedListener};
use crate::service::Service;

/// An accept loop that accepts the clients of one listener and runs on one worker.
pub(super) struct Accepting<S> {
    pub(super) acceptor: WatchedListener,
    pub(super) slot: Arc<ListenerSlot<S>>,
    /// The index of the worker that runs this loop.
    pub(super) own: usize,
    pub(super) stop: CancellationToken,
    pub(super) beats: mpsc::Receiver<TaskTrackerToken>,
}

/// How many workers accept on one listener. The kernel wakes all of them for each client, so the
/// cost of a client grows with this number. A few workers are enough, because the worker that
/// accepts a client may pass it to another worker. One worker is not enough, because it may be
/// busy.
const ACCEPTING_WORKERS: usize = 4;

/// Returns whether a worker accepts on the listener with this number. Different listeners use
/// different workers. If there are more workers than processors, the surplus workers accept
/// nothing.
pub(super) const fn accepts_on(listener: usize, worker: usize, processors: usize) -> bool {
    worker < processors
        && (worker + processors - listener % processors) % processors < ACCEPTING_WORKERS
}

/// The accept loops of one worker. Each loop has its own task.
///
/// The tasks run on the worker's thread, because waking another thread would be much slower.
pub(super) struct WorkerLoops<S> {
    pub(super) loops: Vec<Accepting<S>>,
    /// The heartbeats that the worker answers, even if it has no accept loop.
    pub(super) beats: mpsc::Receiver<TaskTrackerToken>,
    /// A token that stops the accept loops of this worker when it is cancelled.
    pub(super) stop: CancellationToken,
    /// A token that stops the accept loops of all workers when it is cancelled.
    pub(super) stop_all: CancellationToken,
    pub(super) deaths: Deaths,
}

impl<S: Service> WorkerLoops<S> {
    /// Runs the accept loops until `stop_all` is cancelled. If a loop panics, this function reports
    /// the panic, and the other loops continue.
    pub(super) async fn run(mut self) {
        let mut running: JoinSet<()> = self.loops.into_iter().map(Accepting::run).collect();
        loop {
            tokio::select! {
                biased;
                () = self.stop_all.cancelled() => break,
                Some(beat) = self.beats.recv() => drop(beat),
                Some(ended) = running.join_next() => report_panic(ended, &self.deaths),
            }
        }
        self.stop.cancel();
        while let Some(ended) = running.join_next().await {
            report_panic(ended, &self.deaths);
        }
    }
}

/// Reports the panic of an accept loop, if the loop ended with a panic.
fn report_panic(ended: Result<(), JoinError>, deaths: &Deaths) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        deaths.report("a task that accepts clients", &panic_text(&*panic));
    }
}

impl<S: Service> Accepting<S> {
    /// Accepts connections until the loop is stopped. Answers each heartbeat by dropping it, to
    /// show that the loop is still running.
    pub(super) async fn run(mut self) {
        loop {
            // If this process has no free file descriptor, clients wait just as they do when the
            // listener is full. So count that case in the same counter.
            let limited = |events: &mut ListenerEvents| events.counters.limited += 1;
            let on_shortage = || self.slot.ledgers[self.own].count(limited);
            let next = accept(&mut self.acceptor, self.slot.limit.as_ref(), on_shortage);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(beat) = self.beats.recv() => drop(beat),
                (accepted, permit) = next => self.admit(accepted, permit),
            }
        }
    }

    /// Chooses a worker for an accepted connection, and starts serving the connection there.
    fn admit(&self, accepted: Accepted, permit: Option<HeldPermit>) {
        let worker = choose(&self.slot.workers, self.own);
        let _within = self.slot.enter(worker);
        let (listener, permit) = (self.acceptor.listener(), permit.map(HeldPermit::used));
        self.slot.serve_accepted(worker, accepted, listener, permit);
    }
}

/// Waits for a client, and for a permit if the listener has a connection limit. Then accepts the
/// client. Cancel safe.
async fn accept(
    acceptor: &mut WatchedListener,
    limit: Option<&Arc<ConnectionLimit>>,
    on_shortage: impl Fn(),
) -> (Accepted, Option<HeldPermit>) {
    let Some(limit) = limit else { return (acceptor.accept(on_shortage).await, None) };
    loop {
        // Take a permit only when a client may wait, and return it if there is none. Otherwise a
        // socket without clients would hold permits that the listener's other sockets need.
        acceptor.client_may_wait().await;
        let permit = limit.take().await;
        if let Some(accepted) = acceptor.attempt(&on_shortage).await {
            return (accepted, Some(permit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a few workers accept on each listener, however many workers there are. Every worker
    /// accepts on the same number of listeners.
    #[test]
    fn a_few_workers_accept_on_each_listener() {
        for processors in 1..=64 {
            let accepts = |listener, worker| accepts_on(listener, worker, processors);
            for listener in 0..processors * 2 {
                let workers = (0..100).filter(|worker| accepts(listener, *worker));
                assert_eq!(workers.count(), processors.min(ACCEPTING_WORKERS));
            }
            let listeners = (0..processors).filter(|listener| accepts(*listener, processors - 1));
            assert_eq!(listeners.count(), processors.min(ACCEPTING_WORKERS));
        }
    }
}
