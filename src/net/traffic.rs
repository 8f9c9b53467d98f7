//! Byte counters of one connection that other tasks can read.
//!
//! Only the connection's own task writes them, so plain loads and stores suffice and nothing is
//! locked. No two connections share a counter, so no cache line moves between processors. A reader
//! that needs a total adds the counters up.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that a connection has transferred.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// Creates the counters of a connection that has already transferred this many bytes.
    pub(crate) const fn so_far(received: u64, sent: u64) -> Self {
        Self { received: AtomicU64::new(received), sent: AtomicU64::new(sent) }
    }

    /// Returns the number of bytes read so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes written so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Adds received bytes. Only the connection's task may call this.
    pub(super) fn count_received(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    /// Adds sent bytes. Only the connection's task may call this.
    pub(super) fn count_sent(&self, bytes: u64) {
        add(&self.sent, bytes);
    }
}

fn add(counter: &AtomicU64, bytes: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
}
