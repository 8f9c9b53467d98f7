//! The part of the server that belongs to one listener. It counts and limits the listener's
//! connections, and starts their tasks.
//!
//! Connections come from an accept loop, from the backlog of a listener that is about to be closed,
//! or from the predecessor. They all start in this module. The listening socket itself belongs to
//! the accept loop.

use std::sync::Arc;

use tokio::runtime::EnterGuard;
use tokio::time::Instant;

use super::connection::{ConnectionContext, ConnectionTask};
#[cfg(feature = "proxy")]
use super::relays::{Carrying, RelayedConnection, UpstreamLink};
use super::slot::ConnectionSlot;
use super::workers::Worker;
use crate::carry::CarriedState;
use crate::drain::{DrainEntry, OnDrain};
use crate::ledger::{ConnectionLimit, ListenerEntry, ListenerLedger, Permit, Source};
use crate::net::{Accepted, Listener, Peer, Stream};
#[cfg(feature = "proxy")]
use crate::plane::{Limits, RelayEntry};
#[cfg(feature = "proxy")]
use crate::service::Attempt;
use crate::service::{Admission, Connection, Service};

/// The parts of the server that the connections of one listener need.
#[derive(Clone, Debug)]
pub(super) struct ListenerSlot<S> {
    pub(super) name: Arc<str>,
    pub(super) context: Arc<ConnectionContext<S>>,
    pub(super) workers: Arc<[Worker]>,
    /// The open connections and the counters of this listener: one ledger for each worker.
    pub(super) ledgers: Vec<ListenerLedger>,
    /// The connection limit of the listener, or `None` if it has no limit.
    pub(super) limit: Option<Arc<ConnectionLimit>>,
    /// How a drain treats the connections: it moves them, or asks them to finish.
    pub(super) on_drain: OnDrain,
    /// The handle that adds the connections to the drain.
    pub(super) entry: Arc<DrainEntry>,
}

impl<S: Service> ListenerSlot<S> {
    /// Enters the runtime of a worker, so that the sockets that the caller creates are registered
    /// with that runtime.
    pub(super) fn enter(&self, worker: usize) -> EnterGuard<'_> {
        self.workers[worker].handle().enter()
    }

    /// Serves a new client on a worker. The caller must have entered the worker's runtime before it
    /// created the stream.
    pub(super) fn serve(&self, worker: usize, client: (Stream, Peer), permit: Option<Permit>) {
        self.serve_from(worker, client, permit, None);
    }

    /// Serves a new client on a worker. If an attempt to connect the client has already failed, the
    /// service continues from `state`.
    fn serve_from(
        &self,
        worker: usize,
        (stream, peer): (Stream, Peer),
        permit: Option<Permit>,
        state: Option<CarriedState>,
    ) {
        let now = Instant::now();
        let entry = self.ledgers[worker].enter(Source::New, stream.traffic(), now);
        let slot = self.slot(worker, (entry, now), permit);
        self.start(worker, self.task(worker, (stream, peer), slot, state));
    }

    /// Serves a client that an accept loop has accepted. The caller must have entered the worker's
    /// runtime.
    pub(super) fn serve_accepted(
        &self,
        worker: usize,
        client: Accepted,
        listener: &Listener,
        permit: Option<Permit>,
    ) {
        #[cfg(feature = "proxy")]
        let state = match self.begin_at_once(&client) {
            Some(Ok(attempt)) => return self.relay_at_once(worker, client, attempt, permit),
            Some(Err(state)) => Some(state),
            None => None,
        };
        #[cfg(not(feature = "proxy"))]
        let state = None;
        if let Some(client) = client.into_stream(listener) {
            self.serve_from(worker, client, permit, state);
        }
    }

    /// Prepares the task for a connection from the predecessor. The connection began at `since`.
    pub(super) fn prepare(
        &self,
        worker: usize,
        (stream, peer): (Stream, Peer),
        since: Instant,
        permit: Option<Permit>,
        state: CarriedState,
    ) -> ConnectionTask<S> {
        let entry = self.ledgers[worker].enter(Source::Carried, stream.traffic(), since);
        let slot = self.slot(worker, (entry, since), permit);
        self.task(worker, (stream, peer), slot, Some(state))
    }

    /// Counts a connection as open in the load of its worker and in the drain, until the returned
    /// slot is dropped. `entry` counts it in the ledger, since the time when it began.
    fn slot(
        &self,
        worker: usize,
        (entry, since): (ListenerEntry, Instant),
        permit: Option<Permit>,
    ) -> ConnectionSlot {
        let load = self.workers[worker].load();
        ConnectionSlot { entry, since, permit, load, guard: self.entry.admit() }
    }

    /// Prepares the task that serves a connection on a worker. `state` is the state that the
    /// service or the predecessor has saved, or `None` for a new client.
    fn task(
        &self,
        worker: usize,
        (stream, peer): (Stream, Peer),
        slot: ConnectionSlot,
        state: Option<CarriedState>,
    ) -> ConnectionTask<S> {
        let context = Arc::clone(&self.context);
        let carry =
            (self.on_drain == OnDrain::Carry).then(|| Box::new(context.departures.register()));
        let connection = Connection::new(Admission {
            stream,
            peer,
            listener: Arc::clone(&self.name),
            drain: slot.guard.watch().clone(),
            carry_request: carry.as_ref().map(|carry| Arc::clone(carry.request())),
            saved_state: state,
            first_request_grace: context.first_request_grace,
        });
        ConnectionTask::new(context, connection, (slot, carry), worker)
    }

    /// Begins to connect a client to an upstream, if a proxy serves this listener.
    #[cfg(feature = "proxy")]
    fn begin_at_once(&self, client: &Accepted) -> Option<Result<Attempt, CarriedState>> {
        self.context.service.proxy(&self.name)?.begin_at_once(&self.name, client)
    }

    /// Adds the client to the worker's relay plane, which is one task for many connections. The
    /// plane waits until the upstream has accepted the connection, and then relays bytes.
    #[cfg(feature = "proxy")]
    fn relay_at_once(
        &self,
        worker: usize,
        client: Accepted,
        attempt: Attempt,
        permit: Option<Permit>,
    ) {
        let peer = client.peer();
        let mut client = client.into_relay_socket();
        if let Some(proxy) = self.context.service.proxy(&self.name) {
            proxy.set_client_options(&mut client, &self.name);
        }
        let entry = self.ledgers[worker].enter_unlisted();
        let slot = self.slot(worker, (entry, Instant::now()), permit);
        let link = UpstreamLink::Connecting(Some(attempt.connecting));
        let carry = match self.on_drain {
            OnDrain::Carry => Carrying::Possible,
            OnDrain::Finish => Carrying::Never,
        };
        let owner = RelayedConnection::new(slot, link, peer, carry);
        let (upstream, relay, limits) = (attempt.upstream, attempt.relay, Limits::none());
        self.context.relay(RelayEntry { client, upstream, relay, limits, owner }, worker);
    }

    /// Starts a prepared task on its worker.
    pub(super) fn start(&self, worker: usize, task: ConnectionTask<S>) {
        self.workers[worker].handle().spawn(task.run());
    }
}
