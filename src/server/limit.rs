//! A connection limit shared by all accept loops of one listener.
//!
//! An accept loop takes a permit before it accepts, so a loop that waits for a client holds a
//! permit without a connection. A listener without free permits may therefore still have fewer
//! connections than its limit allows.
//!
//! Carried connections, which move here from the predecessor, do not pass through an accept loop.
//! Permits are reserved for them. If more of them arrive than permits are reserved, the limit may
//! be exceeded. Then the listener accepts no client until enough connections have ended. The
//! module `ledger` counts the connections themselves.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// A permit for one connection. Dropping it returns the permit.
#[derive(Debug)]
pub(super) struct Permit(Arc<ConnectionLimit>);

/// The error for a listener that already has as many connections as its limit allows.
#[derive(Debug)]
pub(super) struct Full;

/// The connection limit of one listener, shared by its accept loops.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    free: Semaphore,
    limit: usize,
    /// How many permits are reserved for connections that move here from the predecessor.
    kept: AtomicUsize,
    /// The number of connections above the limit. While it is not zero, a returned permit reduces
    /// this number instead of becoming free.
    excess: AtomicUsize,
    /// Whether the listener was full when an accept loop last checked. Taking a permit resets this
    /// flag. The flag protects no other memory, so relaxed ordering is enough.
    full: AtomicBool,
}

impl ConnectionLimit {
    /// Creates a limit of `limit` connections. If that is more than a semaphore can hold, the limit
    /// is lowered to `Semaphore::MAX_PERMITS`.
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

    /// Waits for a free permit. Cancel safe, but a cancelled call loses its place in the queue for
    /// permits.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Permit> {
        // The result is never `None`, because the semaphore is never closed.
        self.free.acquire().await.ok().map(|permit| self.taken(permit))
    }

    /// Takes a permit for a connection that moves here from the predecessor.
    ///
    /// `there` is the predecessor's connection limit for this listener, or `None` if it has no
    /// limit. If that limit is not higher than the limit here, a permit is always granted, because
    /// the move does not raise the total number of connections. Otherwise a permit is granted if
    /// one is reserved or free, or if the listener has fewer connections than the limit here
    /// allows. The closure `connections` counts them.
    ///
    /// # Errors
    /// Returns [`Full`] when the limit here is lower than the predecessor's limit, and is reached.
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

    /// Reserves up to `count` free permits for connections that may move here from the predecessor.
    pub(super) fn reserve(&self, count: usize) {
        self.kept.fetch_add(self.free.forget_permits(count), Ordering::Relaxed);
    }

    /// Makes all permits that are still reserved available to new clients.
    pub(super) fn release_reserved(&self) {
        self.free.add_permits(self.kept.swap(0, Ordering::Relaxed));
    }

    /// Returns whether the listener has just become full. After that it returns `false` until
    /// another permit is taken, so a full listener is reported only once. The closure `connections`
    /// counts the open connections.
    pub(super) fn became_full(&self, connections: impl FnOnce() -> usize) -> bool {
        // Check the flag first, because if it is set, the connections need not be counted.
        !self.full.load(Ordering::Relaxed)
            && connections() >= self.limit
            && !self.full.swap(true, Ordering::Relaxed)
    }

    fn taken(self: &Arc<Self>, permit: SemaphorePermit<'_>) -> Permit {
        // Do not return the permit to the semaphore here. `Permit` returns it when it is dropped.
        permit.forget();
        // Store only if the flag is set, because a store slows down other threads that use the
        // flag, and a load does not.
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
        // A returned permit does not reset the flag `full` until the permit is taken again.
        drop(first);
        assert!(!limit.became_full(|| 2));
        let again = limit.try_take().unwrap();
        assert_eq!([(); 3].map(|()| limit.became_full(|| 2)), [true, false, false]);
        drop((second, again));
    }

    /// A permit of an accept loop that waits for a client does not make this process refuse a
    /// connection from the predecessor. An open connection does, if the predecessor's limit was
    /// higher.
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

    /// A connection from the predecessor always gets a permit if the predecessor's limit was not
    /// higher. While the limit is exceeded, returned permits do not become free.
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

    /// Only connections from the predecessor get reserved permits, until the reservation is
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

    /// Taking a permit with `take` resets the flag `full`, just as taking one with `try_take` does.
    #[tokio::test]
    async fn waiting_for_a_permit_takes_it() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::MIN));
        let place = limit.try_take().unwrap();
        assert!(limit.became_full(|| 1));
        let (taken, ()) = tokio::join!(limit.take(), async { drop(place) });
        assert!(taken.is_some() && limit.became_full(|| 1));
    }
}
