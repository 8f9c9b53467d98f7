//! The connection limit of a listener of a server that accepts connections itself.
//!
//! The limit only delays accepts. A connection that moved here from the predecessor, or that was
//! left in a backlog, counts, but is not refused.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The connection limit of one listener.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    limit: usize,
    open: AtomicUsize,
    /// Notified when a connection has ended.
    freed: Notify,
}

/// The place that an open connection takes. Dropping this value frees the place.
#[derive(Debug)]
pub(super) struct Place(Arc<ConnectionLimit>);

impl ConnectionLimit {
    pub(super) fn new(limit: NonZeroUsize) -> Arc<Self> {
        let (open, freed) = (AtomicUsize::new(0), Notify::new());
        Arc::new(Self { limit: limit.get(), open, freed })
    }

    /// Returns whether fewer connections are open than the limit allows.
    pub(super) fn has_room(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.limit
    }

    /// Waits until fewer connections are open than the limit allows. Cancel safe.
    pub(super) async fn room(&self) {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Begin to wait before the look, so that no end of a connection is missed.
            freed.as_mut().enable();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }
}

impl Place {
    pub(super) fn take(limit: &Arc<ConnectionLimit>) -> Self {
        limit.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(limit))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    #[tokio::test]
    async fn a_place_that_is_freed_makes_room() {
        let limit = ConnectionLimit::new(NonZeroUsize::MIN);
        limit.room().await;
        let place = Place::take(&limit);
        let mut room = Box::pin(limit.room());
        assert_eq!(futures_poll(&mut room).await, Poll::Pending);
        drop(place);
        room.await;
    }

    /// Polls a future once.
    async fn futures_poll<F: Future<Output = ()> + Unpin>(future: &mut F) -> Poll<()> {
        std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx))).await
    }
}
