//! Accepts clients of a replaced listener that had begun to connect before it was replaced.
//!
//! The kernel sends new clients to the listener that has replaced it. Those in the middle of their handshake still come into
//! its queue, and would be reset if it were closed at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Server;
use super::census::{Came, Census};
use super::connection::{Connections, Newcomer};
use super::workers::Worker;
use crate::drain::{DrainEntry, Way};
use crate::net::{Acceptor, Listener, Peer, Stream, waiting};
use crate::service::Service;

/// How long a handshake may take: a packet that is lost is sent again after a second, tcp(7).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What serves the late clients of one listener.
struct Latecomers<S> {
    listener: Listener,
    connections: Connections<S>,
    census: Census,
    /// All workers, and the number of the one that serves them.
    workers: Arc<[Worker]>,
    number: usize,
    entry: DrainEntry,
    stop: CancellationToken,
}

impl<S: Service> Server<S> {
    /// Accepts on `replaced` until all handshakes that had begun must have ended. [`Server::drained`] waits for that.
    pub(crate) fn accept_late(&mut self, replaced: Vec<Listener>) {
        let workers = Arc::clone(self.workers.all());
        for (listener, (number, worker)) in replaced.into_iter().zip(workers.iter().enumerate().cycle()) {
            let latecomers = Latecomers {
                census: self.census(number, listener.name()),
                connections: self.connections.clone(),
                workers: Arc::clone(&workers),
                number,
                // They come when the drain has begun, too late to be carried.
                entry: self.drain.entry(Way::End),
                stop: self.stop_late.clone(),
                listener,
            };
            self.late.spawn_on(latecomers.run(), worker.handle());
        }
    }
}

impl<S: Service> Latecomers<S> {
    async fn run(self) {
        let mut end = pin!(sleep(HANDSHAKE_TIMEOUT));
        match Acceptor::new(self.listener.clone()) {
            Ok(mut acceptor) => loop {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    (stream, peer) = acceptor.accept_here() => self.serve(stream, peer),
                    () = &mut end => break,
                }
            },
            Err(error) => {
                let listener = self.listener.name();
                tracing::warn!(%listener, reason = %error, "cannot watch {listener} for its last clients: {error}");
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = &mut end => {}
                }
            }
        }
        waiting(&self.listener).for_each(|(stream, peer)| self.serve(stream, peer));
    }

    fn serve(&self, stream: Stream, peer: Peer) {
        let traffic = Arc::clone(stream.traffic());
        let counted =
            self.census.enter(Instant::now(), Came::Accepted, traffic, self.workers[self.number].load(), None);
        let (listener, way, entry) = (self.listener.name(), Way::End, &self.entry);
        self.connections.spawn(Newcomer { stream, peer, listener, counted, way, entry, parcel: None });
    }
}
