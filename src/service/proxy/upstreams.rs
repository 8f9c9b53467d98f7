//! Chooses upstreams for clients: whose turn it is, who has the fewest connections, who is passed over because it fails.
//!
//! Shared by all threads, without a lock: a client that finds its upstream at once pays for a few atomic operations. Threads
//! that decide at the same instant may decide alike; that balances a little less evenly, and harms nobody.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::config::{Balance, Ejection, ProxyConfig};

/// The upstreams of one proxy.
#[derive(Debug)]
pub(super) struct Upstreams {
    all: Box<[Upstream]>,
    balance: Balance,
    ejection: Ejection,
    turn: AtomicUsize,
    /// Since when times are counted.
    epoch: Instant,
    /// Whether the last client that was told how it ended found nobody.
    deserted: AtomicBool,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Upstream {
    address: Address,
    /// Connections of ours, with those that are being made.
    active: AtomicUsize,
    /// Failures in a row.
    failures: AtomicU32,
    /// Until when it is passed over, in milliseconds of [`Upstreams::epoch`]; 0 when it is not.
    out_until: AtomicU64,
    /// Whether the last active check failed.
    check_failed: AtomicBool,
    /// Whether the log has it as passed over.
    said: AtomicBool,
    ejected: AtomicU64,
}

/// One client's way round the upstreams: each is tried once.
#[derive(Debug)]
pub(super) struct Round {
    start: usize,
    tried: Vec<usize>,
}

impl Round {
    /// Does not offer this one again.
    pub(super) fn tried(&mut self, index: usize) {
        self.tried.push(index);
    }
}

/// Counts a connection of an upstream for as long as it lives.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstreams {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        let all = config.upstreams.as_slice().iter().map(|address| Upstream {
            address: address.clone(),
            active: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            check_failed: AtomicBool::new(false),
            said: AtomicBool::new(false),
            ejected: AtomicU64::new(0),
        });
        Self {
            all: all.collect(),
            balance: config.balance,
            ejection: config.ejection,
            turn: AtomicUsize::new(0),
            epoch: Instant::now(),
            deserted: AtomicBool::new(false),
        }
    }

    /// All of them, in the order of the configuration.
    pub(super) fn all(&self) -> &[Upstream] {
        &self.all
    }

    /// Which of them has this address, as it is printed.
    pub(super) fn find(&self, address: &str) -> Option<usize> {
        let address: Address = address.parse().ok()?;
        self.all.iter().position(|upstream| upstream.address == address)
    }

    /// Begins a round.
    pub(super) fn round(&self) -> Round {
        let start = match self.balance {
            Balance::InOrder => 0,
            // Where all have as few connections, they take turns.
            Balance::RoundRobin | Balance::LeastConnections => {
                self.turn.fetch_add(1, Ordering::Relaxed) % self.all.len()
            }
        };
        Round { start, tried: Vec::new() }
    }

    /// Whom to try next: somebody who is well. If nobody is, whoever returns first; none when this round is over.
    pub(super) fn choose(&self, round: &Round) -> Option<usize> {
        let in_turn = (0..self.all.len()).map(|step| (round.start + step) % self.all.len());
        let untried = |index: &usize| !round.tried.contains(index);
        let mut well = in_turn.clone().filter(|index| !self.is_out(&self.all[*index]));
        let mut anybody_well = well.clone();
        if anybody_well.next().is_none() {
            let returns = |index: &usize| self.all[*index].out_until.load(Ordering::Relaxed);
            return in_turn.filter(untried).min_by_key(returns);
        }
        match self.balance {
            Balance::RoundRobin | Balance::InOrder => well.find(untried),
            Balance::LeastConnections => {
                well.filter(untried).min_by_key(|index| self.all[*index].active.load(Ordering::Relaxed))
            }
        }
    }

    /// Takes a place at one of them.
    pub(super) fn take(&self, index: usize) -> Place<'_> {
        let active = &self.all[index].active;
        active.fetch_add(1, Ordering::Relaxed);
        Place(active)
    }

    /// It has accepted a client.
    pub(super) fn succeeded(&self, index: usize, listener: &str) {
        let upstream = &self.all[index];
        if upstream.failures.load(Ordering::Relaxed) != 0 {
            upstream.failures.store(0, Ordering::Relaxed);
            upstream.out_until.store(0, Ordering::Relaxed);
            self.say_well(upstream, listener);
        }
        if self.deserted.load(Ordering::Relaxed) && self.deserted.swap(false, Ordering::Relaxed) {
            tracing::info!(listener, upstream = %upstream.address, "clients are served again");
        }
    }

    /// It has not. After so many times in a row it is passed over for a while.
    pub(super) fn failed(&self, index: usize, listener: &str, reason: &std::io::Error) {
        let upstream = &self.all[index];
        tracing::debug!(listener, upstream = %upstream.address, %reason, "an upstream did not accept: {reason}");
        let failures = upstream.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.ejection.failures == 0 || failures < self.ejection.failures {
            return;
        }
        let was_out = self.is_out(upstream);
        upstream.out_until.store(self.now() + milliseconds(self.ejection.time).max(1), Ordering::Relaxed);
        if !was_out {
            upstream.ejected.fetch_add(1, Ordering::Relaxed);
            upstream.say_out(listener, reason);
        }
    }

    /// A client was turned away because nobody accepted it.
    pub(super) fn turned_away(&self, listener: &str, reason: &std::io::Error) {
        if !self.deserted.swap(true, Ordering::Relaxed) {
            tracing::warn!(listener, %reason, "no upstream accepts, clients are turned away: {reason}");
        }
    }

    /// An active check has passed.
    pub(super) fn check_passed(&self, index: usize, listener: &str) {
        let upstream = &self.all[index];
        upstream.check_failed.store(false, Ordering::Relaxed);
        upstream.failures.store(0, Ordering::Relaxed);
        upstream.out_until.store(0, Ordering::Relaxed);
        self.say_well(upstream, listener);
    }

    /// An active check has failed: it is passed over until one passes.
    pub(super) fn check_failed(&self, index: usize, listener: &str, reason: &std::io::Error) {
        let upstream = &self.all[index];
        let was_out = self.is_out(upstream);
        upstream.check_failed.store(true, Ordering::Relaxed);
        if !was_out {
            upstream.ejected.fetch_add(1, Ordering::Relaxed);
            upstream.say_out(listener, reason);
        }
    }

    fn is_out(&self, upstream: &Upstream) -> bool {
        let until = upstream.out_until.load(Ordering::Relaxed);
        upstream.check_failed.load(Ordering::Relaxed) || (until != 0 && self.now() < until)
    }

    fn say_well(&self, upstream: &Upstream, listener: &str) {
        if !self.is_out(upstream) && upstream.said.swap(false, Ordering::Relaxed) {
            tracing::info!(listener, upstream = %upstream.address, reason = "it accepts", "an upstream is back: it accepts");
        }
    }

    fn now(&self) -> u64 {
        milliseconds(self.epoch.elapsed())
    }
}

impl Upstream {
    /// Where it is.
    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// How many times it was passed over from then on.
    pub(super) fn ejected(&self) -> u64 {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Once, until it is back: one that stays away is passed over again and again.
    fn say_out(&self, listener: &str, reason: &std::io::Error) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(listener, upstream = %self.address, %reason, "an upstream is passed over: {reason}");
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind, Read, Seek};

    fn upstreams(count: usize, balance: Balance, ejection: Ejection) -> Upstreams {
        let addresses = (0..count).map(|number| format!("@upstream-{number}").parse().unwrap());
        let addresses = crate::config::Upstreams::new(addresses.collect()).unwrap();
        Upstreams::new(&ProxyConfig { balance, ejection, ..ProxyConfig::to(addresses) })
    }

    /// Whom a client is offered, one after the other.
    fn offered(upstreams: &Upstreams) -> Vec<usize> {
        let mut round = upstreams.round();
        while let Some(index) = upstreams.choose(&round) {
            round.tried(index);
        }
        round.tried
    }

    fn fail(upstreams: &Upstreams, index: usize, times: usize) {
        for _ in 0..times {
            upstreams.failed(index, "web", &Error::from(ErrorKind::ConnectionRefused));
        }
    }

    const LONG: Ejection = Ejection { failures: 2, time: Duration::from_secs(3600) };

    #[test]
    fn each_has_its_turn_and_a_client_meets_each_once() {
        let upstreams = upstreams(3, Balance::RoundRobin, LONG);
        assert_eq!(offered(&upstreams), [0, 1, 2]);
        assert_eq!(offered(&upstreams), [1, 2, 0]);
        assert_eq!(offered(&upstreams), [2, 0, 1]);
    }

    #[test]
    fn whoever_has_the_fewest_connections_is_first() {
        let upstreams = upstreams(3, Balance::LeastConnections, LONG);
        let places: Vec<_> = [0, 0, 1, 2, 2, 2].map(|index| upstreams.take(index)).into();
        assert_eq!(offered(&upstreams), [1, 0, 2]);
        drop(places);
        let first: Vec<_> = (0..3).map(|_| offered(&upstreams)[0]).collect();
        assert_ne!(first[0], first[1]);
        assert_ne!(first[1], first[2]);
    }

    #[test]
    fn those_that_stand_by_are_met_only_when_the_first_fails() {
        let upstreams = upstreams(3, Balance::InOrder, LONG);
        assert_eq!(offered(&upstreams), [0, 1, 2]);
        assert_eq!(offered(&upstreams), [0, 1, 2]);
        fail(&upstreams, 0, 2);
        assert_eq!(offered(&upstreams), [1, 2]);
        upstreams.succeeded(0, "web");
        assert_eq!(offered(&upstreams), [0, 1, 2]);
    }

    #[test]
    fn who_fails_so_many_times_in_a_row_is_passed_over_for_a_while() {
        let ejection = Ejection { failures: 2, time: Duration::from_millis(20) };
        let upstreams = upstreams(2, Balance::InOrder, ejection);
        fail(&upstreams, 0, 1);
        upstreams.succeeded(0, "web");
        fail(&upstreams, 0, 1);
        assert_eq!(offered(&upstreams), [0, 1], "not in a row");
        fail(&upstreams, 0, 1);
        let since = Instant::now();
        fail(&upstreams, 0, 1);
        assert_eq!((offered(&upstreams), upstreams.all()[0].ejected()), (vec![1], 1));
        while offered(&upstreams) != [0, 1] {
            assert!(since.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        assert!(since.elapsed() >= Duration::from_millis(19), "{:?}", since.elapsed());
        // It is not well because time has passed: one more failure is enough.
        fail(&upstreams, 0, 1);
        assert_eq!((offered(&upstreams), upstreams.all()[0].ejected()), (vec![1], 2));
    }

    #[test]
    fn when_all_are_passed_over_they_are_tried_in_the_order_of_their_return() {
        let upstreams = upstreams(3, Balance::RoundRobin, LONG);
        for index in [2, 0, 1] {
            fail(&upstreams, index, 2);
            let now = upstreams.now();
            while upstreams.now() == now {
                std::thread::yield_now();
            }
        }
        assert_eq!(offered(&upstreams), [2, 0, 1]);
        assert_eq!(offered(&upstreams), [2, 0, 1]);
    }

    #[test]
    fn without_a_number_of_failures_nobody_is_passed_over() {
        let upstreams = upstreams(2, Balance::InOrder, Ejection { failures: 0, ..LONG });
        fail(&upstreams, 0, 100);
        assert_eq!(offered(&upstreams), [0, 1]);
    }

    #[test]
    fn who_fails_a_check_is_passed_over_until_one_passes() {
        let upstreams = upstreams(2, Balance::InOrder, LONG);
        upstreams.check_failed(0, "web", &Error::from(ErrorKind::TimedOut));
        upstreams.check_failed(0, "web", &Error::from(ErrorKind::TimedOut));
        assert_eq!((offered(&upstreams), upstreams.all()[0].ejected()), (vec![1], 1));
        upstreams.succeeded(0, "web");
        assert_eq!(offered(&upstreams), [1], "a client's word does not count against a check's");
        upstreams.check_passed(0, "web");
        assert_eq!(offered(&upstreams), [0, 1]);
    }

    #[test]
    fn who_stays_away_is_named_once_and_so_is_the_return() {
        let mut file = tempfile::tempfile().unwrap();
        let write = file.try_clone().unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(std::sync::Mutex::new(write)).finish();
        tracing::subscriber::with_default(subscriber, || {
            let upstreams = upstreams(2, Balance::InOrder, Ejection { failures: 1, time: Duration::ZERO });
            for times in 1..=5 {
                fail(&upstreams, 0, 1);
                while upstreams.is_out(&upstreams.all()[0]) {
                    std::thread::yield_now();
                }
                assert_eq!(upstreams.all()[0].ejected(), times);
            }
            upstreams.succeeded(0, "web");
            upstreams.succeeded(0, "web");
        });
        let mut log = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut log).unwrap();
        assert_eq!((log.matches("is passed over").count(), log.matches("is back").count()), (1, 1), "{log}");
        assert!(log.contains("connection refused") && log.contains(r#"listener="web" upstream=@upstream-0"#), "{log}");
    }
}
