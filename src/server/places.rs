//! The places of one listener: one for each connection that it may have at once, for all the loops that accept on it.
//!
//! A loop takes a place before it accepts, so one that waits for somebody to come holds a place that nobody has: that none is
//! free does not yet say that the listener is full. How many connections there are is not known here: `census` counts them.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One of them, for as long as this lives.
pub(super) type Place = OwnedSemaphorePermit;

/// There are as many connections as there may be.
#[derive(Debug)]
pub(super) struct Full;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    limit: usize,
    /// It was seen that the listener is full, and nobody has taken a place since. Says nothing of other memory, so no access
    /// to it is ordered.
    full: AtomicBool,
}

impl Places {
    /// So many, or as many as can be counted.
    pub(super) fn new(limit: NonZeroUsize) -> Self {
        let limit = limit.get().min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(limit)), limit, full: AtomicBool::new(false) }
    }

    /// One that is free.
    pub(super) fn try_take(&self) -> Option<Place> {
        Arc::clone(&self.free).try_acquire_owned().ok().inspect(|_| self.taken())
    }

    /// One, as soon as one is free. Cancel safe, but for the turn.
    pub(super) async fn take(&self) -> Option<Place> {
        // It is never closed.
        Arc::clone(&self.free).acquire_owned().await.ok().inspect(|_| self.taken())
    }

    /// One for a connection that has come by another way, where there are so many. It is none if there is room and loops hold what
    /// is free for those that they wait for: by as many the listener may have too many for a while.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn try_take_beside(&self, connections: impl FnOnce() -> usize) -> Result<Option<Place>, Full> {
        match self.try_take() {
            None if connections() >= self.limit => Err(Full),
            place => Ok(place),
        }
    }

    /// Whether the listener is full with so many connections and was not before: true once until somebody takes a place, whoever
    /// asks, and however often.
    pub(super) fn fills(&self, connections: impl FnOnce() -> usize) -> bool {
        // That it is known already costs no look at the connections.
        !self.full.load(Ordering::Relaxed) && connections() >= self.limit && !self.full.swap(true, Ordering::Relaxed)
    }

    fn taken(&self) {
        // Most often there is nothing to write, and all the threads can read at once.
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_fills_once_until_a_place_is_taken() {
        let places = Places::new(NonZeroUsize::new(2).unwrap());
        let (first, second) = (places.try_take().unwrap(), places.try_take().unwrap());
        assert!(places.try_take().is_none());
        // With one of them somebody still waits for a client.
        assert!(!places.fills(|| 1));
        assert_eq!([(); 3].map(|()| places.fills(|| 2)), [true, false, false]);
        // A place that nobody takes changes nothing.
        drop(first);
        assert!(!places.fills(|| 2));
        let again = places.try_take().unwrap();
        assert_eq!([(); 3].map(|()| places.fills(|| 2)), [true, false, false]);
        drop((second, again));
    }

    #[test]
    fn what_loops_hold_for_nobody_is_room_for_one_that_is_there() {
        let places = Places::new(NonZeroUsize::MIN);
        assert!(matches!(places.try_take_beside(|| 0), Ok(Some(_))));
        let _loops = places.try_take().unwrap();
        assert!(matches!(places.try_take_beside(|| 0), Ok(None)));
        assert!(places.try_take_beside(|| 1).is_err());
    }

    #[tokio::test]
    async fn whoever_has_waited_for_a_place_has_taken_it() {
        let places = Places::new(NonZeroUsize::MIN);
        let place = places.try_take().unwrap();
        assert!(places.fills(|| 1));
        let (taken, ()) = tokio::join!(places.take(), async { drop(place) });
        assert!(taken.is_some() && places.fills(|| 1));
    }
}
