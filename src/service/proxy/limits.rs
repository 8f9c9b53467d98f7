//! Tells when a connection has been idle, or there, for too long. Where no limit is set there is no
//! timer either.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::ProxyConfig;

/// The limits of one connection, from when it was made.
pub(super) struct Limits {
    made: Instant,
    clock: Option<Box<Clock>>,
}

struct Clock {
    timer: Pin<Box<Sleep>>,
    idle: Option<Duration>,
    /// When it is too old.
    end: Option<Instant>,
    /// Bytes that it had carried when something was last seen to move, and when that was.
    carried: u64,
    moved: Instant,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    Idle,
    Lifetime,
}

impl From<Expired> for io::Error {
    fn from(expired: Expired) -> Self {
        let why = match expired {
            Expired::Idle => "nothing moved for too long, and something was still to be taken",
            Expired::Lifetime => "the connection was too old",
        };
        Self::new(io::ErrorKind::TimedOut, why)
    }
}

/// What a connection has used of its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Used {
    /// How long it has been there.
    pub(super) age: Duration,
    /// How long nothing has moved.
    pub(super) idle: Duration,
    /// Bytes that it has carried.
    pub(super) carried: u64,
}

impl Limits {
    /// For one that has used so much of them.
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

    /// What has been used of them. Silence is only time used where it is limited.
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

    /// Ready when one is reached. To be asked whenever something may have moved.
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
            // It was set for what was known then.
            let next = clock.next(now);
            clock.timer.as_mut().reset(next);
        }
    }
}

impl Clock {
    /// When to look again; what no clock can hold is far away.
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

    #[tokio::test]
    async fn what_moves_is_not_idle_and_ages_all_the_same() {
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

    #[tokio::test]
    async fn what_stands_still_is_idle_from_when_it_last_moved() {
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
        // Also when a configuration without limits came in between.
        let mut limits = Limits::new(&config, Limits::new(&unlimited, used).used());
        assert!(limits.used().age >= used.age);
        assert_eq!(poll_fn(|cx| limits.poll(cx, || 7)).await, Expired::Lifetime);
        // Silence counts from where it is limited.
        let lifetime = ProxyConfig { lifetime: hour, ..unlimited };
        let used = Used { idle: Duration::from_secs(3600), ..Used::default() };
        assert_eq!(Limits::new(&lifetime, used).used().idle, Duration::ZERO);
    }

    #[tokio::test]
    async fn a_limit_that_no_clock_can_hold_is_none() {
        let mut limits = limits(Some(Duration::MAX), Some(Duration::MAX));
        let reached =
            tokio::time::timeout(Duration::from_millis(10), poll_fn(|cx| limits.poll(cx, || 0)))
                .await;
        assert!(reached.is_err());
    }
}
