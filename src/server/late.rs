//! The clients that connect to a listener of this generation after the successor has replaced it.
//!
//! When the successor has replaced a listener with another socket, the kernel sends new clients to
//! the new socket. But clients in the middle of their TCP handshake still enter the backlog of the
//! old socket. If this process closed the old socket at once, the kernel would reset these clients.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::connection::{ConnectionSpawner, IncomingConnection};
use super::ledger::ListenerLedger;
use super::slot::ConnectionSlot;
use super::workers::Worker;
use crate::drain::{DrainEntry, OnDrain};
use crate::ledger::Source;
use crate::net::{Acceptor, Listener, Peer, Stream, pending};
use crate::service::Service;

/// How long a TCP handshake may take. The kernel resends a lost packet for the first time after one
/// second (see tcp(7)).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// The task that serves the last clients of a listener that the successor has replaced.
pub(super) struct Latecomers<S> {
    pub(super) listener: Listener,
    pub(super) connections: ConnectionSpawner<S>,
    pub(super) ledger: ListenerLedger,
    /// All workers, and the index of the worker that serves the late clients.
    pub(super) workers: Arc<[Worker]>,
    pub(super) number: usize,
    pub(super) entry: DrainEntry,
    pub(super) stop: CancellationToken,
}

impl<S: Service> Latecomers<S> {
    /// Accepts clients for [`HANDSHAKE_TIMEOUT`], because every handshake that began earlier has
    /// ended by then. Stops earlier if `stop` is cancelled.
    pub(super) async fn run(self) {
        let mut end = pin!(sleep(HANDSHAKE_TIMEOUT));
        match Acceptor::new(self.listener.clone()) {
            Ok(mut acceptor) => loop {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    () = &mut end => break,
                    (stream, peer) = acceptor.accept_here() => self.serve(stream, peer),
                }
            },
            Err(error) => {
                let listener = self.listener.name();
                tracing::warn!(
                    event = "listener.backlog_unwatched", %listener, reason = %error,
                    "cannot wait for the last clients of {listener}: {error}"
                );
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = &mut end => {}
                }
            }
        }
        pending(&self.listener).for_each(|(stream, peer)| self.serve(stream, peer));
    }

    fn serve(&self, stream: Stream, peer: Peer) {
        let slot = ConnectionSlot::new(
            &self.ledger,
            Instant::now(),
            Source::New,
            stream.traffic(),
            self.workers[self.number].load(),
            None,
        );
        let (listener, on_drain, entry) = (self.listener.name(), OnDrain::Finish, &self.entry);
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
