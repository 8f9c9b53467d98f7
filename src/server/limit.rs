//! A connection limit shared by all accept loops of one listener.
//!
//! An accept loop takes a permit before it accepts. A loop that waits for a client therefore holds
//! a permit without a connection, and a listener without free permits is not necessarily full.
//!
//! Carried connections, which move here from the predecessor, do not pass through an accept loop.
//! Permits are reserved for them. If more of them arrive, the limit may be exceeded. Then no client
//! is accepted until enough connections have ended. The module `census`, not this one, counts
//! connections.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// A permit for one connection. Dropping it returns the permit.
#[derive(Debug)]
pub(super) struct Permit(Arc<ConnectionLimit>);

/// The error that a listener has as many connections as its limit allows.
#[derive(Debug)]
pub(super) struct Full;

/// The connection limit of one listener, shared by its accept loops.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    free: Semaphore,
    limit: usize,
    /// How many permits are reserved for connections that the predecessor carries here.
    kept: AtomicUsize,
    /// The number of connections above the limit. A returned permit reduces this number first,
    /// instead of becoming free.
    excess: AtomicUsize,
    /// Whether the listener was found full, and no permit has been taken since. This flag guards no
    /// other memory, so relaxed ordering is enough.
    full: AtomicBool,
}

impl ConnectionLimit {
    /// Creates a limit of `limit` connections, or of the maximum that a semaphore can hold if that
    /// is less.
    pub(super) fn new(limit: NonZeroUsize) -> Self {
        let limit = limit.get().min(Semaphore::MAX_PERMITS);
        Self {
            free: Semaphore::new(limit),
            limit,
            kept: AtomicUsize::new(0),
            excess: AtomicUsize::new(0),
            full: AtomicBool::new(false),
        }
    }

    /// Takes a free permit without waiting. Returns `None` if no permit is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        self.free.try_acquire().ok().map(|permit| self.taken(permit))
    }

    /// Waits for a free permit. Cancel safe, but a cancelled wait loses its position in the queue.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Permit> {
        // The result is never `None`, because the semaphore is never closed.
        self.free.acquire().await.ok().map(|permit| self.taken(permit))
    }

    /// Takes a permit for a connection that the predecessor carries here.
    ///
    /// `there` is the connection limit in the predecessor, or `None` if it has none. If that limit
    /// is not higher than the limit here, the permit is always granted, because carrying does not
    /// raise the total. Otherwise the listener must have fewer than `limit` connections. Permits
    /// held by accept loops that wait for a client do not count.
    ///
    /// # Errors
    /// Returns [`Full`] when the limit is lower here than in the predecessor, and is reached.
    pub(super) fn acquire_for_carried(
        self: &Arc<Self>,
        there: Option<NonZeroUsize>,
        connections: impl FnOnce() -> usize,
    ) -> Result<Permit, Full> {
        if lower(&self.kept) {
            return Ok(Permit(Arc::clone(self)));
        }
        if let Some(place) = self.try_take() {
            return Ok(place);
        }
        let were_more = there.is_none_or(|there| there.get() > self.limit);
        if were_more && connections() >= self.limit {
            return Err(Full);
        }
        self.excess.fetch_add(1, Ordering::Relaxed);
        Ok(Permit(Arc::clone(self)))
    }

    /// Reserves up to `count` free permits for connections that the predecessor may carry here.
    pub(super) fn reserve(&self, count: usize) {
        self.kept.fetch_add(self.free.forget_permits(count), Ordering::Relaxed);
    }

    /// Makes the reserved permits that were not needed available to new clients.
    pub(super) fn release_reserved(&self) {
        self.free.add_permits(self.kept.swap(0, Ordering::Relaxed));
    }

    /// Returns whether the listener has just become full. After it has returned `true`, it returns
    /// `false` until the next permit is taken, so that each full period is reported once.
    pub(super) fn became_full(&self, connections: impl FnOnce() -> usize) -> bool {
        // Check the flag first, because counting is unnecessary if the listener is known to be
        // full.
        !self.full.load(Ordering::Relaxed)
            && connections() >= self.limit
            && !self.full.swap(true, Ordering::Relaxed)
    }

    fn taken(self: &Arc<Self>, permit: SemaphorePermit<'_>) -> Permit {
        // Keep the semaphore's permit taken: `Permit` gives it back when it is dropped.
        permit.forget();
        // Write only if the flag is set. A load does not slow down other threads, but a store does.
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
        Permit(Arc::clone(self))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Self(limit) = self;
        if !lower(&limit.excess) {
            limit.free.add_permits(1);
        }
    }
}

/// Decrements `count` if it is not zero. Returns whether it was decremented.
fn lower(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `became_full` reports a full listener once, and again only after another permit was taken.
    #[test]
    fn a_full_listener_is_reported_once() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::new(2).unwrap()));
        let (first, second) = (limit.try_take().unwrap(), limit.try_take().unwrap());
        assert!(limit.try_take().is_none());
        // One of the two permits belongs to an accept loop that still waits for a client.
        assert!(!limit.became_full(|| 1));
        assert_eq!([(); 3].map(|()| limit.became_full(|| 2)), [true, false, false]);
        // A free permit does not reset the full mark until it is taken.
        drop(first);
        assert!(!limit.became_full(|| 2));
        let again = limit.try_take().unwrap();
        assert_eq!([(); 3].map(|()| limit.became_full(|| 2)), [true, false, false]);
        drop((second, again));
    }

    /// A permit held by a waiting accept loop does not keep out a connection from the predecessor.
    /// An open connection does, if the limit was higher in the predecessor.
    #[test]
    fn a_waiting_loop_does_not_keep_a_carried_connection_out() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::MIN));
        assert!(limit.acquire_for_carried(None, || 0).is_ok());
        let _loops = limit.try_take().unwrap();
        assert!(limit.acquire_for_carried(None, || 0).is_ok());
        for fewer in [None, NonZeroUsize::new(2)] {
            assert!(limit.acquire_for_carried(fewer, || 1).is_err());
        }
    }

    /// A connection from the predecessor always gets a permit if the limit was not higher there.
    /// While the limit is exceeded, returned permits do not become free.
    #[test]
    fn a_carried_connection_may_exceed_an_unchanged_limit() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::MIN));
        let mut all = vec![limit.try_take().unwrap()];
        all.extend(
            [(); 3].map(|()| limit.acquire_for_carried(Some(NonZeroUsize::MIN), || 1).unwrap()),
        );
        while all.pop().is_some() {
            assert_eq!(limit.try_take().is_some(), all.is_empty());
        }
    }

    /// Reserved permits go only to connections from the predecessor, until the permits are
    /// released.
    #[test]
    fn reserved_permits_are_for_carried_connections() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::new(3).unwrap()));
        limit.reserve(2);
        let _accepted = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        let _carried =
            limit.acquire_for_carried(None, || unreachable!("a permit is reserved")).unwrap();
        limit.release_reserved();
        let _late = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        limit.reserve(9);
        limit.release_reserved();
        assert!(limit.try_take().is_none());
    }

    /// A permit that was obtained by waiting also resets the mark that the listener is full.
    #[tokio::test]
    async fn waiting_for_a_permit_takes_it() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::MIN));
        let place = limit.try_take().unwrap();
        assert!(limit.became_full(|| 1));
        let (taken, ()) = tokio::join!(limit.take(), async { drop(place) });
        assert!(taken.is_some() && limit.became_full(|| 1));
    }
}
