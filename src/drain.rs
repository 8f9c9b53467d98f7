//! Ends connections in order: tell all of them at once, wait, cut what is left, count.
//!
//! Those that may be carried to a successor are told apart: while there is hope that it takes them
//! they are told nothing.
//!
//! tokio-util's `CancellationToken` tells and its `TaskTracker` counts; nothing polls and nothing
//! ticks. A [`Drain`] is the owner's side, a [`DrainEntry`] the acceptor's, a [`DrainWatch`] the
//! connection's, a [`DrainGuard`] its task's: the proof that it is counted, and what cuts it. When
//! to drain and how long to wait is not decided here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The owner's side: counts connections, tells them, waits for them, cuts them.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    told: CancellationToken,
    /// The same for those that may be carried.
    told_after_carry: CancellationToken,
    connections: TaskTracker,
    /// How many there were when the drain began.
    at_start: usize,
    shared: Arc<Shared>,
}

/// What every connection needs a hold of: behind one pointer, for there are many of them.
#[derive(Debug, Default)]
struct Shared {
    cut: CancellationToken,
    /// Counts since the drain began. They say nothing of other memory, so no access to them is
    /// ordered.
    came: AtomicUsize,
    were_cut: AtomicUsize,
}

/// What becomes of a connection in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is told to come to an end.
    End,
    /// It is, unless a successor takes it.
    Carry,
}

impl Drain {
    /// One that counts nothing yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The way in for new connections, until the next [`Drain::begin`].
    #[must_use]
    pub(crate) fn entry(&self, way: Way) -> DrainEntry {
        let told = match way {
            Way::End => &self.told,
            Way::Carry => &self.told_after_carry,
        };
        let watch = DrainWatch { told: told.clone() };
        DrainEntry {
            watch,
            connections: self.connections.clone(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Tells every connection at once, other than those that may be carried: these are told by
    /// [`Drain::tell_the_rest`].
    pub(crate) fn begin(&mut self) {
        self.at_start = self.connections.len();
        self.shared.came.store(0, Ordering::Relaxed);
        self.shared.were_cut.store(0, Ordering::Relaxed);
        self.connections.close();
        self.told.cancel();
    }

    /// Tells those that were not carried, for they will not be.
    pub(crate) fn tell_the_rest(&self) {
        self.told_after_carry.cancel();
    }

    /// Waits until no connection is left. Cancel safe. Pends for ever unless [`Drain::begin`] came
    /// first.
    pub(crate) async fn drained(&self) {
        self.connections.wait().await;
    }

    /// Cuts what is left; [`Drain::drained`] tells when it is gone.
    pub(crate) fn cut(&self) {
        self.shared.cut.cancel();
    }

    /// Takes connections again: those that come are not told; those that were told end as they were
    /// going to.
    pub(crate) fn resume(&mut self) {
        // Those that were not told go on as if nothing had been, and are told the next time.
        for told in [&mut self.told, &mut self.told_after_carry] {
            if told.is_cancelled() {
                *told = CancellationToken::new();
            }
        }
        self.connections.reopen();
    }

    /// How the connections ended that were there when the drain began or came after that, of which
    /// so many were `carried`.
    #[must_use]
    pub(crate) fn report(&self, carried: usize) -> DrainReport {
        let all = self.at_start + self.shared.came.load(Ordering::Relaxed);
        // What is cut and still there has not heard of it.
        let left = if self.shared.cut.is_cancelled() { self.connections.len() } else { 0 };
        let cut = self.shared.were_cut.load(Ordering::Relaxed) + left;
        DrainReport { ended: all.saturating_sub(cut + carried), carried, cut }
    }
}

/// Lets connections in, for whoever accepts them.
#[derive(Clone, Debug)]
pub(crate) struct DrainEntry {
    watch: DrainWatch,
    connections: TaskTracker,
    shared: Arc<Shared>,
}

impl DrainEntry {
    /// Counts one connection until the guard is dropped, and gives it its watch.
    #[must_use]
    pub(crate) fn admit(&self) -> (DrainWatch, DrainGuard) {
        if self.connections.is_closed() {
            // From the predecessor, which carries it here, on its way to our successor.
            self.shared.came.fetch_add(1, Ordering::Relaxed);
        }
        (
            self.watch.clone(),
            DrainGuard { _counted: self.connections.token(), shared: Arc::clone(&self.shared) },
        )
    }
}

/// A connection's side: learns when to come to an end.
#[derive(Clone, Debug)]
pub struct DrainWatch {
    told: CancellationToken,
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
}

/// Counts one connection for as long as it lives, and cuts it.
#[derive(Debug)]
pub(crate) struct DrainGuard {
    _counted: TaskTrackerToken,
    shared: Arc<Shared>,
}

impl DrainGuard {
    /// Runs a connection to its end, or until it is cut: `None`. Even if that has been it is polled
    /// once before: one that is to be reset when it is cut has begun then.
    pub(crate) async fn unless_cut<F: Future>(&self, connection: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = connection => Some(done),
            () = self.shared.cut.cancelled() => None,
        }
    }

    /// It was cut.
    pub(crate) fn cut(self) {
        self.shared.were_cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// How the connections of a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// By themselves, within the deadline.
    pub ended: usize,
    /// Not at all: the successor has taken them over.
    pub carried: usize,
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
            let (watch, guard) = drain.entry(Way::End).admit();
            obedient.spawn(async move {
                watch.told().await;
                drop(guard);
            });
        }
        let (_watch, guard) = drain.entry(Way::End).admit();
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
    async fn a_drain_that_resumes_tells_only_those_that_were_there() {
        let mut drain = Drain::new();
        let (before, _guard) = drain.entry(Way::End).admit();
        drain.begin();
        drain.resume();
        let (after, _guard) = drain.entry(Way::End).admit();
        assert!(before.is_told());
        assert!(!after.is_told());
        drain.begin();
        assert!(after.is_told());
    }

    #[tokio::test]
    async fn those_that_may_be_carried_are_told_when_they_are_not() {
        let mut drain = Drain::new();
        let (carried, one) = drain.entry(Way::Carry).admit();
        let (left, _two) = drain.entry(Way::Carry).admit();
        drain.begin();
        drop(one);
        assert!(!carried.is_told() && !left.is_told());
        assert_eq!(drain.report(1), DrainReport { ended: 1, carried: 1, cut: 0 });
        // Nobody takes it, and we accept again: it is as if nothing had been.
        drain.resume();
        drain.begin();
        assert!(!left.is_told());
        drain.tell_the_rest();
        assert!(left.is_told());
        drain.resume();
        assert!(!drain.entry(Way::Carry).admit().0.is_told());
    }

    #[tokio::test]
    async fn those_that_come_in_a_drain_are_in_its_report() {
        let mut drain = Drain::new();
        let entry = drain.entry(Way::Carry);
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
