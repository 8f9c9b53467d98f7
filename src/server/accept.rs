//! The accept loop of a listener. It accepts clients until it is stopped, and accepts no client
//! while the listener's connection limit is reached.
//!
//! While the limit is reached, new clients wait in the kernel's backlog and are not reset. The
//! module `connection` serves the accepted connections.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::{ConnectionSpawner, IncomingConnection};
use super::deaths::{Deaths, panic_text};
use super::ledger::{ListenerEvents, ListenerLedger};
use super::limit::{ConnectionLimit, Permit};
use super::slot::ConnectionSlot;
use super::workers::{Worker, choose};
use crate::drain::{DrainEntry, OnDrain};
use crate::ledger::Source;
use crate::net::{Accepted, Acceptor};
use crate::service::Service;

/// An accept loop. It accepts the clients of one listener, and runs on one worker.
pub(super) struct Accepting<S> {
    pub(super) acceptor: Acceptor,
    pub(super) connections: ConnectionSpawner<S>,
    /// All workers, and the index of the worker that runs this loop.
    pub(super) workers: Arc<[Worker]>,
    pub(super) own: usize,
    /// The ledgers of this listener: one for each worker.
    pub(super) ledgers: Vec<ListenerLedger>,
    /// The connection limit of the listener, or `None` if it has no limit.
    pub(super) limit: Option<Arc<ConnectionLimit>>,
    /// What happens in a drain to the connections that this loop accepts.
    pub(super) on_drain: OnDrain,
    pub(super) entry: DrainEntry,
    pub(super) stop: CancellationToken,
    pub(super) beats: mpsc::Receiver<TaskTrackerToken>,
}

/// Runs the accept loops of one worker, each in its own task, until `stop_all` is cancelled.
///
/// This function runs on the worker itself, because it would be much slower to wake another thread
/// for each loop. If a loop panics, this function reports the panic, and the other loops continue.
pub(super) async fn run_all<S: Service>(
    loops: Vec<Accepting<S>>,
    stop: CancellationToken,
    stop_all: CancellationToken,
    deaths: Deaths,
) {
    let mut running: JoinSet<()> = loops.into_iter().map(Accepting::run).collect();
    loop {
        tokio::select! {
            biased;
            () = stop_all.cancelled() => break,
            Some(ended) = running.join_next() => report_panic(ended, &deaths),
        }
    }
    stop.cancel();
    while let Some(ended) = running.join_next().await {
        report_panic(ended, &deaths);
    }
}

/// Reports the panic of an accept loop, if the loop ended with a panic.
fn report_panic(ended: Result<(), JoinError>, deaths: &Deaths) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        deaths.report("an accept loop", &panic_text(&*panic));
    }
}

impl<S: Service> Accepting<S> {
    /// Accepts connections until the loop is stopped. Also drops each heartbeat token that it
    /// receives, which shows that the loop runs.
    pub(super) async fn run(mut self) {
        let mut permit = None;
        loop {
            let limit = self.limit.as_ref();
            // If this process has no free file descriptor, clients wait just as they do when the
            // listener is full. So count that case in the same counter.
            let on_shortage = || self.ledgers[self.own].count(ListenerEvents::limited);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(beat) = self.beats.recv() => drop(beat),
                accepted = next(&mut self.acceptor, limit, on_shortage, &mut permit) => {
                    self.admit(accepted, permit.take());
                }
            }
        }
    }

    /// Chooses a worker for an accepted connection, and starts to serve the connection there.
    fn admit(&self, accepted: Accepted, permit: Option<Permit>) {
        let number = choose(&self.workers, self.own);
        let worker = &self.workers[number];
        // Enter the runtime of the chosen worker, which then watches the socket and runs the task.
        let _within = worker.handle().enter();
        let listener = self.acceptor.listener();
        if let Some((stream, peer)) = accepted.into_stream(listener) {
            let slot = ConnectionSlot::new(
                &self.ledgers[number],
                Instant::now(),
                Source::New,
                stream.traffic(),
                worker.load(),
                permit.map(Permit::used),
            );
            let (listener, on_drain, entry) = (listener.name(), self.on_drain, &self.entry);
            self.connections.spawn(IncomingConnection {
                stream,
                peer,
                listener,
                slot,
                on_drain,
                entry,
                parcel: None,
            });
        }
    }
}

/// Waits for a permit if the listener has a connection limit, and then for a client. Keeps the
/// permit in `place`, so that a cancelled call does not lose it. Calls `on_shortage` when the
/// process has no free file descriptor for the client. Cancel safe.
async fn next(
    acceptor: &mut Acceptor,
    limit: Option<&Arc<ConnectionLimit>>,
    on_shortage: impl Fn(),
    place: &mut Option<Permit>,
) -> Accepted {
    if let (Some(limit), None) = (limit, &place) {
        *place = Some(limit.take().await);
    }
    acceptor.accept(on_shortage).await
}
