//! Byte counters of one connection. Other tasks can read them.
//!
//! Only the connection's own task writes its counters, so plain loads and stores suffice and no
//! lock is needed. Connections do not share counters, so tasks on different processors do not
//! contend for a cache line. A task that needs a total adds up the counters of all connections.

use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of bytes that a connection has transferred in each direction.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

/// The number of bytes that a connection has transferred in each direction, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteCounts {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Sub for ByteCounts {
    type Output = Self;

    /// Returns the bytes that were transferred since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self { received: self.received - earlier.received, sent: self.sent - earlier.sent }
    }
}

impl Traffic {
    /// Creates the counters of a connection that has already transferred this many bytes.
    pub(crate) const fn so_far(ByteCounts { received, sent }: ByteCounts) -> Self {
        Self { received: AtomicU64::new(received), sent: AtomicU64::new(sent) }
    }

    /// Returns the number of bytes transferred so far.
    pub(crate) fn counts(&self) -> ByteCounts {
        ByteCounts { received: self.received(), sent: self.sent() }
    }

    /// Returns the number of bytes read from the peer so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes written to the peer so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes transferred in both directions so far. A caller can compare two
    /// results to see whether the connection was idle in between.
    #[cfg(feature = "proxy")]
    pub(crate) fn transferred(&self) -> u64 {
        self.received() + self.sent()
    }

    /// Adds to the number of received bytes. Only the task of the connection may call this.
    pub(super) fn count_received(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    /// Adds to the number of sent bytes. Only the task of the connection may call this.
    pub(super) fn count_sent(&self, bytes: u64) {
        add(&self.sent, bytes);
    }
}

fn add(counter: &AtomicU64, bytes: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
}
