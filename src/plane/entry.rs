//! A proxied connection in a relay plane: its two sockets, its relay, its time limits, and what the
//! server stores with it.

use tokio::time::Instant;

use super::limits::{Expired, Limits};
use super::relay::Relay;
use super::settle::Side;
use crate::net::{ByteCounts, PeerLoss, ProxiedSocket, RelaySocket};

/// A connection between a client and an upstream. `T` is the data that the caller stores with the
/// connection.
#[derive(Debug)]
pub(crate) struct RelayEntry<T> {
    pub(crate) client: RelaySocket,
    pub(crate) upstream: RelaySocket,
    pub(crate) relay: Relay,
    pub(crate) limits: Limits,
    pub(crate) owner: T,
}

/// The data that the caller stores with a connection. The relay plane asks it for the time limits
/// of the connection.
pub(crate) trait RelayOwner: Send {
    /// Returns the deadline of the attempt to connect to the upstream, or `None` if the connection
    /// to the upstream is established. The deadline of an attempt never changes.
    fn connect_deadline(&self) -> Option<Instant>;

    /// Records that the connection to the upstream is established. Returns the time limits of the
    /// connection.
    fn connected(&mut self) -> Limits;

    /// Counts the bytes that the two sockets have transferred.
    fn transferred(&self, client: ByteCounts, upstream: ByteCounts);
}

/// The reason why a connection is no longer relayed.
#[derive(Debug)]
pub(crate) enum RelayEnd {
    /// The upstream did not accept the connection, for this reason. No byte of the client has been
    /// read.
    NotConnected(std::io::Error),
    /// The client has disconnected before the upstream accepted the connection.
    ClientLeft,
    /// Both sides have half-closed, and all bytes have been passed on.
    Finished,
    /// This side has closed its Unix socket, so it can receive nothing more. All its bytes have
    /// been passed on, but the kernel of the other side may not have acknowledged them yet.
    PeerClosed(Side),
    /// The client's connection failed with this error.
    ClientBroke(std::io::Error),
    /// The upstream's connection failed with this error.
    UpstreamBroke(std::io::Error),
    /// The connection has reached a time limit.
    Expired(Expired),
}

impl<T: RelayOwner> RelayEntry<T> {
    /// Calls `transfer`, and lets the owner count the bytes that it has transferred.
    pub(super) fn count_bytes<R>(&mut self, transfer: impl FnOnce(&mut Self) -> R) -> R {
        let (client, upstream) = (self.client.counts(), self.upstream.counts());
        let result = transfer(self);
        self.owner.transferred(self.client.counts() - client, self.upstream.counts() - upstream);
        result
    }
}

impl<T> RelayEntry<T> {
    /// Returns how many bytes both peers have not acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.client.unacknowledged() + self.upstream.unacknowledged()
    }

    /// Returns the number of bytes that both sockets have transferred so far.
    pub(crate) fn transferred(&self) -> u64 {
        self.client.transferred() + self.upstream.transferred()
    }

    /// Asks the kernel whether the relay can move bytes now, even if no event has said so yet.
    pub(super) fn look(&mut self) -> bool {
        let (client, upstream) = self.relay.waits_for();
        // Look at both sides in any case, so that both sockets record the answer.
        self.client.look(client) | self.upstream.look(upstream)
    }

    /// Returns whether the client has reset its connection. A closed Unix socket does not count,
    /// because the upstream must receive the bytes that the client sent before. Call this function
    /// only while nothing reads from the client.
    pub(super) fn client_has_left(&mut self) -> bool {
        matches!(self.client.gone(), Some(PeerLoss::Broken(_)))
    }

    /// Makes the kernel reset both connections when they are closed.
    pub(crate) fn reset_on_drop(&self) {
        self.client.reset_on_drop();
        self.upstream.reset_on_drop();
    }
}
