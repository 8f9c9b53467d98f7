//! The request to one connection to pause, so that it can move to the successor. The scheduler sets
//! it, and the service of the connection reads it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

/// The request to one connection. Only the scheduler changes its state, under a lock.
#[derive(Debug, Default)]
pub(crate) struct CarryRequest {
    state: AtomicU8,
    /// Whether the connection has been asked, until [`CarryRequest::was_asked`] reads this.
    was_asked: AtomicBool,
    /// Whether the service has opted out, that is, declared that this connection cannot move to the
    /// successor.
    is_declined: AtomicBool,
    /// The waker of the connection's task.
    waker: Mutex<Option<Waker>>,
    changed: Notify,
}

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestState {
    /// The connection is not asked to move.
    Nothing = 0,
    /// The connection is asked to move, and holds a permit.
    AskedWithPermit = 1,
    /// The connection is asked to move. It was in the middle of a message, and has passed its
    /// permit on.
    Asked = 2,
    /// The connection must be drained, because the successor or its own service has refused.
    Refused = 3,
}

impl CarryRequest {
    /// Returns whether the connection is asked to pause at its next message boundary, so that it
    /// can move to the successor.
    pub(crate) fn carry_requested(&self) -> bool {
        self.is_asked() && !self.is_declined.load(Ordering::Relaxed)
    }

    /// Returns whether the connection was asked to move but cannot, because the successor refused
    /// it or the service opted out. It must then be drained.
    pub(crate) fn is_refused(&self) -> bool {
        self.state() == RequestState::Refused
            || (self.is_asked() && self.is_declined.load(Ordering::Relaxed))
    }

    /// Declares that the connection cannot move to the successor. This does not wake the
    /// connection's task.
    pub(crate) fn opt_out(&self) {
        self.is_declined.store(true, Ordering::Relaxed);
    }

    /// Waits until the connection is asked to pause so that it can move to the successor. Cancel
    /// safe.
    pub(crate) async fn asked(&self) {
        loop {
            let changed = self.changed.notified();
            if self.carry_requested() {
                return;
            }
            changed.await;
        }
    }

    /// Returns whether the connection is asked to move, even if its service has opted out.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state(), RequestState::AskedWithPermit | RequestState::Asked)
    }

    /// Returns whether the connection has been asked to move since the last call of this function,
    /// even if the request has been withdrawn.
    pub(crate) fn was_asked(&self) -> bool {
        self.was_asked.swap(false, Ordering::Relaxed)
    }

    pub(super) fn state(&self) -> RequestState {
        match self.state.load(Ordering::Acquire) {
            1 => RequestState::AskedWithPermit,
            2 => RequestState::Asked,
            3 => RequestState::Refused,
            _ => RequestState::Nothing,
        }
    }

    pub(super) fn set(&self, state: RequestState) {
        if state == RequestState::AskedWithPermit {
            // A task that sees the state must see this too, hence the orderings of the state.
            self.was_asked.store(true, Ordering::Relaxed);
        }
        self.state.store(state as u8, Ordering::Release);
    }

    /// Makes each later change wake the task with this waker.
    pub(super) fn wake_with(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// Wakes the connection's task, and each task that waits for the request.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
        self.changed.notify_waiters();
    }
}
