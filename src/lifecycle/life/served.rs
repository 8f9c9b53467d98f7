//! All listeners of a server that accepts connections itself, and how their connections end.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::served_listener::{ServedListener, StopOrder};
use crate::config::{Config, OnHandoff};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::ledger::{ConnectionLimit, ListenerEvents, ListenerLedger, open_connections};
use crate::net::{HANDSHAKE_TIMEOUT, Listener, ListenerSet};
use crate::report::{CarryForecast, Connections, Counters};

/// The listeners of a server that accepts connections itself.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListeners {
    all: Vec<Arc<ServedListener>>,
    /// The connection limits, by listener name. All sockets with the same name share a limit.
    limits: HashMap<String, Arc<ConnectionLimit>>,
    /// How connections of earlier drains ended. A report of the current drain leaves these
    /// connections out.
    before_drain: Mutex<DrainReport>,
}

/// The settings of the listeners, by name.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedSettings {
    limits: HashMap<String, NonZeroUsize>,
    on_handoff: HashMap<String, OnHandoff>,
    default: OnHandoff,
}

impl ServedSettings {
    pub(in crate::lifecycle) fn of(config: &Config) -> Self {
        Self {
            limits: config.listeners.limits(),
            on_handoff: config.listeners.on_handoff(),
            default: config.on_handoff,
        }
    }

    /// Returns whether the connections of a listener may move at a handoff.
    fn on_handoff(&self, name: &str) -> OnHandoff {
        self.on_handoff.get(name).copied().unwrap_or(self.default)
    }
}

impl ServedListeners {
    /// Prepares to count the connections of `listeners`. `last` has the names of the listeners that
    /// stop last.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if a name in `last` is unknown.
    pub(in crate::lifecycle) fn new(
        listeners: &ListenerSet,
        last: &HashSet<String>,
        settings: &ServedSettings,
    ) -> Result<Self, Error> {
        last.iter().try_for_each(|name| listeners.get(name).map(drop))?;
        let limits = settings.limits.iter();
        let limits = limits
            .map(|(name, limit)| (name.clone(), Arc::new(ConnectionLimit::new(name, *limit))));
        let limits: HashMap<_, _> = limits.collect();
        let all = listeners.as_slice().iter().map(|listener| {
            let is_last = last.contains(&**listener.name());
            let order = if is_last { StopOrder::Last } else { StopOrder::First };
            let on_handoff = settings.on_handoff(listener.name());
            let limit = limits.get(&**listener.name()).cloned();
            Arc::new(ServedListener::new(listener, order, on_handoff, limit))
        });
        let before_drain = Mutex::new(DrainReport { ended: 0, carried: 0, cut: 0 });
        Ok(Self { all: all.collect(), limits, before_drain })
    }

    /// Returns whether the server accepts by itself on a copy of a listening socket. The library
    /// then does not know when the connections end, or whether the clients have sent anything.
    pub(in crate::lifecycle) fn has_unknown(&self) -> bool {
        self.all.iter().any(|one| one.is_copied.load(Ordering::Relaxed))
    }

    /// Returns whether the server has such a copy of a listener that does not stop last.
    pub(in crate::lifecycle) fn has_unknown_first(&self) -> bool {
        let mut first = self.all.iter().filter(|one| one.order == StopOrder::First);
        first.any(|one| one.is_copied.load(Ordering::Relaxed))
    }

    /// Returns the listeners of which the server has a copy, and on which no other generation
    /// accepts.
    #[cfg(feature = "actix")]
    pub(in crate::lifecycle) fn left_to_server(&self) -> Vec<Listener> {
        let is_copied = |one: &&Arc<ServedListener>| one.is_copied.load(Ordering::Relaxed);
        let left = self.all.iter().filter(is_copied).filter(|one| one.is_given_up());
        left.filter_map(|one| one.socket()).collect()
    }

    /// Returns the first socket with this name.
    pub(in crate::lifecycle) fn get(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        self.get_all(name).map(|all| Arc::clone(&all[0]))
    }

    /// Returns all sockets with this name. There is at least one.
    pub(in crate::lifecycle) fn get_all(
        &self,
        name: &str,
    ) -> Result<Vec<Arc<ServedListener>>, Error> {
        let found: Vec<_> = self.all.iter().filter(|one| &*one.name == name).cloned().collect();
        if found.is_empty() {
            return Err(Error::no_such_listener(name, self.all.iter().map(|one| &one.name)));
        }
        Ok(found)
    }

    /// Returns the names of the listeners that the server has not requested yet.
    pub(in crate::lifecycle) fn unused(&self) -> Vec<&str> {
        let unused = self.all.iter().filter(|one| !one.is_used.load(Ordering::Relaxed));
        let mut names: Vec<_> = unused.map(|one| &*one.name).collect();
        names.dedup();
        names
    }

    /// Returns how many connections of each listener with a connection limit may move to the
    /// successor.
    pub(in crate::lifecycle) fn forecast(&self) -> CarryForecast {
        let carried = self.all.iter().filter(|one| one.arrivals().is_some());
        carried.filter_map(|one| Some((one.name.to_string(), one.limit.as_ref()?.used()))).collect()
    }

    /// Reserves room in the connection limits for connections that may move from the predecessor.
    pub(in crate::lifecycle) fn expect_carried(&self, forecast: &CarryForecast) {
        for (name, count) in forecast.iter() {
            self.limits.get(name).into_iter().for_each(|limit| limit.reserve(count));
        }
    }

    /// Makes the reserved room in the connection limits available to new clients, because no more
    /// connections move from the predecessor.
    pub(in crate::lifecycle) fn release_reserved(&self) {
        self.limits.values().for_each(|limit| limit.release_reserved());
    }

    /// Closes the library's handle of each socket that the server has copied.
    pub(in crate::lifecycle) fn close_copied(&self) {
        let is_copied = |one: &&Arc<ServedListener>| one.is_copied.load(Ordering::Relaxed);
        self.all.iter().filter(is_copied).for_each(|one| one.close_now());
    }

    /// Logs an error for each listener whose last clients the server has not accepted, although no
    /// other generation will accept them. The kernel resets their connections.
    pub(in crate::lifecycle) fn report_lost_clients(&self) {
        for one in self.all.iter().filter(|one| one.is_given_up() && one.has_clients()) {
            let listener = &*one.name;
            let reason = "the server has ended or has dropped its acceptor";
            tracing::error!(
                event = "listener.backlog_lost",
                listener,
                reason,
                "the last clients in the backlog of {listener} are reset: {reason}"
            );
        }
    }

    /// Closes the sockets on which the predecessor accepts, because this generation is rolled back.
    /// Keeps the sockets that only this generation had. Its server must still accept the clients
    /// in their backlogs.
    pub(in crate::lifecycle) fn close_inherited(&self) {
        self.all.iter().filter(|one| !one.is_given_up()).for_each(|one| one.close_now());
    }

    /// Closes all sockets, because the server has ended.
    pub(in crate::lifecycle) fn close_all(&self) {
        self.all.iter().for_each(|one| one.close_now());
    }

    /// Records that no generation will accept on `listeners` again, and returns them.
    pub(in crate::lifecycle) fn give_up(&self, listeners: &[Listener]) -> Vec<Arc<ServedListener>> {
        let give_up = |listener: &Listener| {
            // Compare the sockets: a parent may pass several with the same name and address.
            let one = self.all.iter().find(|one| one.has_socket_of(listener))?;
            if listener.is_replaced() {
                one.late_until.get_or_init(|| Instant::now() + HANDSHAKE_TIMEOUT);
            }
            one.is_given_up.store(true, Ordering::Release);
            Some(Arc::clone(one))
        };
        listeners.iter().filter_map(give_up).collect()
    }

    /// Closes the listeners on which no generation will accept again and no client waits.
    pub(in crate::lifecycle) fn close_unused(&self) {
        self.all.iter().filter(|one| one.is_given_up() && !one.has_clients()).for_each(|one| {
            one.close();
        });
    }

    /// Returns how long clients may still arrive on the listeners that the successor has replaced.
    pub(in crate::lifecycle) fn late_clients(&self) -> Duration {
        self.all.iter().filter_map(|one| one.late_clients()).max().unwrap_or_default()
    }

    /// Waits until all connections have ended and no late client of a replaced listener can arrive.
    /// Leaves out the listeners that stop last. Cancel safe.
    pub(in crate::lifecycle) async fn first_ended(&self) {
        for one in self.all.iter().filter(|one| one.order == StopOrder::First) {
            one.ended().await;
        }
    }

    /// Waits until all connections have ended and no late client of a replaced listener can arrive.
    /// Cancel safe.
    pub(in crate::lifecycle) async fn ended(&self) {
        for one in &self.all {
            one.ended().await;
        }
    }

    /// Returns the number, age and traffic of the open connections.
    pub(in crate::lifecycle) fn connections(&self) -> Connections {
        open_connections(self.ledgers(), None)
    }

    /// Returns the counters of each listener.
    pub(in crate::lifecycle) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for one in &self.all {
            let listener = counters.listeners.entry(one.name.to_string()).or_default();
            listener.add(one.ledger.counters());
        }
        for (name, limit) in &self.limits {
            if let Some(listener) = counters.listeners.get_mut(name) {
                listener.limited += limit.times_full();
            }
        }
        counters
    }

    /// Returns whether connections of at least one listener may move at a handoff.
    pub(in crate::lifecycle) fn carries(&self) -> bool {
        self.all.iter().any(|one| one.arrivals().is_some())
    }

    /// Records that the successor has died. Returns how many connections it had taken over in this
    /// drain. These connections are lost.
    pub(in crate::lifecycle) fn lost_with_successor(&self) -> u64 {
        self.ledgers().map(|ledger| ledger.count(ListenerEvents::successor_lost)).sum()
    }

    /// Starts counting how connections end, because the drain begins.
    pub(in crate::lifecycle) fn begin_drain(&self) {
        self.ledgers().for_each(|ledger| ledger.count(ListenerEvents::begin_drain));
        *self.before_drain.lock().unwrap_or_else(PoisonError::into_inner) = self.ends();
        self.all.iter().for_each(|one| one.is_draining.store(true, Ordering::Relaxed));
    }

    /// Stops counting how connections end, because the generation serves again.
    pub(in crate::lifecycle) fn end_drain(&self) {
        self.all.iter().for_each(|one| one.is_draining.store(false, Ordering::Relaxed));
    }

    /// Counts every open connection as cut (closed early), because the server must now drop it.
    pub(in crate::lifecycle) fn cut(&self) {
        for one in &self.all {
            one.is_draining.store(false, Ordering::Relaxed);
            let open = one.ledger.open() as u64;
            one.ledger.count(|events| events.counters.cut += open);
        }
    }

    /// Returns how the connections of the drain have ended so far.
    pub(in crate::lifecycle) fn report(&self) -> DrainReport {
        let before = *self.before_drain.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.ends();
        DrainReport {
            ended: now.ended - before.ended,
            carried: now.carried - before.carried,
            cut: now.cut - before.cut,
        }
    }

    /// Returns how the connections of all drains have ended.
    fn ends(&self) -> DrainReport {
        let none = DrainReport { ended: 0, carried: 0, cut: 0 };
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        self.ledgers().map(ListenerLedger::counters).fold(none, |sum, one| DrainReport {
            ended: sum.ended + count(one.drained),
            carried: sum.carried + count(one.carried),
            cut: sum.cut + count(one.cut),
        })
    }

    fn ledgers(&self) -> impl Iterator<Item = &ListenerLedger> {
        self.all.iter().map(|one| &one.ledger)
    }
}

#[cfg(test)]
mod tests;
