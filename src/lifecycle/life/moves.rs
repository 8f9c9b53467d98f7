//! The state of connections that move to the successor or arrive from the predecessor, for a server
//! that accepts connections itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::carry::Departures;

/// The state of connections that move to another generation. The driver (event loop) changes this
/// state, and the connections read it.
#[derive(Debug, Default)]
pub(in crate::lifecycle) struct Moves {
    /// The scheduler and the channel through which connections move to the successor.
    pub(in crate::lifecycle) departures: Arc<Departures>,
    /// Tracks the tasks that take over connections from the predecessor.
    pub(in crate::lifecycle) arriving: TaskTracker,
    /// Cancelled when connections that have not moved to the successor must end.
    told: Mutex<CancellationToken>,
}

impl Moves {
    /// Waits until the connections that have not moved to the successor are asked to end. Cancel
    /// safe.
    pub(in crate::lifecycle) async fn draining_uncarried(&self) {
        let told = self.lock().clone();
        told.cancelled().await;
    }

    /// Tells the connections that have not moved to the successor to end.
    pub(in crate::lifecycle) fn drain_uncarried(&self) {
        self.lock().cancel();
    }

    /// Lets connections move to the next successor, because the last one has died.
    pub(in crate::lifecycle) fn resume(&self) {
        let mut told = self.lock();
        if told.is_cancelled() {
            *told = CancellationToken::new();
        }
    }

    fn lock(&self) -> MutexGuard<'_, CancellationToken> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
