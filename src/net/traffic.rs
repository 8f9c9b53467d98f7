//! Counts the bytes of one connection where others can read them.
//!
//! Only the connection's own task writes, so a plain load and store do: nothing is locked, and no
//! two connections share a counter that processors would have to pass to and fro. Whoever wants a
//! sum adds up.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that a connection has carried.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// Of a connection that has carried so much already.
    pub(crate) const fn so_far(received: u64, sent: u64) -> Self {
        Self { received: AtomicU64::new(received), sent: AtomicU64::new(sent) }
    }

    /// Bytes read so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes written so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// For the connection's task alone.
    pub(super) fn count_received(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    /// For the connection's task alone.
    pub(super) fn count_sent(&self, bytes: u64) {
        add(&self.sent, bytes);
    }
}

fn add(counter: &AtomicU64, bytes: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
}
