//! The addresses of upstreams that are configured by host name. The proxy resolves each name at the
//! start and then at regular intervals.
//!
//! If a DNS lookup fails, the proxy keeps the addresses of the last successful lookup. A new answer
//! does not affect established connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Proxy;
use super::ledgers::ProxyLedgers;
use super::resolver::{Lookup, Resolver};
use super::upstreams::UpstreamPool;
use crate::config::HostPort;

/// How long to wait before the next lookup of a host name that has no address yet.
const RETRY: Duration = Duration::from_secs(1);

/// A host name from the configuration, and its current addresses.
#[derive(Debug)]
pub(super) struct Name {
    host: Arc<HostPort>,
    /// The addresses from the last successful lookup. Empty until a lookup has succeeded.
    addresses: Mutex<Vec<SocketAddr>>,
    lookup: tokio::sync::Mutex<Lookup>,
    /// Whether the first lookup of this name has finished, with or without success.
    was_resolved: AtomicBool,
    failures: AtomicU64,
    /// Whether the log already says that this host name does not resolve. Cleared when the name
    /// resolves again.
    said: AtomicBool,
}

impl Name {
    pub(super) fn new(host: HostPort) -> Self {
        Self {
            host: Arc::new(host),
            addresses: Mutex::default(),
            lookup: tokio::sync::Mutex::default(),
            was_resolved: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            said: AtomicBool::new(false),
        }
    }

    pub(super) const fn host(&self) -> &Arc<HostPort> {
        &self.host
    }

    /// Returns the addresses from the last successful lookup.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.lock().clone()
    }

    /// Returns how many lookups of this name have failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Stores the addresses from a lookup. Returns whether the stored addresses have changed.
    /// Addresses that were already stored keep their positions, because many name servers rotate
    /// the order of their answers.
    fn learn(&self, answer: &[SocketAddr]) -> bool {
        let mut addresses = self.lock();
        let mut next: Vec<_> =
            addresses.iter().copied().filter(|address| answer.contains(address)).collect();
        for address in answer {
            if !next.contains(address) {
                next.push(*address);
            }
        }
        let is_new = *addresses != next;
        *addresses = next;
        is_new
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The periodic lookups of one host name, and the values that they update.
struct Refresh {
    name: Arc<Name>,
    upstreams: Arc<UpstreamPool>,
    ledgers: Arc<ProxyLedgers>,
    resolver: Resolver,
}

impl Refresh {
    /// Looks up the name once. Returns whether the addresses of the upstreams have changed as a
    /// result.
    async fn once(&self) -> bool {
        let Self { name, upstreams, ledgers, resolver } = self;
        let answer = name.lookup.lock().await.addresses(&name.host, resolver).await;
        name.was_resolved.store(true, Ordering::Relaxed);
        let (listener, host) = (ledgers.listeners(), &name.host);
        let has_changed = match answer {
            Ok(answer) => {
                let has_changed = name.learn(&answer);
                if name.said.swap(false, Ordering::Relaxed) {
                    tracing::info!(
                        event = "name.resolved_again", %listener, %host,
                        "the upstream host name {host} resolves again"
                    );
                }
                if has_changed {
                    ledgers.depart(&upstreams.update(&ledgers.known()));
                    let addresses = listed(&name.addresses());
                    tracing::info!(
                        event = "name.changed", %listener, %host, addresses,
                        "the upstream host name {host} now resolves to {addresses}"
                    );
                }
                has_changed
            }
            Err(reason) => {
                name.failures.fetch_add(1, Ordering::Relaxed);
                let addresses = listed(&name.addresses());
                if name.said.swap(true, Ordering::Relaxed) {
                    tracing::debug!(
                        event = "name.failed_again", %listener, %host, %reason,
                        "the upstream host name {host} still does not resolve: {reason}"
                    );
                } else if addresses.is_empty() {
                    tracing::warn!(
                        event = "name.failed", %listener, %host, %reason,
                        "the upstream host name {host} does not resolve: {reason}"
                    );
                } else {
                    tracing::warn!(
                        event = "name.failed", %listener, %host, addresses, %reason,
                        "the upstream host name {host} does not resolve, keeping {addresses}: \
                        {reason}"
                    );
                }
                false
            }
        };
        ledgers.fold(&upstreams.current());
        has_changed
    }

    /// Looks up the name at regular intervals. Notifies `changed` whenever the addresses of the
    /// upstreams have changed.
    async fn run(self, interval: Duration, changed: Arc<Notify>) {
        if !self.name.was_resolved.load(Ordering::Relaxed) && self.once().await {
            changed.notify_one();
        }
        loop {
            let has_address = !self.name.lock().is_empty();
            sleep(if has_address { interval } else { interval.min(RETRY) }).await;
            if self.once().await {
                changed.notify_one();
            }
        }
    }
}

impl Proxy {
    /// Resolves the host names of all upstreams once, in parallel, within 5 s. Returns whether at
    /// least one upstream has an address.
    ///
    /// Call this method before the proxy serves clients, because an upstream that is configured by
    /// host name has no address until then. [`Proxy::watch`] later keeps the addresses up to date.
    /// Must be called within a tokio runtime.
    pub async fn resolve(&self) -> bool {
        let mut lookups: JoinSet<bool> =
            self.refreshes().map(|refresh| async move { refresh.once().await }).collect();
        while lookups.join_next().await.is_some() {}
        !self.upstreams.current().is_empty()
    }

    /// Spawns a task for each host name, to keep the addresses of the name up to date.
    pub(super) fn watch_names(&self, tasks: &mut JoinSet<()>, changed: &Arc<Notify>) {
        for refresh in self.refreshes() {
            tasks.spawn(refresh.run(self.config.resolve_interval, Arc::clone(changed)));
        }
    }

    fn refreshes(&self) -> impl Iterator<Item = Refresh> {
        self.upstreams.names().map(|name| Refresh {
            name: Arc::clone(name),
            upstreams: Arc::clone(&self.upstreams),
            ledgers: Arc::clone(&self.ledgers),
            resolver: self.resolver.clone(),
        })
    }
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
}
