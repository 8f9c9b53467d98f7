//! The handle with which your own server moves a connection to the successor.
//!
//! The server waits in [`CarryHandle::asked`] while the connection is between two messages. When
//! the lifecycle asks the connection to move, the server takes the stream back from its protocol
//! library, and hands it over. If the successor does not take it, the server gets the stream back
//! and continues.

use std::sync::Arc;

use tokio::time::Instant;

use crate::carry::{AttentionGuard, CarriedState, CarrySlot, Departure, OutgoingConnection};
use crate::config::OnHandoff;
use crate::lifecycle::life::{Life, LifeState, OpenConnection, ServedListener};
use crate::net::{Peer, Stream};

/// The handle with which a connection moves to the successor. Keep it as long as the connection is
/// open: the handoff waits for this connection until the handle is dropped.
#[derive(Debug)]
pub struct CarryHandle {
    state: Arc<LifeState>,
    served: Arc<ServedListener>,
    peer: Peer,
    /// When the connection began, maybe in another process.
    since: Instant,
    /// The registration through which the connection is asked to move. `None` if the configuration
    /// lets no connection of the listener move.
    slot: Option<CarrySlot>,
}

/// The permission to move one connection to the successor. Dropping this value unused lets another
/// connection move first.
#[derive(Debug)]
pub struct CarryPermit<'a> {
    handle: &'a CarryHandle,
    slot: &'a CarrySlot,
    _attention: AttentionGuard<'a>,
}

/// The outcome of an attempt to hand a connection over to the successor.
#[derive(Debug)]
#[must_use = "a connection that has stayed must be served"]
pub enum CarryOutcome {
    /// The connection belongs to the successor.
    Moved,
    /// The connection still belongs to this process, because the successor has refused it or has
    /// died, or because the handoff is over.
    Stayed {
        /// The byte stream to and from the client, unchanged.
        stream: Stream,
        /// The state that was to move with the connection, unchanged.
        state: CarriedState,
    },
}

impl CarryHandle {
    pub(super) fn new(
        state: Arc<LifeState>,
        served: &Arc<ServedListener>,
        peer: Peer,
        since: Instant,
    ) -> Self {
        let slot = (served.on_handoff == OnHandoff::Carry).then(|| {
            let slot = state.moves.departures.register();
            // Let other connections move first, until the server has called `asked` for this
            // connection.
            slot.stop_watching();
            slot
        });
        Self { state, served: Arc::clone(served), peer, since, slot }
    }

    /// Waits until the connection is asked to move to the successor. Waits forever if it cannot
    /// move. Cancel safe.
    ///
    /// Call this function only while the connection is between two messages. Then hand it over
    /// without waiting for the client, because only 64 connections at a time are asked to move. If
    /// it cannot move right now, drop the permit, and call this function again later.
    pub async fn asked(&self) -> CarryPermit<'_> {
        let can_move = self.slot.as_ref().filter(|slot| !slot.request().has_opted_out());
        let Some(slot) = can_move else { return std::future::pending().await };
        let attention = slot.begin_watching();
        slot.request().asked().await;
        CarryPermit { handle: self, slot, _attention: attention }
    }

    /// Waits until it is time to ask this connection to end, because it cannot move to a successor.
    /// Use it instead of [`Life::draining_of`], which does not wait for the moves. Cancel safe.
    ///
    /// The connection must end if the service stops, if the successor has refused it, or if it has
    /// not moved within half of [`Config::drain_timeout`](crate::Config::drain_timeout). For a
    /// connection that cannot move at all, this function waits as long as [`Life::draining_of`].
    pub async fn draining(&self) {
        if let Some(slot) = &self.slot {
            tokio::select! {
                () = self.state.moves.draining_uncarried() => {}
                () = slot.request().refused() => {}
            }
        }
        Life::of(Arc::clone(&self.state)).draining_in(self.served.order).await;
    }

    /// Excludes this connection from all moves to a successor. A server needs this for a connection
    /// whose state it cannot save, such as one with TLS. The connection is drained instead.
    pub fn opt_out(&self) {
        if let Some(slot) = &self.slot {
            slot.opt_out();
        }
    }
}

impl CarryPermit<'_> {
    /// Hands the connection over to the successor, which gets `state` with it. During the call, no
    /// process serves the connection.
    ///
    /// `stream` is the stream of this connection, as [`CarryClient`](super::CarryClient) contained
    /// it. Whatever a protocol library has read from it, or still has to write to it, must be in
    /// `state`. A connection does not move if its state is larger than [`CarriedState::BYTES_MAX`].
    ///
    /// Not cancel safe: if the future is dropped, this process closes its descriptor of the
    /// connection. The connection then continues only if the successor has taken it.
    pub async fn hand_over(self, mut stream: Stream, state: CarriedState) -> CarryOutcome {
        let CarryHandle { state: life, served, peer, since, .. } = self.handle;
        let outgoing = OutgoingConnection {
            listener: &served.name,
            peer: *peer,
            age: since.elapsed(),
            max_connections: served.max_connections(),
            stream: &stream,
            saved_state: &state,
        };
        match life.moves.departures.send(self.slot, &outgoing).await {
            Departure::Taken(leaving) => {
                let open = stream.take_count::<OpenConnection>();
                // A cut has already counted the connection.
                if let Some(open) = open.filter(|_| !life.cut.is_cancelled()) {
                    open.carried();
                }
                drop(stream);
                self.slot.moved();
                drop(leaving);
                CarryOutcome::Moved
            }
            Departure::Refused => {
                served.refused();
                CarryOutcome::Stayed { stream, state }
            }
            Departure::Kept => CarryOutcome::Stayed { stream, state },
        }
    }
}
