//! The slot of a connection: everything in the server that counts the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::{EntryEnd, ListenerEntry, ListenerEvents, ListenerLedger};
use super::limit::Permit;
use super::workers::Load;
use crate::ledger::Source;
use crate::net::Traffic;

/// The slot of one connection. Dropping it stops counting the connection.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    entry: ListenerEntry,
    /// The permit of this connection under the listener's connection limit.
    _permit: Option<Permit>,
    /// The share of this connection in the load of its worker.
    _load: Load,
}

impl ConnectionSlot {
    /// Counts a connection that began at `since`.
    pub(super) fn new(
        ledger: &ListenerLedger,
        since: Instant,
        source: Source,
        traffic: &Arc<Traffic>,
        load: Load,
        permit: Option<Permit>,
    ) -> Self {
        Self { entry: ledger.enter(source, traffic, since), _permit: permit, _load: load }
    }

    /// Returns how long ago the connection began.
    pub(super) fn age(&self) -> Duration {
        self.entry.note().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Counts that the successor refused this connection.
    pub(super) fn refused(&self) {
        self.entry.count(ListenerEvents::refused);
    }

    /// Stops counting the connection as open, and counts how it ended.
    pub(super) fn end(self, end: EntryEnd) {
        self.entry.end(|events| events.ended(end));
    }
}
