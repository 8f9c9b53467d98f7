//! The connections that leave a relay plane and get their own task again. They move to the
//! successor, or their first attempt to connect to an upstream has failed.

use std::io;
use std::sync::Arc;

use super::{Carrying, RelayedConnection, RunningPlane, UpstreamLink};
use crate::carry::{CarrySlot, UnregisteredConnections};
use crate::net::{Peer, RelaySocket};
use crate::plane::RelayEntry;
use crate::server::connection::{ConnectionContext, ConnectionTask, EndedConnection};
use crate::server::slot::{ConnectionEnd, ConnectionSlot};
use crate::server::workers::Worker;
use crate::service::{Admission, Connection, Established, Service};

/// The connections in the relay planes of a server, which may move to the successor.
pub(in crate::server) struct RelayedConnections<S> {
    context: Arc<ConnectionContext<S>>,
    workers: Arc<[Worker]>,
}

impl<S: Service> RelayedConnections<S> {
    /// Prepares the relayed connections for a move to a new successor. Connections that stayed in
    /// this process in an earlier attempt may move now. The server already allowed this when it
    /// resumed, but some connections may have returned to their planes only later.
    pub(in crate::server) fn begin_carry(
        context: &Arc<ConnectionContext<S>>,
        workers: &Arc<[Worker]>,
    ) -> Self {
        context.relays.forget_refusals();
        Self { context: Arc::clone(context), workers: Arc::clone(workers) }
    }
}

impl<S: Service> UnregisteredConnections for RelayedConnections<S> {
    async fn register_all(&self) {
        let Self { context, workers } = self;
        for (worker, running) in context.relays.planes.iter().enumerate() {
            let Some(RunningPlane { plane, .. }) = running.get() else { continue };
            let may_move = |connection: &RelayedConnection| connection.may_move();
            let mut cursor = 0;
            while context.departures.has_room().await {
                let Some((entry, failure)) = plane.take(&mut cursor, may_move) else { break };
                let _within = workers[worker].handle().enter();
                match failure {
                    Some(error) => context.connect_slowly(entry, &error, worker),
                    None => context.leave_plane(entry, worker),
                }
            }
        }
    }

    fn is_any_left(&self) -> bool {
        let mut is_found = false;
        for running in self.context.relays.running() {
            running.plane.for_each(|connection| is_found |= connection.may_move());
        }
        is_found
    }
}

impl<S: Service> ConnectionContext<S> {
    /// Starts the task that moves a connection to the successor.
    fn leave_plane(self: &Arc<Self>, entry: RelayEntry<RelayedConnection>, worker: usize) {
        let carry = Box::new(self.departures.register());
        if !carry.request().carry_requested() {
            // Return the connection to its plane, because the attempt to move connections has just
            // ended.
            return self.relay(entry, worker);
        }
        let RelayEntry { client, upstream, relay, limits, owner } = entry;
        let RelayedConnection { slot, link, peer, .. } = owner;
        let state = match link {
            UpstreamLink::Established(count) => {
                let established = Established { upstream, relay, limits, count };
                established.into_state(client.transferred(), slot.age())
            }
            UpstreamLink::Connecting(Some(connecting)) => connecting.into_state(),
            UpstreamLink::Connecting(None) => return,
        };
        if let Some(mut task) = self.task(client, (slot, peer), Some(carry), worker) {
            task.detach(state);
            tokio::spawn(task.leave());
        }
    }

    /// Starts the task that connects a client to another upstream, because its first attempt has
    /// failed.
    pub(super) fn connect_slowly(
        self: &Arc<Self>,
        entry: RelayEntry<RelayedConnection>,
        reason: &io::Error,
        worker: usize,
    ) {
        let RelayEntry { client, upstream, owner, .. } = entry;
        let RelayedConnection { slot, link, peer, carry } = owner;
        let UpstreamLink::Connecting(Some(connecting)) = link else { return };
        let state = connecting.failed(reason);
        let carry = (carry != Carrying::Never).then(|| Box::new(self.departures.register()));
        if let Some(mut task) = self.task(client, (slot, peer), carry, worker) {
            task.resume_from(state);
            // Close this socket only now, because the client has claimed a descriptor instead.
            // Otherwise a new client could take the descriptor.
            drop(upstream);
            tokio::spawn(task.run());
        }
    }

    /// Creates a task for a connection that was in a relay plane. Resets the connection and returns
    /// `None` if the tokio runtime cannot watch its socket.
    fn task(
        self: &Arc<Self>,
        client: RelaySocket,
        (mut slot, peer): (ConnectionSlot, Peer),
        registration: Option<Box<CarrySlot>>,
        worker: usize,
    ) -> Option<ConnectionTask<S>> {
        let counts = client.counts();
        let stream = match client.into_stream() {
            Ok(stream) => stream,
            Err(error) => {
                let end = ConnectionEnd::Broken(error);
                EndedConnection { peer, counts }.report(&slot, &end);
                let was_draining = slot.is_draining();
                slot.end(end, was_draining, registration);
                return None;
            }
        };
        slot.entry.list(stream.traffic(), slot.since);
        let carry_request = registration.as_ref().map(|one| Arc::clone(one.request()));
        let connection = Connection::new(Admission {
            stream,
            peer,
            listener: Arc::clone(slot.listener()),
            drain: slot.guard.watch().clone(),
            carry_request,
            saved_state: None,
            first_request_grace: self.first_request_grace,
        });
        Some(ConnectionTask::new(Arc::clone(self), connection, (slot, registration), worker))
    }
}
