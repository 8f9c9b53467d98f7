//! The graceful end of all connections: ask each to end, wait, cut the rest, and count the
//! outcomes.
//!
//! Connections that may be carried to a successor are handled separately. They are not asked to end
//! while the successor may still accept them.
//!
//! The request is a `CancellationToken` and the counter a `TaskTracker`, both from tokio-util, so
//! nothing polls. [`Drain`] belongs to the server, [`DrainEntry`] to the accept loops,
//! [`DrainWatch`] to the connection, and [`DrainGuard`] to the connection's task. The caller
//! decides when to drain and how long to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The server's side of a drain: counts connections, requests their end, waits for them and cuts
/// them.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    told: CancellationToken,
    /// The same request, for connections that may be carried.
    told_after_carry: CancellationToken,
    connections: TaskTracker,
    /// The number of connections when the drain began.
    at_start: usize,
    shared: Arc<Shared>,
}

/// The state that every connection needs. It is behind one pointer because there are many
/// connections.
#[derive(Debug, Default)]
struct Shared {
    cut: CancellationToken,
    /// Counts since the drain began. They synchronize no other memory, so relaxed access suffices.
    came: AtomicUsize,
    were_cut: AtomicUsize,
}

/// What happens to a connection in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDrain {
    /// It is asked to end.
    Finish,
    /// It may be carried to a successor, and is asked to end if it is not.
    Carry,
}

impl Drain {
    /// Creates a drain without any connections.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Returns the entry for new connections. Get a new entry after [`Drain::resume`]: connections
    /// admitted through the old one may be asked to end at once.
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

    /// Begins the drain: asks all connections to end, except those that may be carried.
    /// [`Drain::drain_uncarried`] asks these.
    pub(crate) fn begin(&mut self) {
        self.at_start = self.connections.len();
        self.shared.came.store(0, Ordering::Relaxed);
        self.shared.were_cut.store(0, Ordering::Relaxed);
        self.connections.close();
        self.told.cancel();
    }

    /// Asks the connections to end that were not carried.
    pub(crate) fn drain_uncarried(&self) {
        self.told_after_carry.cancel();
    }

    /// Waits until no connection is left. Cancel safe. Never completes unless [`Drain::begin`] was
    /// called first.
    pub(crate) async fn drained(&self) {
        self.connections.wait().await;
    }

    /// Cuts the remaining connections. [`Drain::drained`] completes when they are gone.
    pub(crate) fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Ends the drain so that connections can be admitted again. New connections are not asked to
    /// end. Connections that were already asked still end.
    pub(crate) fn resume(&mut self) {
        // Connections that were not asked to end continue as before and keep their token for the
        // next drain.
        for told in [&mut self.told, &mut self.told_after_carry] {
            if told.is_cancelled() {
                *told = CancellationToken::new();
            }
        }
        self.connections.reopen();
    }

    /// Returns how the connections ended that existed when the drain began or arrived later.
    /// `carried` is how many of them were carried.
    #[must_use]
    pub(crate) fn report(&self, carried: usize) -> DrainReport {
        let all = self.at_start + self.shared.came.load(Ordering::Relaxed);
        // Remaining connections have not noticed the cut yet, but count as cut.
        let left = if self.shared.cut.is_cancelled() { self.connections.len() } else { 0 };
        let cut = self.shared.were_cut.load(Ordering::Relaxed) + left;
        DrainReport { ended: all.saturating_sub(cut + carried), carried, cut }
    }
}

/// The entry for new connections, used by the accept loops.
#[derive(Clone, Debug)]
pub(crate) struct DrainEntry {
    watch: DrainWatch,
    connections: TaskTracker,
    shared: Arc<Shared>,
}

impl DrainEntry {
    /// Counts a connection until the guard is dropped, and returns the connection's side of the
    /// drain.
    #[must_use]
    pub(crate) fn admit(&self) -> (DrainWatch, DrainGuard) {
        if self.connections.is_closed() {
            // A predecessor carries this connection here although the drain has begun; it goes on
            // to our successor.
            self.shared.came.fetch_add(1, Ordering::Relaxed);
        }
        (
            self.watch.clone(),
            DrainGuard { _counted: self.connections.token(), shared: Arc::clone(&self.shared) },
        )
    }
}

/// The connection's side of a drain, which learns when the connection is to end.
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

/// A guard that counts one connection for as long as it lives, and delivers the cut.
#[derive(Debug)]
pub(crate) struct DrainGuard {
    _counted: TaskTrackerToken,
    shared: Arc<Shared>,
}

impl DrainGuard {
    /// Runs a connection until it ends or is cut. Returns `None` if it is cut. The connection is
    /// polled at least once even if the cut came before, so that it can prepare for a reset.
    pub(crate) async fn unless_cut<F: Future>(&self, connection: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = connection => Some(done),
            () = self.shared.cut.cancelled() => None,
        }
    }

    /// Counts the connection as cut.
    pub(crate) fn cut(self) {
        self.shared.were_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// How the connections of a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that ended by themselves before the deadline.
    pub ended: usize,
    /// Connections that the successor has taken over.
    pub carried: usize,
    /// Connections that were cut at the deadline.
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
        // No successor accepts it and this process serves again, as if no drain had happened.
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
