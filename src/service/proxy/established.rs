//! An established connection to an upstream. The server relays its bytes in a relay plane, which is
//! one task for many connections.

use std::sync::Arc;
use std::time::Duration;

use super::carried;
use super::ledgers::UpstreamEntry;
use super::upstream::UpstreamLoad;
use crate::carry::CarriedState;
use crate::net::{ByteCounts, RelaySocket, Traffic};
use crate::plane::{Limits, Relay, Used};

/// A connection to an upstream. The server relays bytes between this upstream and a client.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) upstream: RelaySocket,
    pub(crate) relay: Relay,
    pub(crate) limits: Limits,
    pub(crate) count: UpstreamCount,
}

/// Counts one connection to an upstream as open until this value is dropped.
#[derive(Debug)]
pub(crate) struct UpstreamCount {
    // Fields are dropped in declaration order. The entry must be dropped first, so that its bytes
    // are added to the upstream's totals before the upstream has zero connections.
    pub(super) entry: UpstreamEntry,
    pub(super) load: UpstreamLoad,
}

impl UpstreamCount {
    /// Counts bytes that were transferred to or from the upstream.
    pub(crate) fn add(&self, bytes: ByteCounts) {
        self.entry.add(bytes);
    }

    /// Makes status reports read the bytes of the upstream connection from `traffic` from now on.
    pub(crate) fn list(&mut self, traffic: &Arc<Traffic>) {
        self.entry.list(traffic, ());
    }
}

impl Established {
    /// Returns the state that the successor needs to continue the connection. `with_client` is the
    /// number of bytes that the client's socket has transferred. `client_age` is the age of the
    /// client's connection. It replaces the age of the upstream's connection, which is not known if
    /// no time limit is set.
    pub(crate) fn into_state(self, with_client: u64, client_age: Duration) -> CarriedState {
        let Self { upstream, relay, limits, count } = self;
        let used =
            Used { transferred: with_client + upstream.transferred(), ..limits.used(client_age) };
        carried::conversing(count.load.0.label().to_owned(), upstream, relay, used)
    }
}
