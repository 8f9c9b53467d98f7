//! The server's part of a listener. It counts the listener's connections, limits them, and starts
//! their tasks.
//!
//! Connections come from an accept loop, from the backlog of a listener that is about to be closed,
//! or from the predecessor. All of them start here. The socket itself belongs to the accept loop.

use std::sync::Arc;

use tokio::runtime::EnterGuard;
use tokio::time::Instant;

use super::connection::{ConnectionContext, ConnectionTask};
use super::limit::{ConnectionLimit, Permit};
use super::slot::ConnectionSlot;
use super::workers::Worker;
use crate::carry::CarriedState;
use crate::drain::{DrainEntry, OnDrain};
use crate::ledger::ListenerLedger;
use crate::ledger::Source;
use crate::net::{Peer, Stream};
use crate::service::{Admission, Connection, Service};

/// The parts of the server that the connections of one listener need.
#[derive(Clone, Debug)]
pub(super) struct ListenerSlot<S> {
    pub(super) name: Arc<str>,
    pub(super) context: Arc<ConnectionContext<S>>,
    pub(super) workers: Arc<[Worker]>,
    /// The ledgers of this listener: one for each worker.
    pub(super) ledgers: Vec<ListenerLedger>,
    /// The connection limit of the listener, or `None` if it has no limit.
    pub(super) limit: Option<Arc<ConnectionLimit>>,
    /// How a drain treats the connections: it moves them, or asks them to finish.
    pub(super) on_drain: OnDrain,
    /// The handle that registers the connections with the drain.
    pub(super) entry: DrainEntry,
}

impl<S: Service> ListenerSlot<S> {
    /// Enters the runtime of a worker, so that sockets that the caller creates are registered
    /// there.
    pub(super) fn enter(&self, worker: usize) -> EnterGuard<'_> {
        self.workers[worker].handle().enter()
    }

    /// Serves a new client on a worker. The caller must have entered the worker's runtime before it
    /// created the stream.
    pub(super) fn serve(&self, worker: usize, client: (Stream, Peer), permit: Option<Permit>) {
        self.start(worker, self.prepare(worker, client, Instant::now(), permit, None));
    }

    /// Counts a connection that began at `since`, and prepares the task that serves it on a worker.
    /// `state` is the state that the predecessor has saved, or `None` for a new client.
    pub(super) fn prepare(
        &self,
        worker: usize,
        (stream, peer): (Stream, Peer),
        since: Instant,
        permit: Option<Permit>,
        state: Option<CarriedState>,
    ) -> ConnectionTask<S> {
        let source = if state.is_some() { Source::Carried } else { Source::New };
        let (drain, guard) = self.entry.admit();
        let carry =
            (self.on_drain == OnDrain::Carry).then(|| Box::new(self.context.departures.register()));
        let carry_request = carry.as_ref().map(|carry| Arc::clone(carry.request()));
        let entry = self.ledgers[worker].enter(source, stream.traffic(), since);
        let load = self.workers[worker].load();
        let connection = Connection::new(Admission {
            stream,
            peer,
            listener: Arc::clone(&self.name),
            drain,
            carry_request,
            parcel: state,
            first_request_grace: self.context.first_request_grace,
        });
        let slot = ConnectionSlot { entry, permit, load, carry, guard };
        ConnectionTask::new(Arc::clone(&self.context), connection, slot)
    }

    /// Starts a prepared task on its worker.
    pub(super) fn start(&self, worker: usize, task: ConnectionTask<S>) {
        self.workers[worker].handle().spawn(task.run());
    }
}
