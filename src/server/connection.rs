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

use super::slot::{ConnectionEnd, ConnectionSlot};
use crate::carry::{Departure, Departures, OutgoingConnection};
use crate::service::{Connection, Service};

/// How long to wait for the peer to close the connection after the service has finished. If this
/// process closed first, the kernel could send a reset, which destroys the last reply.
const LINGER: Duration = Duration::from_secs(1);

/// The state that all connections of a server share.
#[derive(Debug)]
pub(super) struct ConnectionContext<S> {
    pub(super) service: S,
    /// How long a drain waits for the first request of a silent client, counted from its accept.
    pub(super) first_request_grace: Duration,
    /// The connection limits of the listeners. A listener without a limit is not in this map.
    limits: HashMap<String, NonZeroUsize>,
    /// The means by which connections move to the successor.
    pub(super) departures: Arc<Departures>,
}

impl<S: Service> ConnectionContext<S> {
    pub(super) const fn new(
        service: S,
        first_request_grace: Duration,
        limits: HashMap<String, NonZeroUsize>,
        departures: Arc<Departures>,
    ) -> Self {
        Self { service, first_request_grace, limits, departures }
    }
}

/// The task of one connection.
pub(super) struct ConnectionTask<S> {
    context: Arc<ConnectionContext<S>>,
    connection: Connection,
    slot: ConnectionSlot,
}

impl<S: Service> ConnectionTask<S> {
    pub(super) const fn new(
        context: Arc<ConnectionContext<S>>,
        connection: Connection,
        slot: ConnectionSlot,
    ) -> Self {
        Self { context, connection, slot }
    }

    /// Serves the connection until it ends or moves to the successor.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` reserves memory for `self` twice")]
    pub(super) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            let end = loop {
                if let Some(end) = self.serve_once().await {
                    break end;
                }
                // Box this future, because otherwise every connection would reserve memory for it.
                if let Some(end) = Box::pin(self.hand_over()).await {
                    break end;
                }
            };
            self.finish(end);
        }
    }

    /// Serves the connection until it ends or the service detaches it. Returns how it ended, or
    /// `None` if it is detached.
    async fn serve_once(&mut self) -> Option<ConnectionEnd> {
        let Self { context, connection, slot } = self;
        // Pin the future in place, because passing it by value would reserve memory for a second
        // copy.
        let serving = pin!(async {
            context.service.serve(connection).await?;
            if connection.detached_state().is_some() {
                return Ok(None);
            }
            let late = connection.stream.finish(LINGER).await;
            Ok(Some(ConnectionEnd::Finished { late }))
        });
        match slot.serve(serving).await {
            Some(Ok(end)) => end,
            Some(Err(error)) => Some(ConnectionEnd::Broken(error)),
            None => Some(ConnectionEnd::Cut),
        }
    }

    /// Sends a detached connection to the successor. Returns how the connection ended in this
    /// process, or `None` if it stays here.
    ///
    /// If the connection is cut during this call, it is unknown whether the successor now serves
    /// it. So this process closes its descriptor without further I/O.
    async fn hand_over(&mut self) -> Option<ConnectionEnd> {
        let Self { context, connection, slot } = self;
        // Return an error if the service detached a connection that was not asked to move.
        // Otherwise the service could detach the connection again and again, in an endless loop.
        let age = slot.age();
        let ConnectionSlot { entry, carry, guard, .. } = slot;
        let carry = carry.as_mut().and_then(|carry| carry.request().was_asked().then_some(carry));
        let (Some(carry), Some(parcel)) = (carry, connection.detached_state()) else {
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
            parcel,
        };
        let sent = guard.unless_cut(context.departures.send(carry, &departing)).await;
        match sent {
            None => return Some(ConnectionEnd::Cut),
            Some(Departure::Taken(leaving)) => return Some(ConnectionEnd::Carried(leaving)),
            Some(Departure::Refused) => entry.count(|events| events.counters.refused += 1),
            Some(Departure::Kept) => {}
        }
        connection.stay();
        None
    }

    /// Logs and counts how the connection ended.
    fn finish(self, end: ConnectionEnd) {
        let Self { context: _context, connection, slot } = self;
        report(&connection, &slot, &end);
        let was_told = connection.is_told();
        // Close the file descriptor before the counters show that the connection is gone.
        drop(connection);
        slot.end(end, was_told);
    }
}

/// Logs how a connection ended. Each connection has one such log record.
fn report(connection: &Connection, slot: &ConnectionSlot, end: &ConnectionEnd) {
    let (ending, late, error) = match end {
        ConnectionEnd::Finished { late } => ("finished", *late, None),
        ConnectionEnd::Broken(error) => ("broken", 0, Some(error)),
        ConnectionEnd::Carried(_) => ("carried", 0, None),
        ConnectionEnd::Cut => ("cut", 0, None),
    };
    tracing::debug!(
        event = "connection.ended", listener = connection.listener(), peer = %connection.peer(),
        received = connection.stream.received(), sent = connection.stream.sent(), late,
        seconds = slot.age().as_secs_f64(), ending, error = error.map(tracing::field::display),
        "a client connection ended"
    );
}
