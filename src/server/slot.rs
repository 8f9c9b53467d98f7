//! What the server keeps for each open connection: its entry in the counters, its place under the
//! connection limit, and other guards. They are released when the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::workers::Load;
use crate::carry::CarrySlot;
use crate::drain::DrainGuard;
use crate::ledger::{ListenerEntry, Permit};
#[cfg(feature = "proxy")]
use crate::net::{ByteCounts, Traffic};

/// Counts one connection as open. Dropping this value removes the connection from all counts.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    pub(super) entry: ListenerEntry,
    /// The time at which the connection began, possibly in an earlier generation.
    pub(super) since: Instant,
    /// The connection's place under the listener's connection limit, if there is a limit.
    pub(super) permit: Option<Permit>,
    /// The guard that counts this connection in the load of its worker.
    pub(super) load: Load,
    /// The guard that makes a drain wait for this connection. It also shows when the connection is
    /// cut.
    pub(super) guard: DrainGuard,
}

/// How a connection ended.
pub(super) enum ConnectionEnd {
    /// The service finished the connection. `late` is the number of bytes that the peer sent too
    /// late to be answered.
    Finished { late: u64 },
    /// The connection ended with an I/O error.
    Broken(io::Error),
    /// The connection moved to the successor. Dropping the token reports that the move is counted.
    Carried(TaskTrackerToken),
    /// The connection was cut at the drain deadline or because of a signal.
    Cut,
}

impl ConnectionSlot {
    /// Returns how long ago the connection began.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Returns the name of the listener that accepted the connection.
    pub(super) fn listener(&self) -> &Arc<str> {
        self.guard.listener()
    }

    /// Returns whether a drain has asked the connection to end.
    #[cfg(feature = "proxy")]
    pub(super) fn is_draining(&self) -> bool {
        self.guard.watch().is_requested()
    }

    /// Lists a connection that has left its relay plane, so that status reports show its age.
    /// `counts` are the bytes that its client's socket has transferred so far. Further bytes are
    /// added as before.
    #[cfg(feature = "proxy")]
    pub(super) fn list_age(&mut self, counts: ByteCounts) {
        self.entry.list(&Arc::new(Traffic::so_far(counts)), self.since);
    }

    /// Runs `serving`, the future that serves the connection, until it completes. Returns `None` if
    /// the connection is cut. During the call, the scheduler may ask the connection to move to the
    /// successor, if it has a registration for that.
    pub(super) fn serve<'a, F: Future>(
        &'a self,
        registration: &'a mut Option<Box<CarrySlot>>,
        mut serving: Pin<&'a mut F>,
    ) -> impl Future<Output = Option<F::Output>> + 'a {
        let in_turn = std::future::poll_fn(move |cx| {
            let Some(carry) = registration else { return serving.as_mut().poll(cx) };
            let is_asked = carry.watch(cx);
            let served = serving.as_mut().poll(cx);
            if is_asked && served.is_pending() {
                // Let the scheduler ask another connection, because this connection is in the
                // middle of a message and cannot move yet.
                carry.pass_on();
            }
            served
        });
        self.guard.unless_cut(in_turn)
    }

    /// Stops counting the connection as open, and counts how it ended. `was_draining` is whether a
    /// drain had asked the connection to end. `registration` is its registration for a move, which
    /// ends too.
    pub(super) fn end(
        self,
        end: ConnectionEnd,
        was_draining: bool,
        registration: Option<Box<CarrySlot>>,
    ) {
        let Self { entry, permit, load, guard, .. } = self;
        entry.end(|events| match end {
            ConnectionEnd::Finished { .. } | ConnectionEnd::Broken(_) if was_draining => {
                events.counters.drained += 1;
            }
            // Count nothing here, because the connection ended without a drain and was already
            // counted when it was accepted.
            ConnectionEnd::Finished { .. } | ConnectionEnd::Broken(_) => {}
            ConnectionEnd::Carried(_) => events.carried(),
            ConnectionEnd::Cut => events.counters.cut += 1,
        });
        drop((permit, load, registration));
        // Release the guard last, because the process may exit when no guard is left.
        match end {
            ConnectionEnd::Finished { .. } | ConnectionEnd::Broken(_) => drop(guard),
            ConnectionEnd::Carried(leaving) => {
                drop(leaving);
                guard.carried();
            }
            ConnectionEnd::Cut => guard.cut(),
        }
    }
}
