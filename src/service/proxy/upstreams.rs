//! The upstreams of a proxy: load balancing, and ejection of failing upstreams. The proxy does not
//! try an ejected upstream for some time.
//!
//! All threads share the upstreams. If the first upstream accepts a client, the choice costs only a
//! few atomic operations. Threads that choose an upstream at the same time may choose the same one,
//! so the load is slightly uneven.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::names::Name;
use super::upstream::{Upstream, read_label};
use crate::address::Address;
use crate::config::{Balance, Ejection, ProxyConfig, UpstreamTarget};

/// The upstreams of one proxy, with the state of load balancing and ejection.
#[derive(Debug)]
pub(super) struct UpstreamPool {
    /// The configured upstreams, which are addresses and host names, in the order of the
    /// configuration.
    targets: Box<[Target]>,
    /// The addresses to which the proxy forwards clients now, in the order of the configuration.
    current: RwLock<Arc<[Arc<Upstream>]>>,
    balance: Balance,
    ejection: Ejection,
    turn: AtomicUsize,
    /// The start of the clock that ejection times use.
    epoch: Instant,
    /// Whether the last client that needed an upstream got none. While this is true, the proxy does
    /// not log further clients without an upstream.
    deserted: AtomicBool,
}

/// An upstream as the configuration gives it: an address or a host name.
#[derive(Debug)]
enum Target {
    Address(Arc<Upstream>),
    Host(Arc<Name>),
}

/// One pass over all upstreams for one client. The pass tries each upstream at most once.
#[derive(Debug)]
pub(super) struct Round {
    all: Arc<[Arc<Upstream>]>,
    start: usize,
    tried: Vec<Arc<Upstream>>,
}

impl Round {
    /// Records that this pass has tried an upstream.
    pub(super) fn tried(&mut self, upstream: &Arc<Upstream>) {
        self.tried.push(Arc::clone(upstream));
    }

    /// Returns whether the proxy has no upstream address at all.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl UpstreamPool {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        let targets = config.upstreams.as_slice().iter().map(|target| match target {
            UpstreamTarget::Address(address) => {
                Target::Address(Arc::new(Upstream::new(None, address.clone())))
            }
            UpstreamTarget::Host(host) => Target::Host(Arc::new(Name::new(host.clone()))),
        });
        let upstreams = Self {
            targets: targets.collect(),
            current: RwLock::new(Arc::new([])),
            balance: config.balance,
            ejection: config.ejection,
            turn: AtomicUsize::new(0),
            epoch: Instant::now(),
            deserted: AtomicBool::new(false),
        };
        upstreams.update(&[]);
        upstreams
    }

    /// Returns the addresses to which the proxy forwards clients now, in the order of the
    /// configuration.
    pub(super) fn current(&self) -> Arc<[Arc<Upstream>]> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the host names in the configuration.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<Name>> {
        self.targets.iter().filter_map(|target| match target {
            Target::Address(_) => None,
            Target::Host(name) => Some(name),
        })
    }

    /// Replaces the upstreams in use with the current addresses of the host names. Returns the
    /// upstreams that are no longer in use.
    ///
    /// An upstream whose address is still in use keeps its health state. An upstream in `known`
    /// also keeps its health state if its address comes back into use.
    pub(super) fn update(&self, known: &[Arc<Upstream>]) -> Vec<Arc<Upstream>> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // List an address only once, even if both the configuration and a host name contain it.
        let mut seen: HashSet<Address> = HashSet::new();
        if self.names().next().is_some() {
            seen.extend(self.targets.iter().filter_map(|target| match target {
                Target::Address(upstream) => Some(upstream.address().clone()),
                Target::Host(_) => None,
            }));
        }
        let mut next: Vec<Arc<Upstream>> = Vec::new();
        for target in &self.targets {
            let name = match target {
                Target::Address(upstream) => {
                    next.push(Arc::clone(upstream));
                    continue;
                }
                Target::Host(name) => name,
            };
            for socket in name.addresses() {
                let address = Address::Tcp(socket);
                if !seen.insert(address.clone()) {
                    continue;
                }
                let same = current.iter().chain(known).find(|one| one.is(name.host(), socket));
                let create = || Arc::new(Upstream::new(Some(Arc::clone(name.host())), address));
                next.push(same.map_or_else(create, Arc::clone));
            }
        }
        let stay: HashSet<usize> = next.iter().map(|upstream| upstream.id()).collect();
        let gone = current.iter().filter(|one| !stay.contains(&one.id())).map(Arc::clone).collect();
        *current = next.into();
        gone
    }

    /// Returns the upstream with this label, or `None` if the proxy does not forward clients to
    /// that upstream now.
    pub(super) fn find(&self, label: &str) -> Option<Arc<Upstream>> {
        self.current().iter().find(|upstream| upstream.label() == label).map(Arc::clone)
    }

    /// Returns whether the configuration contains the upstream with this label. This is the case if
    /// its address is in use or its host name is configured.
    pub(super) fn is_configured(&self, label: &str) -> bool {
        let Some((host, address)) = read_label(label) else { return false };
        let is_named =
            || host.is_some_and(|host| self.names().any(|name| name.host().to_string() == host));
        self.current().iter().any(|upstream| *upstream.address() == address) || is_named()
    }

    /// Returns the upstream of a connection that moved here from another process. Creates the
    /// upstream if its host name no longer has the address. Returns `None` if the label is
    /// malformed.
    pub(super) fn adopt(&self, label: &str, known: &[Arc<Upstream>]) -> Option<Arc<Upstream>> {
        let (host, address) = read_label(label)?;
        let current = self.current();
        let all = || current.iter().chain(known);
        let same = all()
            .find(|one| one.label() == label)
            .or_else(|| all().find(|one| *one.address() == address));
        if let Some(same) = same {
            return Some(Arc::clone(same));
        }
        let host = host.and_then(|host| self.names().find(|name| name.host().to_string() == host));
        Some(Arc::new(Upstream::new(host.map(|name| Arc::clone(name.host())), address)))
    }

    /// Begins a pass over all upstreams for one client.
    pub(super) fn round(&self) -> Round {
        let all = self.current();
        let start = match self.balance {
            Balance::InOrder => 0,
            // Start each pass at the next upstream, so that upstreams with equally many connections
            // take turns.
            Balance::RoundRobin | Balance::LeastConnections => {
                self.turn.fetch_add(1, Ordering::Relaxed) % all.len().max(1)
            }
        };
        Round { all, start, tried: Vec::new() }
    }

    /// Returns the upstream to try next, or `None` if this pass has tried all of them.
    ///
    /// The method skips ejected upstreams. If all upstreams are ejected, it starts with the
    /// upstream whose ejection ends first.
    pub(super) fn choose(&self, round: &Round) -> Option<Arc<Upstream>> {
        let all = &round.all;
        let in_turn = (0..all.len()).map(|step| &all[(round.start + step) % all.len()]);
        let untried =
            |one: &&Arc<Upstream>| !round.tried.iter().any(|tried| Arc::ptr_eq(tried, one));
        let mut well = in_turn.clone().filter(|one| !self.is_ejected(one));
        let mut any_available = well.clone();
        let chosen = if any_available.next().is_none() {
            in_turn.filter(untried).min_by_key(|one| one.out_until.load(Ordering::Relaxed))
        } else {
            match self.balance {
                Balance::RoundRobin | Balance::InOrder => well.find(untried),
                Balance::LeastConnections => {
                    well.filter(untried).min_by_key(|one| one.active.load(Ordering::Relaxed))
                }
            }
        };
        chosen.map(Arc::clone)
    }

    /// Records that the upstream has accepted a connection.
    pub(super) fn succeeded(&self, upstream: &Upstream, listener: &str) {
        if upstream.failures.load(Ordering::Relaxed) != 0 {
            upstream.failures.store(0, Ordering::Relaxed);
            upstream.out_until.store(0, Ordering::Relaxed);
            self.log_available(upstream, listener);
        }
        if self.deserted.load(Ordering::Relaxed) && self.deserted.swap(false, Ordering::Relaxed) {
            tracing::info!(
                event = "upstream.any_available", listener, upstream = %upstream.label(),
                "the upstream {} accepts connections again, so clients are served again",
                upstream.label()
            );
        }
    }

    /// Records that the upstream has not accepted a connection. After several failures in a row,
    /// the proxy ejects the upstream and does not try it for some time.
    pub(super) fn failed(&self, upstream: &Upstream, listener: &str, reason: &std::io::Error) {
        tracing::debug!(
            event = "upstream.failed", listener, upstream = %upstream.label(), %reason,
            "cannot connect to the upstream {}: {reason}",
            upstream.label()
        );
        let failures = upstream.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.ejection.failures == 0 || failures < self.ejection.failures {
            return;
        }
        let was_out = self.is_ejected(upstream);
        upstream
            .out_until
            .store(self.now() + milliseconds(self.ejection.time).max(1), Ordering::Relaxed);
        if !was_out {
            upstream.ejected.fetch_add(1, Ordering::Relaxed);
            upstream.log_unavailable(listener, reason);
        }
    }

    /// Records that the proxy has disconnected a client because no upstream accepted a connection
    /// for it.
    pub(super) fn turned_away(&self, listener: &str, reason: &std::io::Error) {
        if !self.deserted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                event = "upstream.none_available", listener, %reason,
                "no upstream accepts connections, so clients are disconnected: {reason}"
            );
        }
    }

    /// Records that a health check of the upstream has succeeded.
    pub(super) fn check_passed(&self, upstream: &Upstream, listener: &str) {
        upstream.check_failed.store(false, Ordering::Relaxed);
        upstream.failures.store(0, Ordering::Relaxed);
        upstream.out_until.store(0, Ordering::Relaxed);
        self.log_available(upstream, listener);
    }

    /// Records that a health check of the upstream has failed. The proxy does not use the upstream
    /// until a check succeeds.
    pub(super) fn check_failed(
        &self,
        upstream: &Upstream,
        listener: &str,
        reason: &std::io::Error,
    ) {
        let was_out = self.is_ejected(upstream);
        upstream.check_failed.store(true, Ordering::Relaxed);
        if !was_out {
            upstream.ejected.fetch_add(1, Ordering::Relaxed);
            upstream.log_unavailable(listener, reason);
        }
    }

    fn is_ejected(&self, upstream: &Upstream) -> bool {
        let until = upstream.out_until.load(Ordering::Relaxed);
        upstream.check_failed.load(Ordering::Relaxed) || (until != 0 && self.now() < until)
    }

    fn log_available(&self, upstream: &Upstream, listener: &str) {
        if !self.is_ejected(upstream) && upstream.said.swap(false, Ordering::Relaxed) {
            tracing::info!(
                event = "upstream.available", listener, upstream = %upstream.label(),
                reason = "it accepts connections",
                "the upstream {} is available again: it accepts connections",
                upstream.label()
            );
        }
    }

    fn now(&self) -> u64 {
        milliseconds(self.epoch.elapsed())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}
