//! The connection limit of a listener of a server that accepts connections itself.
//!
//! The limit only delays accepts. A connection that moved here from the predecessor, or that was
//! left in a backlog, counts, but is not refused.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connection limit of one listener.
#[derive(Debug)]
pub(in crate::lifecycle) struct ConnectionLimit {
    limit: usize,
    places: Mutex<Places>,
    /// Notified when there may be room again.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Places {
    /// The number of places that connections take.
    open: usize,
    /// The number of places that are kept for connections from the predecessor.
    reserved: usize,
}

/// The place that an open connection takes. Dropping this value frees the place.
#[derive(Debug)]
pub(in crate::lifecycle) struct Place(Arc<ConnectionLimit>);

impl ConnectionLimit {
    pub(super) fn new(limit: NonZeroUsize) -> Arc<Self> {
        let (places, freed) = (Mutex::default(), Notify::new());
        Arc::new(Self { limit: limit.get(), places, freed })
    }

    /// Returns the number of open connections.
    pub(super) fn open(&self) -> usize {
        self.lock().open
    }

    /// Keeps places for `count` connections from the predecessor.
    pub(super) fn reserve(&self, count: usize) {
        self.lock().reserved = count;
    }

    /// Frees the places that are still kept, because no more connections come from the predecessor.
    pub(super) fn release_reserved(&self) {
        self.lock().reserved = 0;
        self.freed.notify_waiters();
    }

    /// Takes a place, unless the limit is reached.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut places = self.lock();
        let has_room = places.open + places.reserved < self.limit;
        has_room.then(|| {
            places.open += 1;
            Place(Arc::clone(self))
        })
    }

    /// Waits for a place, and takes it. Cancel safe.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Begin to wait before the look, so that no end of a connection is missed.
            freed.as_mut().enable();
            if let Some(place) = self.try_take() {
                return place;
            }
            freed.await;
        }
    }

    /// Takes a place that is kept for a connection from the predecessor.
    pub(super) fn take_reserved(self: &Arc<Self>) -> Place {
        let mut places = self.lock();
        places.reserved = places.reserved.saturating_sub(1);
        places.open += 1;
        Place(Arc::clone(self))
    }

    /// Takes a place even if the limit is reached.
    pub(super) fn take_beyond(self: &Arc<Self>) -> Place {
        self.lock().open += 1;
        Place(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    fn of(limit: usize) -> Arc<ConnectionLimit> {
        ConnectionLimit::new(NonZeroUsize::new(limit).unwrap())
    }

    #[tokio::test]
    async fn a_place_that_is_freed_goes_to_one_waiter() {
        let limit = of(1);
        let place = limit.take().await;
        let got = CancellationToken::new();
        let waiters = [(); 3].map(|()| {
            let (limit, got) = (Arc::clone(&limit), got.clone());
            tokio::spawn(async move {
                let place = limit.take().await;
                got.cancel();
                place
            })
        });
        drop(place);
        got.cancelled().await;
        assert!(limit.try_take().is_none());
        for waiter in waiters {
            drop(waiter.await.unwrap());
        }
        assert_eq!(limit.open(), 0);
    }

    /// New clients do not take the places of connections that come from the predecessor.
    #[test]
    fn reserved_places_wait_for_connections_that_move_here() {
        let limit = of(2);
        limit.reserve(2);
        assert!(limit.try_take().is_none());
        let carried = limit.take_reserved();
        assert!(limit.try_take().is_none());
        limit.release_reserved();
        let new = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        drop((carried, new));
        let beyond = [(); 3].map(|()| limit.take_beyond());
        assert_eq!((limit.open(), limit.try_take().is_none()), (3, true));
        drop(beyond);
    }
}
