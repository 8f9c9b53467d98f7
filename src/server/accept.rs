//! Accepts on one listener until it is told to stop, and no more than there may be at once.
//!
//! When a listener has as many connections as it may have, nobody is accepted: whoever comes waits
//! in the kernel's queue, and is not reset. What is done with a connection is not its affair.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::census::{Came, Census};
use super::connection::{Connections, Newcomer};
use super::deaths::{Deaths, panic_text};
use super::places::{Place, Places};
use super::workers::{Worker, choose};
use crate::drain::{DrainEntry, Way};
use crate::net::{Accepted, Acceptor};
use crate::service::Service;

/// An accept loop.
pub(super) struct Accepting<S> {
    pub(super) acceptor: Acceptor,
    pub(super) connections: Connections<S>,
    /// All workers, and which of them this loop runs on.
    pub(super) workers: Arc<[Worker]>,
    pub(super) own: usize,
    /// This listener's connections, for each worker.
    pub(super) census: Vec<Census>,
    /// A place for each connection that the listener may have; none when it may have as many as
    /// come.
    pub(super) places: Option<Arc<Places>>,
    /// What becomes of its connections in a drain, and their way in.
    pub(super) way: Way,
    pub(super) entry: DrainEntry,
    pub(super) stop: CancellationToken,
    pub(super) beats: mpsc::Receiver<TaskTrackerToken>,
}

/// Runs a worker's accept loops, each as a task of its own, until they are to stop. They are begun
/// and ended from here: to wake another thread for each of them takes longer than all the rest of
/// it. The first that dies is reported, and the others go on.
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

fn report_panic(ended: Result<(), JoinError>, deaths: &Deaths) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        deaths.report("an accept loop", &panic_text(&*panic));
    }
}

impl<S: Service> Accepting<S> {
    /// Until it is told to stop.
    pub(super) async fn run(mut self) {
        let mut place = None;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(beat) = self.beats.recv() => drop(beat),
                accepted = next(&mut self.acceptor, self.places.as_ref(), &self.census, &mut place) => {
                    self.admit(accepted, place.take());
                }
            }
        }
    }

    /// Has one of the workers serve a connection.
    fn admit(&self, accepted: Accepted, place: Option<Place>) {
        let number = choose(&self.workers, self.own);
        let worker = &self.workers[number];
        // Its runtime watches the socket, and runs the task.
        let _within = worker.handle().enter();
        let listener = self.acceptor.listener();
        if let Some((stream, peer)) = accepted.into_stream(listener) {
            let traffic = Arc::clone(stream.traffic());
            let counted = self.census[number].enter(
                Instant::now(),
                Came::Accepted,
                traffic,
                worker.load(),
                place,
            );
            let (listener, way, entry) = (listener.name(), self.way, &self.entry);
            self.connections.spawn(Newcomer {
                stream,
                peer,
                listener,
                counted,
                way,
                entry,
                parcel: None,
            });
        }
    }
}

/// Waits until there is a place, if places are counted, and then for somebody to take it. Cancel
/// safe.
async fn next(
    acceptor: &mut Acceptor,
    places: Option<&Arc<Places>>,
    census: &[Census],
    place: &mut Option<Place>,
) -> Accepted {
    if let (Some(places), None) = (places, &place) {
        *place = places.try_take();
        if place.is_none() {
            // Every loop comes by here, and with each heartbeat again. The one that has accepted
            // the last sees them all.
            if places.fills(|| census.iter().map(Census::open).sum()) {
                // The sum over the workers is what is told: it matters to nobody which of them has
                // it.
                census[0].limited();
                let listener = acceptor.listener().name();
                tracing::debug!(
                    event = "listener.full", %listener,
                    "there are as many connections as there may be"
                );
            }
            *place = places.take().await;
        }
    }
    // It is told like a full listener: clients wait.
    acceptor.accept(|| census[0].limited()).await
}
