//! The scheduler for moving connections to the successor. It asks a limited number of connections
//! at a time to pause between two messages, so that they can move.
//!
//! There is a fixed number of permits. A connection that gets a permit is asked to pause at its
//! next message boundary. It passes the permit on as soon as it has moved to the successor. It also
//! passes the permit on if it is in the middle of a message. Such a connection moves later, when it
//! reaches a message boundary.
//!
//! So a connection's pause does not grow with the number of connections, and a busy connection does
//! not delay the others. The modules `outgoing` and `incoming` transfer the connections. Each
//! connection reads only its own [`CarryRequest`].

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use slab::Slab;
use tokio::sync::Notify;

use super::request::{CarryRequest, RequestState};

/// The number of permits, which limits how many connections move at the same time. It is large
/// enough to keep both processes busy.
const AT_ONCE: usize = 64;

/// The scheduler that asks this process's connections to move to the successor, a limited number at
/// a time.
#[derive(Debug, Default)]
pub(crate) struct CarryScheduler {
    round: Mutex<CarryRound>,
    /// Notified when the scheduler has no connection left to wait for.
    all_went: Notify,
    /// Notified when another connection may begin to move, or when the attempt to move all has
    /// ended.
    #[cfg(feature = "proxy")]
    room: Notify,
}

/// One attempt to move all connections to a successor.
#[derive(Debug, Default)]
struct CarryRound {
    /// The requests to all connections that can move.
    requests: Slab<Arc<CarryRequest>>,
    is_in_progress: bool,
    /// The index of the next connection to ask in this round.
    next: usize,
    /// How many connections hold a permit to move.
    permits: usize,
    /// How many connections this attempt no longer waits for, because they were refused, have moved
    /// or have opted out.
    refused: usize,
    /// The requests that have changed. The tasks of their connections must be woken.
    changed: Vec<Arc<CarryRequest>>,
}

impl CarryScheduler {
    /// Begins a round, which is an attempt to move all connections to the successor. From now on,
    /// connections are asked to pause, at most [`AT_ONCE`] at a time.
    pub(crate) fn begin(&self) {
        self.change(|round| {
            round.withdraw_all();
            (round.is_in_progress, round.next) = (true, 0);
        });
    }

    /// Ends the attempt to move connections. From now on, no connection is asked to pause.
    pub(crate) fn end(&self) {
        self.change(|round| {
            round.withdraw_all();
            round.is_in_progress = false;
        });
    }

    /// Waits until every connection that could move to the successor has moved, ended or been
    /// refused. Cancel safe.
    pub(crate) async fn all_went(&self) {
        loop {
            let all_went = self.all_went.notified();
            if self.lock().is_over() {
                return;
            }
            all_went.await;
        }
    }

    /// Waits until another connection may begin to move, because a permit is free, and returns
    /// `true`. Returns `false` if no attempt to move connections is in progress. Cancel safe.
    #[cfg(feature = "proxy")]
    pub(crate) async fn has_room(&self) -> bool {
        loop {
            let room = self.room.notified();
            let (is_in_progress, permits) = {
                let round = self.lock();
                (round.is_in_progress, round.permits)
            };
            if !is_in_progress || permits < AT_ONCE {
                return is_in_progress;
            }
            room.await;
        }
    }

    /// Calls `change`, asks more connections to move if permits have become free, and wakes each
    /// connection whose request has changed.
    fn change<T>(&self, change: impl FnOnce(&mut CarryRound) -> T) -> T {
        let mut round = self.lock();
        let result = change(&mut round);
        round.ask_more();
        let (changed, is_over) = (std::mem::take(&mut round.changed), round.is_over());
        #[cfg(feature = "proxy")]
        if round.permits < AT_ONCE {
            self.room.notify_waiters();
        }
        drop(round);
        changed.iter().for_each(|request| request.wake());
        if is_over {
            self.all_went.notify_waiters();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, CarryRound> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CarryRound {
    /// Returns whether the current attempt to move connections has no connection left to wait for.
    fn is_over(&self) -> bool {
        self.is_in_progress && self.refused == self.requests.len()
    }

    /// Asks more connections to move, as long as permits are free. Asks each connection at most
    /// once in an attempt.
    fn ask_more(&mut self) {
        while self.is_in_progress && self.permits < AT_ONCE && self.next < self.requests.capacity()
        {
            let next = self.requests.get(self.next);
            if next.is_some_and(|request| request.state() == RequestState::Nothing) {
                self.ask(self.next);
            }
            self.next += 1;
        }
    }

    fn ask(&mut self, index: usize) {
        self.set(index, RequestState::AskedWithPermit);
        let Some(request) = self.requests.get(index).map(Arc::clone) else { return };
        // Take the permit to move back from a busy task, because the task does not pass it on.
        if request.is_busy() {
            let opted_out = request.is_refused();
            let state = if opted_out { RequestState::Refused } else { RequestState::Asked };
            self.set(index, state);
        }
        self.changed.push(request);
    }

    fn withdraw_all(&mut self) {
        for (_, request) in &self.requests {
            if request.state() != RequestState::Nothing {
                request.set(RequestState::Nothing);
                self.changed.push(Arc::clone(request));
            }
        }
        (self.permits, self.refused) = (0, 0);
    }

    fn set(&mut self, index: usize, state: RequestState) {
        let Some(request) = self.requests.get(index) else { return };
        let last = request.state();
        request.set(state);
        for (counter, counted) in [
            (&mut self.permits, RequestState::AskedWithPermit),
            (&mut self.refused, RequestState::Refused),
        ] {
            *counter += usize::from(state == counted);
            *counter -= usize::from(last == counted);
        }
    }
}

/// A connection's registration with the scheduler. Dropping this value removes the connection from
/// the scheduler.
#[derive(Debug)]
pub(crate) struct CarrySlot {
    scheduler: Arc<CarryScheduler>,
    request: Arc<CarryRequest>,
    index: usize,
    /// The waker that was last stored in the request.
    waker: Option<Waker>,
}

impl CarrySlot {
    /// Registers a new connection with `scheduler`. If connections are just moving to the
    /// successor, asks the new one to move too, even if no permit is free, so that it is not left
    /// out.
    pub(crate) fn new(scheduler: Arc<CarryScheduler>) -> Self {
        let request = Arc::<CarryRequest>::default();
        let index = scheduler.change(|round| {
            let index = round.requests.insert(Arc::clone(&request));
            if round.is_in_progress {
                round.ask(index);
            }
            index
        });
        Self { scheduler, request, index, waker: None }
    }

    /// Returns the request that asks this connection to move, so that the service can read it.
    pub(crate) const fn request(&self) -> &Arc<CarryRequest> {
        &self.request
    }

    /// Records that the successor refused the connection. The connection is not asked to move again
    /// until the next attempt to move all connections.
    pub(crate) fn refused(&self) {
        self.scheduler.change(|round| {
            if round.is_in_progress {
                round.set(self.index, RequestState::Refused);
            }
        });
    }

    /// Records that the connection has moved, so that the scheduler no longer waits for it, even if
    /// its task takes some more time to end.
    pub(crate) fn moved(&self) {
        self.refused();
    }

    /// Records that the task looks at the request to move until the returned value is dropped. At
    /// all other times, the connection may be in the middle of a message, so it gets no permit to
    /// move. Only a server that does not call [`CarrySlot::watch`] before each poll needs this
    /// method.
    pub(crate) fn begin_watching(&self) -> AttentionGuard<'_> {
        self.request.set_busy(false);
        AttentionGuard(self)
    }

    /// Excludes the connection from this attempt and all later attempts to move connections.
    pub(crate) fn opt_out(&self) {
        self.request.opt_out();
        self.stop_watching();
        self.request.wake();
    }

    /// Records that the connection's task does not look at the request to move. Passes its permit
    /// to move on to another connection.
    pub(crate) fn stop_watching(&self) {
        self.request.set_busy(true);
        self.pass_on();
    }

    /// Stops asking the connection to move, because no successor accepts connections any more.
    pub(crate) fn withdraw(&self) {
        self.scheduler.change(|round| round.set(self.index, RequestState::Nothing));
    }

    /// Returns whether the connection has been asked to move. From now on, changes to the request
    /// wake the current task.
    ///
    /// Call this function before each poll of the service. If the connection has been asked but the
    /// service is still in the middle of a message after the poll, call [`CarrySlot::pass_on`].
    pub(crate) fn watch(&mut self, cx: &Context<'_>) -> bool {
        // The waker of a task rarely changes, so the request is usually locked only once.
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
            self.request.wake_with(cx.waker().clone());
        }
        self.request.is_asked()
    }

    /// If this connection holds a permit to move, passes it on to another connection. If the
    /// service has opted out, the scheduler stops waiting for this connection.
    pub(crate) fn pass_on(&self) {
        let request = &self.request;
        // Lock only if the state must change, because a busy connection is polled often.
        if request.state() == RequestState::AskedWithPermit || request.is_refused() {
            self.scheduler.change(|round| {
                if request.is_refused() {
                    round.set(self.index, RequestState::Refused);
                } else if request.is_asked() {
                    round.set(self.index, RequestState::Asked);
                }
            });
        }
    }
}

/// While this value exists, the connection's task looks at the request to move. Dropping it passes
/// an unused permit to move on to another connection.
#[derive(Debug)]
pub(crate) struct AttentionGuard<'a>(&'a CarrySlot);

impl Drop for AttentionGuard<'_> {
    fn drop(&mut self) {
        self.0.stop_watching();
    }
}

impl Drop for CarrySlot {
    fn drop(&mut self) {
        self.scheduler.change(|round| {
            round.set(self.index, RequestState::Nothing);
            round.requests.try_remove(self.index);
        });
    }
}
