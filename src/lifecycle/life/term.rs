//! A term of a generation: the time from when it begins to accept connections until it has drained.
//!
//! A generation accepts connections again if its successor dies during the drain. That begins
//! another term. A server may still end the connections of the earlier term, and must not see
//! events of the later one. So each term has its own events, which are never reset.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The events of one term, a period in which the generation accepts and drains connections.
#[derive(Clone, Debug, Default)]
pub(in crate::lifecycle) struct Term(Arc<TermEvents>);

#[derive(Debug, Default)]
struct TermEvents {
    /// The value of `retired.is_cancelled()`, which a server can read for each request without a
    /// lock.
    has_retired: AtomicBool,
    /// Cancelled when the server has reported in this term that it is ready.
    ready: CancellationToken,
    /// Cancelled when the server must stop accepting, except on the listeners that stop last.
    retired: CancellationToken,
    /// Cancelled when the server must stop accepting on the listeners that stop last.
    last_retired: CancellationToken,
    /// Cancelled when the drain begins.
    draining: CancellationToken,
    /// Tracks the acceptors that still accept, and the accepted connections on which the client has
    /// not sent anything yet.
    awaiting_first_byte: TaskTracker,
    /// Tracks the acceptors of listeners that stop last, and their connections on which the client
    /// has not sent anything yet.
    last_awaiting: TaskTracker,
}

impl Term {
    /// Creates a term in which the server only accepts clients that are left in a backlog. The
    /// drain has begun already, and the server must not accept any other clients.
    pub(in crate::lifecycle) fn for_backlog() -> Self {
        let term = Self::default();
        term.retire();
        term.retire_last();
        term.drain();
        term
    }

    /// Returns whether both values stand for the same term (period of accepting connections).
    pub(in crate::lifecycle) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Records that the server is ready.
    pub(in crate::lifecycle) fn set_ready(&self) {
        self.0.ready.cancel();
    }

    /// Waits until the server is ready.
    pub(in crate::lifecycle) fn ready(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.ready.clone().cancelled_owned()
    }

    pub(in crate::lifecycle) fn has_retired(&self) -> bool {
        self.0.has_retired.load(Ordering::Acquire)
    }

    pub(in crate::lifecycle) fn retired(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.retired.clone().cancelled_owned()
    }

    pub(in crate::lifecycle) fn last_retired(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.last_retired.clone().cancelled_owned()
    }

    /// Waits until the drain has begun.
    pub(in crate::lifecycle) fn drain_begun(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.draining.clone().cancelled_owned()
    }

    /// Returns whether the drain has begun.
    pub(in crate::lifecycle) fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Waits until no acceptor accepts any more and every client has sent something.
    pub(in crate::lifecycle) async fn all_heard(&self) {
        self.0.awaiting_first_byte.wait().await;
    }

    /// Returns the tracker of connections on which the client has not sent anything yet.
    pub(in crate::lifecycle) fn awaiting_first_byte(&self) -> &TaskTracker {
        // Close the tracker, because `wait` never resolves on an open one. A closed tracker can
        // still track new connections.
        self.0.awaiting_first_byte.close();
        &self.0.awaiting_first_byte
    }

    /// Returns the tracker of connections of the listeners that stop last, on which the client has
    /// not sent anything yet.
    pub(in crate::lifecycle) fn last_awaiting(&self) -> &TaskTracker {
        self.0.last_awaiting.close();
        &self.0.last_awaiting
    }

    /// Tells the server to stop accepting, except on the listeners that stop last.
    pub(in crate::lifecycle) fn retire(&self) {
        self.0.has_retired.store(true, Ordering::Release);
        self.0.retired.cancel();
    }

    /// Tells the server to stop accepting on the listeners that stop last.
    pub(in crate::lifecycle) fn retire_last(&self) {
        self.0.last_retired.cancel();
    }

    /// Records that the drain has begun.
    pub(in crate::lifecycle) fn drain(&self) {
        self.0.awaiting_first_byte.close();
        self.0.draining.cancel();
    }
}
