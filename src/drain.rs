//! Ends connections in order: tell all of them at once, wait, cut what is left, count.
//!
//! tokio-util's `CancellationToken` tells and its `TaskTracker` counts; nothing polls and nothing ticks. A [`Drain`] is
//! the owner's side, a [`DrainEntry`] the acceptor's, a [`DrainWatch`] the connection's, a [`DrainGuard`] the proof that
//! a connection is counted. When to drain and how long to wait is not decided here.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The owner's side: counts connections, tells them, waits for them, cuts them.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    told: CancellationToken,
    cut: CancellationToken,
    connections: TaskTracker,
    /// How many there were when the drain began, and how many of them were cut: the report.
    at_start: usize,
    at_cut: usize,
}

impl Drain {
    /// One that counts nothing yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The way in for new connections, until the next [`Drain::begin`].
    #[must_use]
    pub(crate) fn entry(&self) -> DrainEntry {
        let watch = DrainWatch { told: self.told.clone(), cut: self.cut.clone() };
        DrainEntry { watch, connections: self.connections.clone() }
    }

    /// Tells every connection at once.
    pub(crate) fn begin(&mut self) {
        self.at_start = self.connections.len();
        self.at_cut = 0;
        self.connections.close();
        self.told.cancel();
    }

    /// Waits until no connection is left. Cancel safe. Pends for ever unless [`Drain::begin`] came first.
    pub(crate) async fn drained(&self) {
        self.connections.wait().await;
    }

    /// Cuts what is left; [`Drain::drained`] tells when it is gone.
    pub(crate) fn cut(&mut self) {
        self.at_cut = self.connections.len();
        self.cut.cancel();
    }

    /// Takes connections again: those that come are not told; those that were told end as they were going to.
    pub(crate) fn resume(&mut self) {
        self.told = CancellationToken::new();
        self.connections.reopen();
    }

    /// How the connections ended that were there when the drain began.
    #[must_use]
    pub(crate) fn report(&self) -> DrainReport {
        DrainReport { ended: self.at_start.saturating_sub(self.at_cut), cut: self.at_cut }
    }
}

/// Lets connections in, for whoever accepts them.
#[derive(Clone, Debug)]
pub(crate) struct DrainEntry {
    watch: DrainWatch,
    connections: TaskTracker,
}

impl DrainEntry {
    /// Counts one connection until the guard is dropped, and gives it its watch.
    #[must_use]
    pub(crate) fn admit(&self) -> (DrainWatch, DrainGuard) {
        (self.watch.clone(), DrainGuard { _counted: self.connections.token() })
    }
}

/// A connection's side: learns when to come to an end.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    told: CancellationToken,
    cut: CancellationToken,
}

impl DrainWatch {
    /// Waits until the connection is asked to come to an end. Cancel safe.
    pub async fn told(&self) {
        self.told.cancelled().await;
    }

    /// Whether it has been asked to.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.is_cancelled()
    }

    /// Runs a connection to its end, or until it is cut: `None`.
    pub(crate) fn unless_cut<F: Future>(&self, connection: F) -> impl Future<Output = Option<F::Output>> {
        self.cut.run_until_cancelled(connection)
    }
}

/// Counts one connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct DrainGuard {
    _counted: TaskTrackerToken,
}

/// How the connections of a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// By themselves, within the deadline.
    pub ended: usize,
    /// By us, at the deadline.
    pub cut: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_are_told_and_those_that_stay_are_cut_and_counted() {
        let mut drain = Drain::new();
        let mut obedient = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (watch, guard) = drain.entry().admit();
            obedient.spawn(async move {
                watch.told().await;
                drop(guard);
            });
        }
        let (watch, guard) = drain.entry().admit();
        let deaf = tokio::spawn(async move {
            let _guard = guard;
            watch.unless_cut(std::future::pending::<()>()).await
        });
        drain.begin();
        while obedient.join_next().await.is_some() {}
        assert_eq!(drain.connections.len(), 1);
        drain.cut();
        drain.drained().await;
        assert_eq!(deaf.await.unwrap(), None);
        assert_eq!(drain.report(), DrainReport { ended: 10, cut: 1 });
    }

    #[tokio::test]
    async fn a_drain_that_resumes_tells_only_those_that_were_there() {
        let mut drain = Drain::new();
        let (before, _guard) = drain.entry().admit();
        drain.begin();
        drain.resume();
        let (after, _guard) = drain.entry().admit();
        assert!(before.is_told());
        assert!(!after.is_told());
        drain.begin();
        assert!(after.is_told());
    }
}
