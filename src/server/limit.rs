//! A connection limit shared by all accept loops of one listener.
//!
//! A loop takes a permit before it accepts, so a loop that waits for a client holds a permit
//! without a connection. Running out of permits therefore does not mean that the listener is full.
//!
//! Carried connections come from the predecessor rather than from an accept loop. Permits are
//! reserved for them. If more arrive, the limit may be exceeded; then no client is accepted until
//! enough connections have ended. The limit does not count connections: `census` does.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// A permit for one connection, returned when this is dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<ConnectionLimit>);

/// Error returned when the listener is full.
#[derive(Debug)]
pub(super) struct Full;

/// The connection limit of one listener.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    free: Semaphore,
    limit: usize,
    /// How many permits are reserved for carried connections.
    kept: AtomicUsize,
    /// The number of connections above the limit. A returned permit reduces this number first,
    /// instead of becoming free.
    excess: AtomicUsize,
    /// Whether the listener was seen to be full and no permit has been taken since. It guards no
    /// other memory, so relaxed ordering is enough.
    full: AtomicBool,
}

impl ConnectionLimit {
    /// Creates a limit of `limit` connections, capped at what a semaphore can hold.
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

    /// Takes a permit if one is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        self.free.try_acquire().ok().map(|permit| self.taken(permit))
    }

    /// Waits for a free permit. Cancel safe, except that a cancelled wait loses its position in the
    /// queue.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Permit> {
        // The semaphore is never closed, so this is never `None`.
        self.free.acquire().await.ok().map(|permit| self.taken(permit))
    }

    /// Takes a permit for a carried connection.
    ///
    /// `there` is the connection limit in the predecessor, if it has one. If that limit was not
    /// higher than this one, the permit is always granted: carrying does not raise the total, and
    /// newly accepted clients must not block it. Otherwise there must be room, not counting permits
    /// held by loops that wait for a client.
    ///
    /// # Errors
    /// [`Full`] when there is no room.
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

    /// Reserves up to `count` free permits for connections that may be carried here.
    pub(super) fn reserve(&self, count: usize) {
        self.kept.fetch_add(self.free.forget_permits(count), Ordering::Relaxed);
    }

    /// Releases the reserved permits that were not needed.
    pub(super) fn release_reserved(&self) {
        self.free.add_permits(self.kept.swap(0, Ordering::Relaxed));
    }

    /// Returns whether the listener has just become full. After it has returned `true`, it returns
    /// `false` until the next permit is taken, however many loops ask.
    pub(super) fn became_full(&self, connections: impl FnOnce() -> usize) -> bool {
        // Check the flag first: if the listener is known to be full, counting is unnecessary.
        !self.full.load(Ordering::Relaxed)
            && connections() >= self.limit
            && !self.full.swap(true, Ordering::Relaxed)
    }

    fn taken(self: &Arc<Self>, permit: SemaphorePermit<'_>) -> Permit {
        // `Permit` returns the permit when it is dropped.
        permit.forget();
        // Usually there is nothing to write, and a load does not slow down the other threads.
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

/// Decrements `count` unless it is zero. Returns whether it did.
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
        // One permit belongs to a loop that still waits for a client.
        assert!(!limit.became_full(|| 1));
        assert_eq!([(); 3].map(|()| limit.became_full(|| 2)), [true, false, false]);
        // A free permit changes nothing until it is taken.
        drop(first);
        assert!(!limit.became_full(|| 2));
        let again = limit.try_take().unwrap();
        assert_eq!([(); 3].map(|()| limit.became_full(|| 2)), [true, false, false]);
        drop((second, again));
    }

    /// A permit held by a waiting accept loop does not keep a carried connection out. A connection
    /// does, if the limit was higher in the predecessor.
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

    /// A carried connection always gets a permit if the limit was not higher in the predecessor.
    /// While the limit is exceeded, returned permits are discarded.
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

    /// Reserved permits go to carried connections only, until they are released.
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

    /// A permit obtained by waiting also resets the mark that the listener is full.
    #[tokio::test]
    async fn waiting_for_a_permit_takes_it() {
        let limit = Arc::new(ConnectionLimit::new(NonZeroUsize::MIN));
        let place = limit.try_take().unwrap();
        assert!(limit.became_full(|| 1));
        let (taken, ()) = tokio::join!(limit.take(), async { drop(place) });
        assert!(taken.is_some() && limit.became_full(|| 1));
    }
}
