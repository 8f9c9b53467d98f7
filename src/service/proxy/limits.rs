//! The time limits of a connection: its idle timeout and its lifetime. A connection without limits
//! has no timer.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::ProxyConfig;

/// The time limits of one connection.
pub(super) struct Limits {
    made: Instant,
    clock: Option<Box<Clock>>,
}

struct Clock {
    timer: Pin<Box<Sleep>>,
    idle: Option<Duration>,
    /// The time at which the lifetime of the connection ends.
    end: Option<Instant>,
    /// The total number of bytes that the connection had moved at the time `moved`.
    carried: u64,
    /// The time at which the connection last moved bytes.
    moved: Instant,
}

/// The time limit that has ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
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
pub(super) struct Used {
    /// How long ago the connection to the upstream was made.
    pub(super) age: Duration,
    /// How long ago the connection last moved bytes.
    pub(super) idle: Duration,
    /// How many bytes the connection has moved so far.
    pub(super) carried: u64,
}

impl Limits {
    /// Creates the time limits of a connection. `used` is how much of these limits the connection
    /// has already used.
    pub(super) fn new(config: &ProxyConfig, used: Used) -> Self {
        let now = Instant::now();
        let ago = |time| now.checked_sub(time).unwrap_or(now);
        let (made, moved) = (ago(used.age), ago(used.idle));
        if config.idle_timeout.is_none() && config.lifetime.is_none() {
            return Self { made, clock: None };
        }
        let end = config.lifetime.and_then(|lifetime| made.checked_add(lifetime));
        let (timer, idle) = (Box::pin(sleep_until(now)), config.idle_timeout);
        let mut clock = Clock { timer, idle, end, carried: used.carried, moved };
        let next = clock.next(now);
        clock.timer.as_mut().reset(next);
        Self { made, clock: Some(Box::new(clock)) }
    }

    /// Returns how much of its time limits the connection has used. The idle time is zero if the
    /// configuration sets no idle timeout.
    pub(super) fn used(&self) -> Used {
        let age = self.made.elapsed();
        match &self.clock {
            Some(clock) => {
                let idle = clock.idle.map_or(Duration::ZERO, |_| clock.moved.elapsed());
                Used { age, idle, carried: clock.carried }
            }
            None => Used { age, ..Used::default() },
        }
    }

    /// Completes when the connection reaches a time limit. The caller must call this method
    /// whenever bytes may have moved.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        carried: impl FnOnce() -> u64,
    ) -> Poll<Expired> {
        let Some(clock) = &mut self.clock else { return Poll::Pending };
        let now = Instant::now();
        let carried = carried();
        if carried != clock.carried {
            (clock.carried, clock.moved) = (carried, now);
        }
        loop {
            ready!(clock.timer.as_mut().poll(cx));
            if clock.end.is_some_and(|end| now >= end) {
                return Poll::Ready(Expired::Lifetime);
            }
            if clock.idle.is_some_and(|idle| now.duration_since(clock.moved) >= idle) {
                return Poll::Ready(Expired::Idle);
            }
            // Set the timer again, because bytes have moved since it was set.
            let next = clock.next(now);
            clock.timer.as_mut().reset(next);
        }
    }
}

impl Clock {
    /// Returns the time at which to check the limits next. If the clock cannot represent that time,
    /// returns the time one day from now.
    fn next(&self, now: Instant) -> Instant {
        let idle = self.idle.and_then(|idle| self.moved.checked_add(idle));
        let next = [idle, self.end].into_iter().flatten().min();
        next.unwrap_or(now + Duration::from_secs(86_400)).max(now + Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn limits(idle_timeout: Option<Duration>, lifetime: Option<Duration>) -> Limits {
        let upstreams = crate::config::Upstreams::new(vec!["@a".parse().unwrap()]).unwrap();
        Limits::new(
            &ProxyConfig { idle_timeout, lifetime, ..ProxyConfig::to(upstreams) },
            Used::default(),
        )
    }

    /// Traffic keeps a connection from becoming idle, but does not extend its lifetime.
    #[tokio::test]
    async fn traffic_restarts_the_idle_timeout_but_not_the_lifetime() {
        let start = Instant::now();
        let mut limits = limits(Some(Duration::from_millis(500)), Some(Duration::from_millis(700)));
        let mut moves = tokio::time::interval(Duration::from_millis(5));
        let mut carried = 0;
        let expired = poll_fn(|cx| {
            while moves.poll_tick(cx).is_ready() {
                carried += 1;
            }
            limits.poll(cx, || carried)
        });
        assert_eq!(expired.await, Expired::Lifetime);
        assert!(start.elapsed() >= Duration::from_millis(700));
    }

    /// The idle timeout restarts with each byte that moves.
    #[tokio::test]
    async fn the_idle_timeout_counts_from_the_last_traffic() {
        let start = Instant::now();
        let mut limits = limits(Some(Duration::from_millis(100)), None);
        let mut moves = Box::pin(tokio::time::sleep(Duration::from_millis(50)));
        let mut carried = 0;
        let expired = poll_fn(|cx| {
            if carried == 0 && moves.as_mut().poll(cx).is_ready() {
                carried = 1;
            }
            limits.poll(cx, || carried)
        });
        assert_eq!(expired.await, Expired::Idle);
        assert!(start.elapsed() >= Duration::from_millis(150));
    }

    /// When a connection moves to a new process, the time that it has used in the old process still
    /// counts.
    #[tokio::test]
    async fn what_was_used_elsewhere_is_used_here() {
        let upstreams = crate::config::Upstreams::new(vec!["@a".parse().unwrap()]).unwrap();
        let hour = Some(Duration::from_secs(3600));
        let unlimited = ProxyConfig::to(upstreams);
        let config = ProxyConfig { idle_timeout: hour, lifetime: hour, ..unlimited.clone() };
        let used = Used { idle: Duration::from_secs(3600), carried: 7, ..Used::default() };
        let mut limits = Limits::new(&config, used);
        assert_eq!(poll_fn(|cx| limits.poll(cx, || 7)).await, Expired::Idle);
        let used = Used { age: Duration::from_secs(3600), ..Used::default() };
        // The age of a connection is kept even if the connection was in a process without limits in
        // the meantime.
        let mut limits = Limits::new(&config, Limits::new(&unlimited, used).used());
        assert!(limits.used().age >= used.age);
        assert_eq!(poll_fn(|cx| limits.poll(cx, || 7)).await, Expired::Lifetime);
        // The idle time stays zero while the configuration has no idle timeout.
        let lifetime = ProxyConfig { lifetime: hour, ..unlimited };
        let used = Used { idle: Duration::from_secs(3600), ..Used::default() };
        assert_eq!(Limits::new(&lifetime, used).used().idle, Duration::ZERO);
    }

    /// If a time limit is too large for the clock, the connection never reaches it.
    #[tokio::test]
    async fn a_limit_that_no_clock_can_hold_is_none() {
        let mut limits = limits(Some(Duration::MAX), Some(Duration::MAX));
        let reached =
            tokio::time::timeout(Duration::from_millis(10), poll_fn(|cx| limits.poll(cx, || 0)))
                .await;
        assert!(reached.is_err());
    }
}
