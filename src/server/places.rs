//! The places of one listener: one for each connection that it may have at once, for all the loops
//! that accept on it.
//!
//! A loop takes a place before it accepts, so one that waits for somebody to come holds a place
//! that nobody has: that none is free does not yet say that the listener is full. Connections that
//! a predecessor carries here come by another way: places are kept for them, and who comes beyond
//! that is worked off before anybody else is accepted. How many connections there are is not known
//! here: `census` counts them.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// One of them, for as long as this lives.
#[derive(Debug)]
pub(super) struct Place(Arc<Places>);

/// There are as many connections as there may be.
#[derive(Debug)]
pub(super) struct Full;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    free: Semaphore,
    limit: usize,
    /// How many are kept for those that may be carried here.
    kept: AtomicUsize,
    /// How many there are more than places: the next that are given back are nobody's.
    excess: AtomicUsize,
    /// It was seen that the listener is full, and nobody has taken a place since. Says nothing of
    /// other memory, so no access to it is ordered.
    full: AtomicBool,
}

impl Places {
    /// So many, or as many as can be counted.
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

    /// One that is free.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Place> {
        self.free.try_acquire().ok().map(|permit| self.taken(permit))
    }

    /// One, as soon as one is free. Cancel safe, but for the turn.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Place> {
        // It is never closed.
        self.free.acquire().await.ok().map(|permit| self.taken(permit))
    }

    /// One for a connection that is there already, and has come from a process where there are so
    /// many places, if they are counted. Where there were no more than here it is one in any case,
    /// for all of them together become no more by it: who has been accepted since must not be in
    /// its way. Else there has to be room, other than what loops hold for those that they wait for.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn take_beside(
        self: &Arc<Self>,
        there: Option<NonZeroUsize>,
        connections: impl FnOnce() -> usize,
    ) -> Result<Place, Full> {
        if lower(&self.kept) {
            return Ok(Place(Arc::clone(self)));
        }
        if let Some(place) = self.try_take() {
            return Ok(place);
        }
        let were_more = there.is_none_or(|there| there.get() > self.limit);
        if were_more && connections() >= self.limit {
            return Err(Full);
        }
        self.excess.fetch_add(1, Ordering::Relaxed);
        Ok(Place(Arc::clone(self)))
    }

    /// Keeps so many of those that are free for connections that may be carried here, or as many as
    /// there are.
    pub(super) fn keep(&self, count: usize) {
        self.kept.fetch_add(self.free.forget_permits(count), Ordering::Relaxed);
    }

    /// Gives back what is kept and was not needed.
    pub(super) fn keep_no_more(&self) {
        self.free.add_permits(self.kept.swap(0, Ordering::Relaxed));
    }

    /// Whether the listener is full with so many connections and was not before: true once until
    /// somebody takes a place, whoever asks, and however often.
    pub(super) fn fills(&self, connections: impl FnOnce() -> usize) -> bool {
        // That it is known already costs no look at the connections.
        !self.full.load(Ordering::Relaxed)
            && connections() >= self.limit
            && !self.full.swap(true, Ordering::Relaxed)
    }

    fn taken(self: &Arc<Self>, permit: SemaphorePermit<'_>) -> Place {
        // The place gives it back.
        permit.forget();
        // Most often there is nothing to write, and all the threads can read at once.
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
        Place(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self(places) = self;
        if !lower(&places.excess) {
            places.free.add_permits(1);
        }
    }
}

/// Makes a count less by one, unless it is nothing.
fn lower(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_fills_once_until_a_place_is_taken() {
        let places = Arc::new(Places::new(NonZeroUsize::new(2).unwrap()));
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
        let places = Arc::new(Places::new(NonZeroUsize::MIN));
        assert!(places.take_beside(None, || 0).is_ok());
        let _loops = places.try_take().unwrap();
        assert!(places.take_beside(None, || 0).is_ok());
        for fewer in [None, NonZeroUsize::new(2)] {
            assert!(places.take_beside(fewer, || 1).is_err());
        }
    }

    #[test]
    fn one_that_comes_from_where_there_are_no_more_places_always_has_one_and_those_before_it_leave_none()
     {
        let places = Arc::new(Places::new(NonZeroUsize::MIN));
        let mut all = vec![places.try_take().unwrap()];
        all.extend([(); 3].map(|()| places.take_beside(Some(NonZeroUsize::MIN), || 1).unwrap()));
        while all.pop().is_some() {
            assert_eq!(places.try_take().is_some(), all.is_empty());
        }
    }

    #[test]
    fn what_is_kept_is_for_those_that_come_from_elsewhere_until_no_more_come() {
        let places = Arc::new(Places::new(NonZeroUsize::new(3).unwrap()));
        places.keep(2);
        let _accepted = places.try_take().unwrap();
        assert!(places.try_take().is_none());
        let _carried = places.take_beside(None, || unreachable!("one is kept")).unwrap();
        places.keep_no_more();
        let _late = places.try_take().unwrap();
        assert!(places.try_take().is_none());
        places.keep(9);
        places.keep_no_more();
        assert!(places.try_take().is_none());
    }

    #[tokio::test]
    async fn whoever_has_waited_for_a_place_has_taken_it() {
        let places = Arc::new(Places::new(NonZeroUsize::MIN));
        let place = places.try_take().unwrap();
        assert!(places.fills(|| 1));
        let (taken, ()) = tokio::join!(places.take(), async { drop(place) });
        assert!(taken.is_some() && places.fills(|| 1));
    }
}
