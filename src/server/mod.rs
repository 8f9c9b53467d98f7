//! Serves: an accept loop for each listener on each worker, a task for each connection, and a drain over all of them.
//!
//! A stranger to handoffs: it accepts, stops, resumes, drains and cuts when it is told to. Listeners on which it stops
//! accepting stay open, for what waits in their queues belongs to whoever accepts next; which of them to close, the
//! caller decides.

mod census;
mod connection;
mod workers;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::drain::{Drain, DrainEntry, DrainReport};
use crate::error::Error;
use crate::net::{Acceptor, Listener, waiting};
use crate::report;
use crate::service::Service;
use connection::Connections;

pub use workers::Workers;

/// A service on its listeners.
#[derive(Debug)]
pub(crate) struct Server<S> {
    workers: Workers,
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
    pub(crate) fn new(service: S, first_request_grace: Duration, workers: Workers) -> Self {
        let connections = Connections::new(service, first_request_grace);
        let (drain, stop, loops) = (Drain::new(), CancellationToken::new(), JoinSet::new());
        Self { workers, connections, drain, stop, loops, hearts: Vec::new() }
    }

    /// Accepts on all of `listeners`, for the first time or again. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel will not watch a listener.
    pub(crate) fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        self.drain.resume();
        self.stop = CancellationToken::new();
        for (worker, listener) in
            self.workers.handles().iter().flat_map(|worker| listeners.iter().map(move |one| (worker, one)))
        {
            // Watched by the worker's runtime.
            let within = worker.enter();
            let acceptor = Acceptor::new(listener.clone()).map_err(Error::system("watch a listener"))?;
            drop(within);
            let (heart, beats) = mpsc::channel(1);
            self.hearts.push(heart);
            let accepting = accept(acceptor, self.connections.clone(), self.drain.entry(), self.stop.clone(), beats);
            self.loops.spawn_on(accepting, worker);
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
    pub(crate) fn sweep(&self, listeners: &[Listener]) {
        let entry = self.drain.entry();
        // There is at least one.
        let _within = self.workers.handles().first().map(tokio::runtime::Handle::enter);
        for listener in listeners {
            for (stream, peer) in waiting(listener) {
                self.connections.spawn(stream, peer, listener, &entry);
            }
        }
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
        self.connections.report()
    }

    /// How they ended that were there when the drain began.
    pub(crate) fn report(&self) -> DrainReport {
        self.drain.report()
    }
}

/// Accepts on one listener until `stop` is cancelled.
async fn accept<S: Service>(
    mut acceptor: Acceptor,
    connections: Connections<S>,
    entry: DrainEntry,
    stop: CancellationToken,
    mut beats: mpsc::Receiver<TaskTrackerToken>,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(beat) = beats.recv() => drop(beat),
            (stream, peer) = acceptor.accept() => connections.spawn(stream, peer, acceptor.listener(), &entry),
        }
    }
}
