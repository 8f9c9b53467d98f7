//! The time limits of a connection: its idle timeout and its lifetime. A connection without limits
//! has no timer.
//!
//! This module only calculates times. The [`Plane`](super::Plane) has the timers, and checks the
//! limits of a connection whenever its timer expires.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The time limits of one connection.
#[derive(Debug)]
pub(crate) struct Limits(Option<Box<Clock>>);

#[derive(Debug)]
struct Clock {
    /// The time at which the connection to the upstream was made.
    made: Instant,
    idle: Option<Duration>,
    /// The time at which the lifetime of the connection ends.
    end: Option<Instant>,
    /// The total number of bytes that the connection had moved at the time `moved`.
    transferred: u64,
    /// The time at which the connection last moved bytes.
    moved: Instant,
    /// How many bytes the peers had not acknowledged at the last check. `None` before the first
    /// check, which happens when the idle timeout has passed.
    unacknowledged: Option<usize>,
    /// When the plane checks these limits next.
    timer: Option<Instant>,
}

/// The time limit that has ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    Idle,
    Lifetime,
}

impl From<Expired> for io::Error {
    fn from(expired: Expired) -> Self {
        let why = match expired {
            Expired::Idle => {
                "idle_timeout has passed: no data has moved, and a peer left data unread"
            }
            Expired::Lifetime => "lifetime has passed: the connection is too old",
        };
        Self::new(io::ErrorKind::TimedOut, why)
    }
}

/// How much of its time limits a connection has already used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    /// How long ago the connection to the upstream was made, or the connection to the client if the
    /// process had no limits.
    pub(crate) age: Duration,
    /// How long ago the connection last moved bytes.
    pub(crate) idle: Duration,
    /// How many bytes the connection has moved so far.
    pub(crate) transferred: u64,
}

impl Limits {
    /// Creates the time limits of a connection. `used` is how much of these limits the connection
    /// has already used.
    pub(crate) fn new(
        idle_timeout: Option<Duration>,
        lifetime: Option<Duration>,
        used: Used,
    ) -> Self {
        let now = Instant::now();
        let ago = |time| now.checked_sub(time).unwrap_or(now);
        let (made, moved) = (ago(used.age), ago(used.idle));
        if idle_timeout.is_none() && lifetime.is_none() {
            return Self::none();
        }
        Self(Some(Box::new(Clock {
            made,
            idle: idle_timeout,
            end: lifetime.and_then(|lifetime| made.checked_add(lifetime)),
            transferred: used.transferred,
            moved,
            unacknowledged: None,
            timer: None,
        })))
    }

    /// Creates limits that are never reached, for a connection that is not established yet.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// Returns how much of its time limits the connection has used. The idle time is zero if the
    /// configuration sets no idle timeout. Without limits, the age is `client_age`, the age of the
    /// client's connection, because the age of the upstream's connection is not known.
    pub(crate) fn used(&self, client_age: Duration) -> Used {
        match &self.0 {
            Some(clock) => {
                let age = clock.made.elapsed();
                let idle = clock.idle.map_or(Duration::ZERO, |_| clock.moved.elapsed());
                Used { age, idle, transferred: clock.transferred }
            }
            None => Used { age: client_age, ..Used::default() },
        }
    }

    /// Records how many bytes the connection has moved in total. The caller must call this method
    /// whenever bytes may have moved.
    pub(crate) fn note(&mut self, now: Instant, transferred: u64) {
        if let Some(clock) = self.0.as_mut().filter(|clock| clock.transferred != transferred) {
            (clock.transferred, clock.moved) = (transferred, now);
            // Forget the last check, because other bytes are unacknowledged now.
            clock.unacknowledged = None;
        }
    }

    /// Restarts the idle timeout, because the connection is about to move bytes.
    pub(super) fn restart_idle(&mut self, now: Instant) {
        if let Some(clock) = &mut self.0 {
            clock.moved = now;
        }
    }

    /// Records that the peers have not acknowledged `left` bytes yet. Returns whether this number
    /// has changed since the last call. If so, the connection is not idle: a peer acknowledges
    /// bytes, although the kernel accepts no more from this process.
    pub(crate) fn note_unacknowledged(&mut self, now: Instant, left: usize) -> bool {
        let Some(clock) = self.0.as_mut().filter(|_| left > 0) else { return false };
        let has_changed = clock.unacknowledged.replace(left) != Some(left);
        if has_changed {
            clock.moved = now;
        }
        has_changed
    }

    /// Returns when the plane checks these limits next, if they have a timer.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|clock| clock.timer)
    }

    /// Sets the time at which the plane checks these limits next: the earliest time at which the
    /// connection can reach a limit. There is none if the clock cannot represent it.
    pub(super) fn set_timer(&mut self) {
        let next = self.next();
        if let Some(clock) = &mut self.0 {
            clock.timer = next;
        }
    }

    /// Returns when the lifetime of the connection ends, if it is limited.
    pub(crate) fn lifetime_end(&self) -> Option<Instant> {
        self.0.as_ref().and_then(|clock| clock.end)
    }

    /// Returns the time limit that the connection has reached, if any.
    pub(crate) fn expired(&self, now: Instant) -> Option<Expired> {
        let clock = self.0.as_ref()?;
        if clock.end.is_some_and(|end| now >= end) {
            return Some(Expired::Lifetime);
        }
        let is_idle = |idle| now.saturating_duration_since(clock.moved) >= idle;
        clock.idle.is_some_and(is_idle).then_some(Expired::Idle)
    }

    /// Returns the earliest time at which the connection can reach a limit. Returns `None` if it
    /// has no limits, or if the clock cannot represent that time.
    fn next(&self) -> Option<Instant> {
        let clock = self.0.as_ref()?;
        let idle = clock.idle.and_then(|idle| clock.moved.checked_add(idle));
        [idle, clock.end].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    /// Traffic keeps a connection from becoming idle, but does not extend its lifetime.
    #[test]
    fn traffic_restarts_the_idle_timeout_but_not_the_lifetime() {
        let mut limits = Limits::new(Some(SECOND * 5), Some(SECOND * 7), Used::default());
        let start = Instant::now();
        for second in 1..7 {
            let now = start + SECOND * second;
            limits.note(now, second.into());
            assert_eq!(limits.expired(now), None);
        }
        assert!(limits.next().is_some_and(|next| next <= start + SECOND * 7));
        assert_eq!(limits.expired(start + SECOND * 7), Some(Expired::Lifetime));
    }

    /// The idle timeout restarts with each byte that moves, and with nothing else.
    #[test]
    fn the_idle_timeout_counts_from_the_last_traffic() {
        let mut limits = Limits::new(Some(SECOND * 5), None, Used::default());
        let moved = Instant::now() + SECOND * 3;
        limits.note(moved, 1);
        limits.note(moved + SECOND, 1);
        assert_eq!(limits.next(), Some(moved + SECOND * 5));
        assert_eq!(limits.expired(moved + SECOND * 4), None);
        assert_eq!(limits.expired(moved + SECOND * 5), Some(Expired::Idle));
    }

    /// The kernel accepts no more bytes from this process, but still sends those that it has.
    #[test]
    fn a_peer_that_acknowledges_bytes_is_not_idle() {
        let mut limits = Limits::new(Some(SECOND * 5), None, Used::default());
        let due = Instant::now() + SECOND * 6;
        assert_eq!(limits.expired(due), Some(Expired::Idle));
        assert!(!limits.note_unacknowledged(due, 0));
        for left in [9, 8] {
            assert!(limits.note_unacknowledged(due, left));
            assert_eq!(limits.next(), Some(due + SECOND * 5));
        }
        assert!(!limits.note_unacknowledged(due, 8));
        // The kernel has accepted more bytes since then, and the peer has acknowledged as many.
        limits.note(due, 1);
        assert!(limits.note_unacknowledged(due, 8));
    }

    /// When a connection moves to a new process, the time that it has used in the old process still
    /// counts.
    #[test]
    fn what_was_used_elsewhere_is_used_here() {
        let used = Used { idle: HOUR, transferred: 7, ..Used::default() };
        let mut limits = Limits::new(Some(HOUR), Some(HOUR), used);
        limits.note(Instant::now(), 7);
        assert_eq!(limits.expired(Instant::now()), Some(Expired::Idle));
        // The age of a connection is kept even if the connection was in a process without limits in
        // the meantime.
        let used = Used { age: HOUR, ..Used::default() };
        let limits = Limits::new(Some(HOUR), Some(HOUR), Limits::new(None, None, used).used(HOUR));
        assert!(limits.used(Duration::ZERO).age >= HOUR);
        assert_eq!(limits.expired(Instant::now()), Some(Expired::Lifetime));
        // The idle time stays zero while the configuration has no idle timeout.
        let used = Used { idle: HOUR, ..Used::default() };
        assert_eq!(Limits::new(None, Some(HOUR), used).used(HOUR).idle, Duration::ZERO);
    }

    /// If a time limit is too large for the clock, the connection never reaches it.
    #[test]
    fn a_limit_that_no_clock_can_hold_is_none() {
        let limits = Limits::new(Some(Duration::MAX), Some(Duration::MAX), Used::default());
        assert_eq!((limits.next(), limits.expired(Instant::now())), (None, None));
    }
}
