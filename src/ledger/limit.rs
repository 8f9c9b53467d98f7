//! The connection limit of a listener, shared by its accept loops. Each connection uses one permit,
//! and the limit is the number of permits.
//!
//! An accept loop takes a permit before it accepts, so it holds a permit without a connection for a
//! moment. A listener without free permits may therefore still have fewer connections than its
//! limit allows. The listener is full only when connections use all permits. A loop must not hold a
//! permit while it waits for a client, because the listener's other sockets may need the permit.
//!
//! Connections that move here from the predecessor do not pass through an accept loop, so permits
//! are reserved for them. If more connections arrive than permits are reserved, the limit may be
//! exceeded. The listener then accepts no client until enough connections have ended.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A permit that an open connection uses. Dropping this value returns the permit.
#[derive(Debug)]
pub(crate) struct Permit(Arc<ConnectionLimit>);

/// A permit that an accept loop holds while it accepts a client. Dropping this value returns the
/// permit.
#[derive(Debug)]
pub(crate) struct HeldPermit(Arc<ConnectionLimit>);

/// The connection limit of one listener, shared by its accept loops.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    listener: String,
    limit: NonZeroUsize,
    permits: Mutex<Permits>,
    /// Notified when a permit becomes free, to wake an accept loop.
    freed: Notify,
}

/// The permits that are not free. Their number may exceed the limit.
#[derive(Debug, Default)]
struct Permits {
    /// The number of permits that connections use.
    used: usize,
    /// The number of permits that accept loops hold while they accept a client.
    held: usize,
    /// The number of permits reserved for connections that move here from the predecessor.
    reserved: usize,
    /// How many times the listener has become full.
    times_full: u64,
}

impl ConnectionLimit {
    /// Creates a limit of `limit` connections for the listener with the name `listener`.
    pub(crate) fn new(listener: &str, limit: NonZeroUsize) -> Self {
        let (permits, freed) = (Mutex::default(), Notify::new());
        Self { listener: listener.to_owned(), limit, permits, freed }
    }

    /// Returns the maximum number of connections.
    pub(crate) const fn max_connections(&self) -> NonZeroUsize {
        self.limit
    }

    /// Waits for a free permit. Cancel safe, but a cancelled call loses its place in the queue for
    /// permits.
    pub(crate) async fn take(self: &Arc<Self>) -> HeldPermit {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Join the queue before the check. Otherwise the call could miss a permit that becomes
            // free between the check and the wait.
            freed.as_mut().enable();
            if let Some(permit) = self.try_take() {
                return permit;
            }
            freed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<HeldPermit> {
        let mut permits = self.lock();
        let is_free = self.free(&permits) > 0;
        permits.held += usize::from(is_free);
        is_free.then(|| HeldPermit(Arc::clone(self)))
    }

    /// Takes a permit for a connection that moves here from the predecessor.
    ///
    /// `there` is the predecessor's connection limit for this listener, or `None` if the
    /// predecessor has no limit. If `there` is not higher than the limit here, a permit is always
    /// granted, because the move does not raise the total number of connections. Otherwise a permit
    /// is granted only if one is reserved, or if the connections here are fewer than the limit.
    pub(crate) fn acquire_for_carried(
        self: &Arc<Self>,
        there: Option<NonZeroUsize>,
    ) -> Option<Permit> {
        let mut permits = self.lock();
        let were_more = there.is_none_or(|there| there > self.limit);
        let is_reserved = permits.reserved > 0;
        if !is_reserved && were_more && permits.used >= self.limit.get() {
            return None;
        }
        permits.reserved -= usize::from(is_reserved);
        Some(self.exceed(permits))
    }

    /// Takes a permit for a connection that is already open, even if that exceeds the limit.
    pub(crate) fn acquire_beyond(self: &Arc<Self>) -> Permit {
        self.exceed(self.lock())
    }

    fn exceed(self: &Arc<Self>, permits: MutexGuard<'_, Permits>) -> Permit {
        self.use_one(permits);
        Permit(Arc::clone(self))
    }

    /// Reserves up to `count` free permits for connections that may move here from the predecessor.
    pub(crate) fn reserve(&self, count: usize) {
        let mut permits = self.lock();
        permits.reserved += count.min(self.free(&permits));
    }

    /// Makes all permits that are still reserved available to new clients.
    pub(crate) fn release_reserved(&self) {
        self.lock().reserved = 0;
        self.freed.notify_waiters();
    }

    /// Returns the number of connections that use a permit.
    pub(crate) fn used(&self) -> usize {
        self.lock().used
    }

    /// Returns how many times the listener has become full, which means that its connections have
    /// reached the limit.
    pub(crate) fn times_full(&self) -> u64 {
        self.lock().times_full
    }

    fn free(&self, permits: &Permits) -> usize {
        let Permits { used, held, reserved, .. } = *permits;
        self.limit.get().saturating_sub(used + held + reserved)
    }

    /// Counts one more connection. If the listener becomes full, counts and logs that too.
    fn use_one(&self, mut permits: MutexGuard<'_, Permits>) {
        permits.used += 1;
        if permits.used != self.limit.get() {
            return;
        }
        permits.times_full += 1;
        drop(permits);
        tracing::debug!(
            event = "listener.full", listener = %self.listener,
            "the listener {} has reached max_connections: new clients wait until a connection ends",
            self.listener
        );
    }

    /// Gives a permit back by calling `change`. If a permit is free afterwards, wakes an accept
    /// loop that waits for one.
    fn release(&self, change: impl FnOnce(&mut Permits)) {
        let mut permits = self.lock();
        change(&mut permits);
        let is_free = self.free(&permits) > 0;
        drop(permits);
        if is_free {
            self.freed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Permits> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldPermit {
    /// Turns this permit into the permit of a connection, because the accept loop has accepted a
    /// client.
    pub(crate) fn used(self) -> Permit {
        self.0.acquire_beyond()
    }
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        self.0.release(|permits| permits.held -= 1);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release(|permits| permits.used -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    fn limit(limit: usize) -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit::new("few", NonZeroUsize::new(limit).unwrap()))
    }

    /// A listener is counted as full when connections use all permits. It is counted again only
    /// after a permit has been free, no matter how often accept loops try to take a permit.
    #[test]
    fn a_full_listener_is_counted_once() {
        let limit = limit(2);
        let first = limit.try_take().unwrap().used();
        let second = limit.try_take().unwrap();
        let look = || (0..3).for_each(|_| assert!(limit.try_take().is_none()));
        look();
        assert_eq!(limit.times_full(), 0, "an accept loop still waits for a client");
        let second = second.used();
        look();
        assert_eq!(limit.times_full(), 1);
        drop(first);
        let third = limit.try_take().unwrap();
        assert_eq!(limit.times_full(), 1);
        let third = third.used();
        look();
        assert_eq!(limit.times_full(), 2);
        // A connection above the limit does not make the listener full again, and neither does the
        // end of that connection.
        drop(limit.acquire_for_carried(NonZeroUsize::new(2)).unwrap());
        assert_eq!(limit.times_full(), 2);
        drop((second, third));
    }

    /// If a waiting accept loop holds the only permit, a connection from the predecessor is still
    /// accepted. If an open connection uses the only permit and the predecessor's limit was higher,
    /// the connection from the predecessor is refused.
    #[test]
    fn a_waiting_loop_does_not_keep_a_carried_connection_out() {
        let limit = limit(1);
        drop(limit.acquire_for_carried(None).unwrap());
        let _loops = limit.try_take().unwrap();
        let _carried = limit.acquire_for_carried(None).unwrap();
        for fewer in [None, NonZeroUsize::new(2)] {
            assert!(limit.acquire_for_carried(fewer).is_none());
        }
    }

    /// A connection from the predecessor always gets a permit if the predecessor's limit was not
    /// higher. While there are more connections than the limit, a connection that ends frees no
    /// permit.
    #[test]
    fn a_carried_connection_may_exceed_an_unchanged_limit() {
        let limit = limit(1);
        let mut all = vec![limit.try_take().unwrap().used()];
        all.extend([(); 3].map(|()| limit.acquire_for_carried(Some(NonZeroUsize::MIN)).unwrap()));
        while all.pop().is_some() {
            assert_eq!(limit.try_take().is_some(), all.is_empty());
        }
    }

    /// Only connections from the predecessor can use reserved permits, until the reservation is
    /// released.
    #[test]
    fn reserved_permits_are_for_carried_connections() {
        let limit = limit(3);
        limit.reserve(2);
        let _accepted = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        let _carried = limit.acquire_for_carried(None).unwrap();
        limit.release_reserved();
        let _late = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
    }

    /// A full listener has no permits to reserve.
    #[test]
    fn only_free_permits_are_reserved() {
        let limit = limit(1);
        let _full = limit.try_take().unwrap().used();
        limit.reserve(9);
        assert!(limit.acquire_for_carried(None).is_none());
    }

    /// Every waiting accept loop gets a permit when enough permits are free. A permit becomes free
    /// when a connection ends, another loop stops waiting, or the reservation is released.
    #[tokio::test]
    async fn every_loop_that_waits_gets_a_free_permit() {
        async fn permit(loops: &mut JoinSet<HeldPermit>) -> Option<HeldPermit> {
            timeout(Duration::from_secs(30), loops.join_next()).await.unwrap()?.ok()
        }
        let limit = limit(3);
        let [first, second] = [(); 2].map(|()| limit.try_take().unwrap().used());
        limit.reserve(1);
        let mut loops = JoinSet::new();
        let wait = |loops: &mut JoinSet<_>| {
            let limit = Arc::clone(&limit);
            loops.spawn(async move { limit.take().await })
        };
        let stops = wait(&mut loops);
        (0..3).for_each(|_| drop(wait(&mut loops)));
        tokio::task::yield_now().await;
        // Dropping the permit wakes the loop that has waited longest, but that loop is aborted
        // before it runs.
        drop(first);
        stops.abort();
        let mut permits: Vec<_> = [permit(&mut loops).await, permit(&mut loops).await].into();
        drop(second);
        permits.push(permit(&mut loops).await);
        limit.release_reserved();
        permits.push(permit(&mut loops).await);
        assert_eq!(permits.iter().flatten().count(), 3);
    }
}
