//! A request that asks one connection to pause, so that it can move to the successor. The scheduler
//! sets the request, and the connection's service reads it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

/// A request that asks one connection to move to the successor. Only the scheduler changes the
/// state of the request, while it holds a lock.
#[derive(Debug, Default)]
pub(crate) struct CarryRequest {
    state: AtomicU8,
    /// Whether the connection has been asked to move since the last call to
    /// [`CarryRequest::was_asked`].
    was_asked: AtomicBool,
    /// Whether the connection's task is in the middle of a message and does not look at this
    /// request. If so, the connection gets no permit to move. Always false in the built-in server,
    /// whose busy connections pass their permits on themselves.
    is_busy: AtomicBool,
    /// Whether the service has opted out, which means that this connection cannot move to the
    /// successor.
    is_declined: AtomicBool,
    /// The waker of the connection's task.
    waker: Mutex<Option<Waker>>,
    changed: Notify,
}

/// The state of the request that asks one connection to move to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestState {
    /// The connection has not been asked to move.
    Nothing = 0,
    /// The connection has been asked to move, and holds one of a limited number of permits to do
    /// so.
    AskedWithPermit = 1,
    /// The connection has been asked to move. It was in the middle of a message, so it has passed
    /// its permit on to another connection.
    Asked = 2,
    /// The connection must be drained, because the successor has refused it or its own service has
    /// opted out.
    Refused = 3,
}

impl CarryRequest {
    /// Returns whether the connection is asked to pause at its next message boundary, so that it
    /// can move to the successor.
    pub(crate) fn carry_requested(&self) -> bool {
        self.is_asked() && !self.has_opted_out()
    }

    /// Returns whether the connection was asked to move but cannot, because the successor refused
    /// it or the service opted out. It must then be drained.
    pub(crate) fn is_refused(&self) -> bool {
        self.state() == RequestState::Refused || (self.is_asked() && self.has_opted_out())
    }

    /// Declares that the connection cannot move to the successor. This does not wake the
    /// connection's task.
    pub(crate) fn opt_out(&self) {
        self.is_declined.store(true, Ordering::Relaxed);
    }

    /// Returns whether the service has opted out.
    pub(crate) fn has_opted_out(&self) -> bool {
        self.is_declined.load(Ordering::Relaxed)
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

    /// Waits until the connection was asked to move but cannot, because the successor refused it or
    /// the service opted out. Cancel safe.
    pub(crate) async fn refused(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_refused() {
                return;
            }
            changed.await;
        }
    }

    /// Records whether the connection's task is busy with a message and does not look at this
    /// request.
    pub(super) fn set_busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
        // The scheduler sets the state of the request and then reads `is_busy`. The task sets
        // `is_busy` and then reads the state. With a fence between the two steps on both sides, at
        // least one side sees the change of the other.
        fence(Ordering::SeqCst);
    }

    /// Returns whether the connection's task is busy. The scheduler calls this function after it
    /// has set the state of the request.
    pub(super) fn is_busy(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_busy.load(Ordering::Relaxed)
    }

    /// Returns whether the connection is asked to move, even if its service has opted out.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state(), RequestState::AskedWithPermit | RequestState::Asked)
    }

    /// Returns whether the scheduler has asked the connection to move since the last call to this
    /// function. A request that was withdrawn in the meantime counts too.
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
            // The release store below publishes this flag too, so a task that sees the new state
            // also sees the flag.
            self.was_asked.store(true, Ordering::Relaxed);
        }
        self.state.store(state as u8, Ordering::Release);
    }

    /// Stores the waker of the connection's task, so that later changes to the request wake the
    /// task.
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
