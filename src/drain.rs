//! The drain: the graceful end of all connections. A drain asks each connection to end, waits, cuts
//! the connections that remain, and counts how the connections ended.
//!
//! A connection that can move to the successor is not asked to end as long as it may still move.
//!
//! The request to end is a `CancellationToken`, and the counter of connections is a `TaskTracker`
//! (both from tokio-util), so no task has to poll. The server owns the [`Drain`], and each accept
//! loop has a [`DrainEntry`]. Each connection has a [`DrainWatch`], and the connection's task has a
//! [`DrainGuard`]. The caller decides when to drain and how long to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The server's side of a drain. It counts the connections, asks them to end, waits until they have
/// ended, and cuts those that remain.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    requested: CancellationToken,
    /// Asks the connections that may move to the successor to end. This token is cancelled later
    /// than `requested`, the token for all other connections.
    requested_after_carry: CancellationToken,
    connections: TaskTracker,
    /// The number of open connections when the drain began.
    at_start: usize,
    shared: Arc<DrainState>,
}

/// The state that all connections share. To save memory, each connection holds only a single
/// pointer to this state.
#[derive(Debug, Default)]
struct DrainState {
    cut: CancellationToken,
    /// Three counters: connections that have arrived since the drain began, connections that were
    /// cut, and connections that have moved to the successor. No other memory access depends on
    /// these counters, so relaxed ordering is enough.
    came: AtomicUsize,
    were_cut: AtomicUsize,
    carried: AtomicUsize,
}

/// What happens to a connection when a drain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDrain {
    /// The connection is asked to end when the drain begins.
    Finish,
    /// The connection may move to the successor. If it has not moved when the moves are over, it is
    /// asked to end.
    Carry,
}

impl Drain {
    /// Creates a drain without connections. It begins when [`Drain::begin`] is called.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Returns a handle with which the accept loops of a listener add new connections to the drain.
    /// The accept loops need a new handle after [`Drain::resume`], because the old one may ask new
    /// connections to end immediately.
    #[must_use]
    pub(crate) fn entry(&self, listener: &Arc<str>, on_drain: OnDrain) -> Arc<DrainEntry> {
        let request = match on_drain {
            OnDrain::Finish => &self.requested,
            OnDrain::Carry => &self.requested_after_carry,
        };
        let watch = DrainWatch { requested: request.clone() };
        Arc::new(DrainEntry {
            listener: Arc::clone(listener),
            watch,
            connections: self.connections.clone(),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Begins the drain. Connections that cannot move to the successor are asked to end now, and
    /// all others in [`Drain::drain_uncarried`].
    pub(crate) fn begin(&mut self) {
        self.at_start = self.connections.len();
        self.shared.came.store(0, Ordering::Relaxed);
        self.shared.were_cut.store(0, Ordering::Relaxed);
        self.shared.carried.store(0, Ordering::Relaxed);
        self.connections.close();
        self.requested.cancel();
    }

    /// Asks the connections that have not moved to the successor to end.
    pub(crate) fn drain_uncarried(&self) {
        self.requested_after_carry.cancel();
    }

    /// Waits until the drain has begun and no connection is left. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.connections.wait().await;
    }

    /// Cuts the connections that are still open. [`Drain::drained`] completes when their tasks have
    /// ended.
    pub(crate) fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Ends the drain, so that new connections are not asked to end. Connections that were already
    /// asked still end.
    pub(crate) fn resume(&mut self) {
        // Replace only the cancelled tokens. The next drain needs the other tokens to ask existing
        // connections to end.
        for request in [&mut self.requested, &mut self.requested_after_carry] {
            if request.is_cancelled() {
                *request = CancellationToken::new();
            }
        }
        self.connections.reopen();
    }

    /// Returns how the connections of this drain ended, including those that arrived after the
    /// drain began.
    #[must_use]
    pub(crate) fn report(&self) -> DrainReport {
        let all = self.at_start + self.shared.came.load(Ordering::Relaxed);
        // Count the remaining connections as cut, even if their tasks have not noticed the cut yet.
        let left = if self.shared.cut.is_cancelled() { self.connections.len() } else { 0 };
        let cut = self.shared.were_cut.load(Ordering::Relaxed) + left;
        let carried = self.shared.carried.load(Ordering::Relaxed);
        DrainReport { ended: all.saturating_sub(cut + carried), carried, cut }
    }
}

/// A handle with which the accept loops of a listener add new connections to the drain.
#[derive(Debug)]
pub(crate) struct DrainEntry {
    listener: Arc<str>,
    watch: DrainWatch,
    connections: TaskTracker,
    shared: Arc<DrainState>,
}

impl DrainEntry {
    /// Adds a connection to the drain until the returned guard is dropped.
    #[must_use]
    pub(crate) fn admit(self: &Arc<Self>) -> DrainGuard {
        if self.connections.is_closed() {
            // Count this connection separately, because it has arrived after the drain began.
            self.shared.came.fetch_add(1, Ordering::Relaxed);
        }
        DrainGuard { _counted: self.connections.token(), entry: Arc::clone(self) }
    }
}

/// A signal that tells a connection when a drain asks it to end.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    requested: CancellationToken,
}

impl DrainWatch {
    /// Waits until the connection is asked to end. Cancel safe.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Returns whether the connection has been asked to end.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }
}

/// A guard that counts one connection as open until it is dropped. [`DrainGuard::unless_cut`] stops
/// serving the connection if the drain cuts it.
#[derive(Debug)]
pub(crate) struct DrainGuard {
    _counted: TaskTrackerToken,
    entry: Arc<DrainEntry>,
}

impl DrainGuard {
    /// Returns the name of the listener that accepted the connection.
    pub(crate) fn listener(&self) -> &Arc<str> {
        &self.entry.listener
    }

    /// Returns the signal that tells the connection when to end.
    pub(crate) fn watch(&self) -> &DrainWatch {
        &self.entry.watch
    }

    /// Polls the future `connection` until it completes or the connection is cut. Returns `None` if
    /// the connection is cut. The future is polled at least once, even after a cut. So a proxied
    /// connection that has moved here still reaches its relay plane, which resets both sides.
    pub(crate) async fn unless_cut<F: Future>(&self, connection: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = connection => Some(done),
            () = self.entry.shared.cut.cancelled() => None,
        }
    }

    /// Counts the connection as moved to the successor, and removes it from the drain.
    pub(crate) fn carried(self) {
        self.entry.shared.carried.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the connection as cut, and removes it from the drain.
    pub(crate) fn cut(self) {
        self.entry.shared.were_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// The result of a drain: how many connections ended, moved to the successor, or were cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// The number of connections that ended by themselves before the deadline.
    pub ended: usize,
    /// The number of connections that the successor has taken over.
    pub carried: usize,
    /// The number of connections that were cut at the drain deadline or because of a signal.
    pub cut: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(drain: &Drain, on_drain: OnDrain) -> (DrainWatch, DrainGuard) {
        let guard = drain.entry(&"web".into(), on_drain).admit();
        (guard.watch().clone(), guard)
    }

    #[tokio::test]
    async fn connections_that_ignore_a_drain_are_cut_and_counted() {
        let mut drain = Drain::new();
        let mut obedient = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (watch, guard) = admit(&drain, OnDrain::Finish);
            obedient.spawn(async move {
                watch.requested().await;
                drop(guard);
            });
        }
        let (_watch, guard) = admit(&drain, OnDrain::Finish);
        let deaf = tokio::spawn(async move {
            let cut = guard.unless_cut(std::future::pending::<()>()).await;
            guard.cut();
            cut
        });
        drain.begin();
        while obedient.join_next().await.is_some() {}
        assert_eq!(drain.connections.len(), 1);
        drain.cut();
        drain.drained().await;
        assert_eq!(deaf.await.unwrap(), None);
        assert_eq!(drain.report(), DrainReport { ended: 10, carried: 0, cut: 1 });
    }

    #[tokio::test]
    async fn a_resumed_drain_asks_only_the_earlier_connections() {
        let mut drain = Drain::new();
        let (before, _guard) = admit(&drain, OnDrain::Finish);
        drain.begin();
        drain.resume();
        let (after, _guard) = admit(&drain, OnDrain::Finish);
        assert!(before.is_requested());
        assert!(!after.is_requested());
        drain.begin();
        assert!(after.is_requested());
    }

    #[tokio::test]
    async fn connections_that_are_not_carried_are_asked_to_finish() {
        let mut drain = Drain::new();
        let (carried, one) = admit(&drain, OnDrain::Carry);
        let (left, _two) = admit(&drain, OnDrain::Carry);
        drain.begin();
        one.carried();
        assert!(!carried.is_requested() && !left.is_requested());
        assert_eq!(drain.report(), DrainReport { ended: 1, carried: 1, cut: 0 });
        // The successor has not taken the connection `left`, and this process accepts connections
        // again.
        drain.resume();
        drain.begin();
        assert!(!left.is_requested());
        drain.drain_uncarried();
        assert!(left.is_requested());
        drain.resume();
        assert!(!admit(&drain, OnDrain::Carry).0.is_requested());
    }

    #[tokio::test]
    async fn late_connections_are_in_the_report_of_a_drain() {
        let mut drain = Drain::new();
        let entry = drain.entry(&"web".into(), OnDrain::Carry);
        for times in 0..2 {
            let [one, two, three] = [(); 3].map(|()| entry.admit());
            drain.begin();
            let late = entry.admit();
            one.carried();
            late.carried();
            drop((two, three));
            assert_eq!(drain.report(), DrainReport { ended: 2, carried: 2, cut: 0 }, "{times}");
            drain.resume();
        }
    }
}
