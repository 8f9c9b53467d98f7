//! The graceful end of all connections. A drain asks each connection to end, waits, cuts the
//! remaining connections, and counts how they ended.
//!
//! A connection that may be carried, that is, move to the successor, is not asked to end while the
//! successor may still accept it.
//!
//! The request to end is a `CancellationToken`, and the counter of connections is a `TaskTracker`
//! (both from tokio-util), so nothing polls. The server owns the [`Drain`], each accept loop a
//! [`DrainEntry`], each connection a [`DrainWatch`], and the connection's task a [`DrainGuard`].
//! The caller decides when to drain and how long to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The server's side of a drain. It counts connections, asks them to end, waits for them, and cuts
/// the remaining ones.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    told: CancellationToken,
    /// The request to end for connections that may move to the successor. It is sent later than
    /// `told`.
    told_after_carry: CancellationToken,
    connections: TaskTracker,
    /// The number of connections when the drain began.
    at_start: usize,
    shared: Arc<Shared>,
}

/// The state that every connection uses. It is behind one pointer to save memory, because there are
/// many connections.
#[derive(Debug, Default)]
struct Shared {
    cut: CancellationToken,
    /// The numbers of connections that arrived or were cut since the drain began. They synchronize
    /// no other memory, so relaxed ordering is enough.
    came: AtomicUsize,
    were_cut: AtomicUsize,
}

/// What happens to a connection when a drain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDrain {
    /// The connection is asked to end when the drain begins.
    Finish,
    /// The connection may move to the successor. It is asked to end only if it does not move.
    Carry,
}

impl Drain {
    /// Creates a drain that has not begun and has no connections.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Returns the entry through which new connections are counted. Get a new entry after
    /// [`Drain::resume`], because connections admitted through the old one may be asked to end at
    /// once.
    #[must_use]
    pub(crate) fn entry(&self, on_drain: OnDrain) -> DrainEntry {
        let told = match on_drain {
            OnDrain::Finish => &self.told,
            OnDrain::Carry => &self.told_after_carry,
        };
        let watch = DrainWatch { told: told.clone() };
        DrainEntry {
            watch,
            connections: self.connections.clone(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Begins the drain. Asks all connections to end, except connections that may move to the
    /// successor, which [`Drain::drain_uncarried`] asks later.
    pub(crate) fn begin(&mut self) {
        self.at_start = self.connections.len();
        self.shared.came.store(0, Ordering::Relaxed);
        self.shared.were_cut.store(0, Ordering::Relaxed);
        self.connections.close();
        self.told.cancel();
    }

    /// Asks the connections that have not moved to the successor to end.
    pub(crate) fn drain_uncarried(&self) {
        self.told_after_carry.cancel();
    }

    /// Waits until no connection is left. Never completes if [`Drain::begin`] was not called
    /// before. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.connections.wait().await;
    }

    /// Cuts the remaining connections. [`Drain::drained`] completes when they are gone.
    pub(crate) fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Ends the drain, so that new connections are not asked to end. Connections that were already
    /// asked still end.
    pub(crate) fn resume(&mut self) {
        // Replace only the tokens that were used. Connections that were not asked to end keep their
        // token for the next drain.
        for told in [&mut self.told, &mut self.told_after_carry] {
            if told.is_cancelled() {
                *told = CancellationToken::new();
            }
        }
        self.connections.reopen();
    }

    /// Returns how the connections ended that existed when the drain began or arrived later. The
    /// caller passes in `carried` how many of them moved to the successor.
    #[must_use]
    pub(crate) fn report(&self, carried: usize) -> DrainReport {
        let all = self.at_start + self.shared.came.load(Ordering::Relaxed);
        // Count the remaining connections as cut, even if their tasks have not noticed the cut yet.
        let left = if self.shared.cut.is_cancelled() { self.connections.len() } else { 0 };
        let cut = self.shared.were_cut.load(Ordering::Relaxed) + left;
        DrainReport { ended: all.saturating_sub(cut + carried), carried, cut }
    }
}

/// The entry for new connections, through which the accept loops make the drain count them.
#[derive(Clone, Debug)]
pub(crate) struct DrainEntry {
    watch: DrainWatch,
    connections: TaskTracker,
    shared: Arc<Shared>,
}

impl DrainEntry {
    /// Counts a connection until the returned guard is dropped. The returned watch tells the
    /// connection when to end.
    #[must_use]
    pub(crate) fn admit(&self) -> (DrainWatch, DrainGuard) {
        if self.connections.is_closed() {
            // This connection arrives from the predecessor after the drain has begun, and moves on
            // to the successor.
            self.shared.came.fetch_add(1, Ordering::Relaxed);
        }
        (
            self.watch.clone(),
            DrainGuard { _counted: self.connections.token(), shared: Arc::clone(&self.shared) },
        )
    }
}

/// The connection's side of a drain, which tells the connection when to end.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    told: CancellationToken,
}

impl DrainWatch {
    /// Waits until the connection is asked to end. Cancel safe.
    pub async fn told(&self) {
        self.told.cancelled().await;
    }

    /// Returns whether the connection has been asked to end.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.is_cancelled()
    }
}

/// A guard that counts one connection until it is dropped, and cuts the connection if necessary.
#[derive(Debug)]
pub(crate) struct DrainGuard {
    _counted: TaskTrackerToken,
    shared: Arc<Shared>,
}

impl DrainGuard {
    /// Runs a connection until it ends or is cut. Returns `None` if the connection is cut. The
    /// connection is polled at least once, even if it was cut earlier, so that it can prepare for a
    /// reset.
    pub(crate) async fn unless_cut<F: Future>(&self, connection: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = connection => Some(done),
            () = self.shared.cut.cancelled() => None,
        }
    }

    /// Counts the connection as cut, and ends its part in the drain.
    pub(crate) fn cut(self) {
        self.shared.were_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// The result of a drain: how many connections ended in which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    #[tokio::test]
    async fn connections_that_ignore_a_drain_are_cut_and_counted() {
        let mut drain = Drain::new();
        let mut obedient = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (watch, guard) = drain.entry(OnDrain::Finish).admit();
            obedient.spawn(async move {
                watch.told().await;
                drop(guard);
            });
        }
        let (_watch, guard) = drain.entry(OnDrain::Finish).admit();
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
        assert_eq!(drain.report(0), DrainReport { ended: 10, carried: 0, cut: 1 });
    }

    #[tokio::test]
    async fn a_resumed_drain_asks_only_the_earlier_connections() {
        let mut drain = Drain::new();
        let (before, _guard) = drain.entry(OnDrain::Finish).admit();
        drain.begin();
        drain.resume();
        let (after, _guard) = drain.entry(OnDrain::Finish).admit();
        assert!(before.is_told());
        assert!(!after.is_told());
        drain.begin();
        assert!(after.is_told());
    }

    #[tokio::test]
    async fn connections_that_are_not_carried_are_asked_to_finish() {
        let mut drain = Drain::new();
        let (carried, one) = drain.entry(OnDrain::Carry).admit();
        let (left, _two) = drain.entry(OnDrain::Carry).admit();
        drain.begin();
        drop(one);
        assert!(!carried.is_told() && !left.is_told());
        assert_eq!(drain.report(1), DrainReport { ended: 1, carried: 1, cut: 0 });
        // No successor accepts the remaining connection, and this process serves again as if no
        // drain had happened.
        drain.resume();
        drain.begin();
        assert!(!left.is_told());
        drain.drain_uncarried();
        assert!(left.is_told());
        drain.resume();
        assert!(!drain.entry(OnDrain::Carry).admit().0.is_told());
    }

    #[tokio::test]
    async fn late_connections_are_in_the_report_of_a_drain() {
        let mut drain = Drain::new();
        let entry = drain.entry(OnDrain::Carry);
        for times in 0..2 {
            let guards: Vec<_> = (0..3).map(|_| entry.admit().1).collect();
            drain.begin();
            let late = entry.admit().1;
            drop((guards, late));
            assert_eq!(drain.report(2), DrainReport { ended: 2, carried: 2, cut: 0 }, "{times}");
            drain.resume();
        }
    }
}
