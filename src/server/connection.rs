//! The task of one connection. It serves the connection until the connection ends, is cut, or moves
//! to the successor. Then it counts and logs how the connection ended.
//!
//! To move a connection, the service first detaches it: the service stops serving the connection
//! and saves its state. The task then sends the connection to the successor. If the successor does
//! not accept the connection, the service continues to serve it in this process.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "proxy")]
use super::relays::{Carrying, RelayedConnection, Relays, UpstreamLink};
use super::slot::{ConnectionEnd, ConnectionSlot};
use super::workers::Workers;
#[cfg(feature = "proxy")]
use crate::carry::CarriedState;
use crate::carry::{CarrySlot, Departure, Departures, OutgoingConnection};
use crate::config::Config;
#[cfg(feature = "proxy")]
use crate::net::ProxiedSocket;
use crate::net::{ByteCounts, Peer};
#[cfg(feature = "proxy")]
use crate::plane::RelayEntry;
#[cfg(feature = "proxy")]
use crate::service::Established;
use crate::service::{Connection, Service};

/// How long to wait for the peer to close the connection after the service has finished. If this
/// process closed first, the kernel could send a reset, which destroys the last reply.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// The state that all connections of a server share.
#[derive(Debug)]
pub(super) struct ConnectionContext<S> {
    pub(super) service: S,
    /// How long a drain waits for the first request of a silent client, counted from the time at
    /// which the client was accepted.
    pub(super) first_request_grace: Duration,
    /// The connection limits of the listeners. A listener without a limit is not in this map.
    limits: HashMap<String, NonZeroUsize>,
    /// The scheduler and the channel that move connections to the successor.
    pub(super) departures: Arc<Departures>,
    /// The tasks that forward the bytes of proxied connections, one for each worker.
    #[cfg(feature = "proxy")]
    pub(super) relays: Relays,
}

impl<S: Service> ConnectionContext<S> {
    /// Creates the state for the connections on `workers`.
    pub(super) fn new(
        service: S,
        config: &Config,
        workers: &Workers,
        departures: Arc<Departures>,
    ) -> Self {
        #[cfg(not(feature = "proxy"))]
        let _ = workers;
        Self {
            service,
            first_request_grace: config.first_request_grace,
            limits: config.listeners.limits(),
            departures,
            #[cfg(feature = "proxy")]
            relays: Relays::new(workers.all().len(), workers.deaths().clone()),
        }
    }
}

/// The task of one connection.
pub(super) struct ConnectionTask<S> {
    context: Arc<ConnectionContext<S>>,
    connection: Connection,
    slot: ConnectionSlot,
    /// The registration of a connection that may move to the successor. Boxed to save memory,
    /// because not every connection has one.
    registration: Option<Box<CarrySlot>>,
    /// The index of the worker that runs this task.
    #[cfg_attr(not(feature = "proxy"), expect(dead_code, reason = "a proxy needs its plane"))]
    worker: usize,
    /// Whether the connection was offered to the successor, but stays in this process.
    stays: bool,
}

/// Why a service has stopped serving a connection.
enum ServiceOutcome {
    Ended(ConnectionEnd),
    /// The service has detached the connection, which is to move to the successor.
    Detached,
    /// The client is connected to an upstream, and the server is to relay the bytes between them.
    #[cfg(feature = "proxy")]
    Established(Box<Established>),
}

impl<S: Service> ConnectionTask<S> {
    pub(super) fn new(
        context: Arc<ConnectionContext<S>>,
        connection: Connection,
        (slot, registration): (ConnectionSlot, Option<Box<CarrySlot>>),
        worker: usize,
    ) -> Self {
        Self { context, connection, slot, registration, worker, stays: false }
    }

    /// Serves the connection until it ends, moves to the successor, or passes to a relay plane,
    /// which is one task for many connections.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` reserves memory for `self` twice")]
    pub(super) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            loop {
                match self.serve_once().await {
                    ServiceOutcome::Ended(end) => return self.finish(end),
                    ServiceOutcome::Detached => {}
                    #[cfg(feature = "proxy")]
                    ServiceOutcome::Established(established)
                        if self.connection.carry_requested() =>
                    {
                        let with_client = self.connection.stream.traffic().transferred();
                        let age = self.slot.age();
                        self.connection.detach(established.into_state(with_client, age));
                    }
                    #[cfg(feature = "proxy")]
                    ServiceOutcome::Established(established) => return self.relay(*established),
                }
                // Box this future, because otherwise every connection would reserve memory for it.
                if let Some(end) = Box::pin(self.hand_over()).await {
                    return self.finish(end);
                }
            }
        }
    }

    /// Detaches the connection from its service, so that [`ConnectionTask::leave`] can move it.
    #[cfg(feature = "proxy")]
    pub(super) fn detach(&mut self, state: CarriedState) {
        self.connection.detach(state);
    }

    /// Lets the service continue from `state`, which the service saved earlier. Claims a file
    /// descriptor for the next connection to an upstream.
    #[cfg(feature = "proxy")]
    pub(super) fn resume_from(&mut self, state: CarriedState) {
        self.connection.stream.claim_descriptor();
        self.connection.detach(state);
        self.connection.stay();
    }

    /// Moves a detached connection to the successor. If the successor does not take the connection,
    /// this process continues to serve it.
    #[cfg(feature = "proxy")]
    pub(super) async fn leave(mut self) {
        match self.hand_over().await {
            Some(end) => self.finish(end),
            None => Box::pin(self.run()).await,
        }
    }

    /// Ends this task. From now on the worker's relay plane, which is one task for many
    /// connections, relays the connection.
    #[cfg(feature = "proxy")]
    fn relay(self, established: Established) {
        // Keep the connection registered for a move until it is in the relay plane. Otherwise, the
        // scheduler could miss the connection, and conclude too early that all connections have
        // moved.
        let Self { context, connection, mut slot, registration, worker, stays } = self;
        let Established { upstream, relay, limits, count } = established;
        let peer = connection.peer();
        let stream = connection.into_stream();
        let traffic = Arc::clone(stream.traffic());
        match stream.into_relay_socket() {
            Ok(client) => {
                slot.entry.unlist();
                let link = UpstreamLink::Established(count);
                let carry = match &registration {
                    Some(_) if stays => Carrying::Stays,
                    Some(_) => Carrying::Possible,
                    None => Carrying::Never,
                };
                let owner = RelayedConnection::new(slot, link, peer, carry);
                context.relay(RelayEntry { client, upstream, relay, limits, owner }, worker);
            }
            Err(error) => {
                upstream.reset_on_drop();
                drop((upstream, count));
                let end = ConnectionEnd::Broken(error);
                EndedConnection { peer, counts: traffic.counts() }.report(&slot, &end);
                let was_draining = slot.is_draining();
                slot.end(end, was_draining, registration);
            }
        }
    }

    /// Lets the service serve the connection, and returns why the service has stopped.
    async fn serve_once(&mut self) -> ServiceOutcome {
        let Self { context, connection, slot, registration, .. } = self;
        let served = {
            // Pin the future in place, because passing it by value would reserve memory for a
            // second copy.
            let serving = pin!(async {
                context.service.serve(connection).await?;
                #[cfg(feature = "proxy")]
                if let Some(established) = connection.take_established() {
                    return Ok(ServiceOutcome::Established(established));
                }
                if connection.detached_state().is_some() {
                    return Ok(ServiceOutcome::Detached);
                }
                let late = connection.stream.finish(LINGER).await;
                Ok(ServiceOutcome::Ended(ConnectionEnd::Finished { late }))
            });
            slot.serve(registration, serving).await
        };
        match served {
            Some(Ok(served)) => served,
            Some(Err(error)) => ServiceOutcome::Ended(ConnectionEnd::Broken(error)),
            None => {
                // Reset a client that waits for an upstream, because it could mistake a clean close
                // for an empty reply.
                #[cfg(feature = "proxy")]
                if context.service.proxy(connection.listener()).is_some() {
                    connection.stream.reset_on_drop();
                }
                ServiceOutcome::Ended(ConnectionEnd::Cut)
            }
        }
    }

    /// Sends a detached connection to the successor. Returns how the connection ended in this
    /// process, or `None` if it stays in this process.
    ///
    /// If the connection is cut during this call, it is unknown whether the successor now serves
    /// it. So this process closes its descriptor without further I/O.
    async fn hand_over(&mut self) -> Option<ConnectionEnd> {
        let Self { context, connection, slot, registration, .. } = self;
        // Return an error if the service detached a connection that was not asked to move.
        // Otherwise the service could detach the connection again and again, in an endless loop.
        let age = slot.age();
        let ConnectionSlot { entry, guard, .. } = slot;
        let registration = registration.as_mut().filter(|one| one.request().was_asked());
        let (Some(registration), Some(saved_state)) = (registration, connection.detached_state())
        else {
            return Some(ConnectionEnd::Broken(io::Error::other(
                "the service detached a connection that it was not asked to move",
            )));
        };
        let departing = OutgoingConnection {
            listener: connection.listener(),
            peer: connection.peer(),
            age,
            max_connections: context.limits.get(connection.listener()).copied(),
            stream: &connection.stream,
            saved_state,
        };
        let sent = guard.unless_cut(context.departures.send(registration, &departing)).await;
        match sent {
            None => return Some(ConnectionEnd::Cut),
            Some(Departure::Taken(leaving)) => return Some(ConnectionEnd::Carried(leaving)),
            Some(Departure::Refused) => entry.count(|events| events.counters.refused += 1),
            Some(Departure::Kept) => {}
        }
        connection.stay();
        self.stays = true;
        None
    }

    /// Logs and counts how the connection ended.
    fn finish(self, end: ConnectionEnd) {
        let Self { context: _context, connection, slot, registration, .. } = self;
        let (peer, counts) = (connection.peer(), connection.stream.traffic().counts());
        EndedConnection { peer, counts }.report(&slot, &end);
        let was_draining = connection.is_draining();
        // Close the file descriptor before the counters show that the connection is gone.
        drop(connection);
        slot.end(end, was_draining, registration);
    }
}

/// The data for the log record of a connection that has ended.
pub(super) struct EndedConnection {
    pub(super) peer: Peer,
    pub(super) counts: ByteCounts,
}

impl EndedConnection {
    /// Logs how the connection ended. Each connection has one such log record.
    pub(super) fn report(&self, slot: &ConnectionSlot, end: &ConnectionEnd) {
        let Self { peer, counts: ByteCounts { received, sent } } = *self;
        let (ending, late, error) = match end {
            ConnectionEnd::Finished { late } => ("finished", *late, None),
            ConnectionEnd::Broken(error) => ("broken", 0, Some(error)),
            ConnectionEnd::Carried(_) => ("carried", 0, None),
            ConnectionEnd::Cut => ("cut", 0, None),
        };
        tracing::debug!(
            event = "connection.ended", listener = %slot.listener(), %peer, received, sent, late,
            seconds = slot.age().as_secs_f64(), ending, error = error.map(tracing::field::display),
            "a client connection ended"
        );
    }
}
