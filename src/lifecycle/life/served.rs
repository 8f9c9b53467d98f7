//! The listeners of a server that accepts connections itself, and the connections that it has
//! accepted.
//!
//! A connection counts as open until its stream is dropped, also after a protocol upgrade. So a
//! websocket is drained, cut and reported like any other connection.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::term::Term;
use crate::config::OnHandoff;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::ledger::{ListenerEntry, ListenerEvents, ListenerLedger, Source, open_connections};
use crate::lifecycle::embed::ArrivalQueue;
use crate::net::{HANDSHAKE_TIMEOUT, Listener, ListenerSet, Peer, Stream, Traffic, pending};
use crate::report::{Connections, Counters};

/// The listeners of a server that accepts connections itself.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListeners {
    all: Vec<Arc<ServedListener>>,
    /// How connections of earlier drains ended. A report of the current drain leaves these
    /// connections out.
    before_drain: Mutex<DrainReport>,
}

/// A listener and the connections that were accepted on it.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListener {
    pub(in crate::lifecycle) name: Arc<str>,
    pub(in crate::lifecycle) address: Arc<str>,
    pub(in crate::lifecycle) order: StopOrder,
    /// Whether the configuration lets the connections move at a handoff.
    pub(in crate::lifecycle) on_handoff: OnHandoff,
    /// The listening socket. `None` once it is closed, because no generation accepts on it any
    /// more.
    socket: Mutex<Option<Listener>>,
    /// Whether no generation will accept on this listener again. The server then accepts the
    /// clients that are left in the backlog, and closes the socket.
    is_given_up: AtomicBool,
    /// The time until which late clients may arrive. The successor replaced this listener with a
    /// new socket during the TCP handshakes of these clients.
    late_until: OnceLock<Instant>,
    /// Whether the server has a copy of the socket, on which it accepts by itself.
    is_copied: AtomicBool,
    open: TaskTracker,
    /// Whether a connection that ends now counts as drained. After a cut, all connections have
    /// already been counted.
    is_draining: AtomicBool,
    ledger: ListenerLedger,
    /// The queue for connections from the predecessor. `None` if the server takes over none.
    arrivals: Mutex<Option<Arc<ArrivalQueue>>>,
}

/// The entry of an open connection in the counters of its listener. Dropping this value removes the
/// connection from all counts.
#[derive(Debug)]
pub(in crate::lifecycle) struct OpenConnection {
    /// `None` once the connection is counted as ended.
    entry: Option<ListenerEntry>,
    served: Arc<ServedListener>,
    // This field is the last, so that it is dropped last: the process may exit when no token is
    // left.
    _open: TaskTrackerToken,
}

/// When a listener stops accepting while the service stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lifecycle) enum StopOrder {
    /// The listener stops accepting at once.
    First,
    /// The listener stops after the connections of all other listeners have ended.
    Last,
}

impl ServedListeners {
    /// Prepares to count the connections of `listeners`. `last` has the names of the listeners that
    /// stop last. `on_handoff` returns whether the connections of a listener may move at a handoff.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if a name in `last` is unknown.
    pub(in crate::lifecycle) fn new(
        listeners: &ListenerSet,
        last: &HashSet<String>,
        on_handoff: impl Fn(&str) -> OnHandoff,
    ) -> Result<Self, Error> {
        last.iter().try_for_each(|name| listeners.get(name).map(drop))?;
        let all = listeners.as_slice().iter().map(|listener| {
            let open = TaskTracker::new();
            // Close the tracker, because `wait` resolves only on a closed one, which still gives
            // out tokens.
            open.close();
            let is_last = last.contains(&**listener.name());
            let order = if is_last { StopOrder::Last } else { StopOrder::First };
            Arc::new(ServedListener {
                name: Arc::clone(listener.name()),
                address: listener.address().into(),
                order,
                on_handoff: on_handoff(listener.name()),
                socket: Mutex::new(Some(listener.clone())),
                is_given_up: AtomicBool::new(false),
                late_until: OnceLock::new(),
                is_copied: AtomicBool::new(false),
                open,
                is_draining: AtomicBool::new(false),
                ledger: ListenerLedger::default(),
                arrivals: Mutex::default(),
            })
        });
        let before_drain = Mutex::new(DrainReport { ended: 0, carried: 0, cut: 0 });
        Ok(Self { all: all.collect(), before_drain })
    }

    /// Returns whether the server accepts on a listener by itself. If so, the library does not know
    /// when the listener's connections have ended, or whether their clients have sent anything.
    pub(in crate::lifecycle) fn has_unknown(&self) -> bool {
        self.all.iter().any(|one| one.is_copied.load(Ordering::Relaxed))
    }

    /// Returns the listeners of which the server has a copy, and on which no other generation
    /// accepts.
    #[cfg(feature = "actix")]
    pub(in crate::lifecycle) fn left_to_server(&self) -> Vec<Listener> {
        let is_copied = |one: &&Arc<ServedListener>| one.is_copied.load(Ordering::Relaxed);
        let left = self.all.iter().filter(is_copied).filter(|one| one.is_given_up());
        left.filter_map(|one| one.socket()).collect()
    }

    pub(in crate::lifecycle) fn get(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        let found = self.all.iter().find(|one| &*one.name == name);
        found.cloned().ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })
    }

    /// Records that no generation will accept on `listeners` again. Returns the listeners in whose
    /// backlog clients wait.
    pub(in crate::lifecycle) fn give_up(&self, listeners: &[Listener]) -> Vec<Arc<ServedListener>> {
        let give_up = |listener: &Listener| {
            let one = self.get(listener.name()).ok()?;
            if listener.is_replaced() {
                one.late_until.get_or_init(|| Instant::now() + HANDSHAKE_TIMEOUT);
            }
            one.is_given_up.store(true, Ordering::Release);
            Some(one).filter(|one| one.has_clients())
        };
        listeners.iter().filter_map(give_up).collect()
    }

    /// Closes the listeners on which no generation will accept again and no client waits.
    pub(in crate::lifecycle) fn close_unused(&self) {
        self.all.iter().filter(|one| one.is_given_up() && !one.has_clients()).for_each(|one| {
            one.close();
        });
    }

    /// Waits until no connection is open, except those of listeners that stop last. Cancel safe.
    pub(in crate::lifecycle) async fn first_ended(&self) {
        for one in self.all.iter().filter(|one| one.order == StopOrder::First) {
            one.open.wait().await;
        }
    }

    /// Waits until no connection is open. Cancel safe.
    pub(in crate::lifecycle) async fn ended(&self) {
        for one in &self.all {
            one.open.wait().await;
        }
    }

    /// Returns the number, age and traffic of the open connections.
    pub(in crate::lifecycle) fn connections(&self) -> Connections {
        open_connections(self.ledgers())
    }

    /// Returns the counters of each listener.
    pub(in crate::lifecycle) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for one in &self.all {
            let listener = counters.listeners.entry(one.name.to_string()).or_default();
            listener.add(one.ledger.counters());
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

    /// Counts all open connections as cut, because the server must now drop them.
    pub(in crate::lifecycle) fn cut(&self) {
        for one in &self.all {
            one.is_draining.store(false, Ordering::Relaxed);
            let open = one.open.len() as u64;
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

impl ServedListener {
    /// Returns the listening socket, or `None` if it is closed.
    pub(in crate::lifecycle) fn socket(&self) -> Option<Listener> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether no generation will accept on this listener again.
    pub(in crate::lifecycle) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Returns how much longer clients may arrive on this listener, which the successor has
    /// replaced. Returns `None` if no further clients arrive.
    pub(in crate::lifecycle) fn late_clients(&self) -> Option<Duration> {
        self.late_until.get()?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Records that the server has a copy of the socket, on which it accepts by itself.
    pub(in crate::lifecycle) fn set_copied(&self) {
        self.is_copied.store(true, Ordering::Relaxed);
    }

    /// Closes the socket of this process, so that the address is free once other processes have
    /// closed theirs. Keeps a socket of which the server has a copy, because the server needs
    /// another copy if it is called again.
    pub(in crate::lifecycle) fn close(&self) {
        if !self.is_copied.load(Ordering::Relaxed) {
            drop(self.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// Accepts the clients that are left in the backlog, and closes the socket. Must be called in a
    /// tokio runtime.
    pub(in crate::lifecycle) fn take_backlog(&self) -> Vec<(Stream, Peer)> {
        let clients = self.socket().map_or_else(Vec::new, |socket| pending(&socket).collect());
        self.close();
        clients
    }

    fn has_clients(&self) -> bool {
        self.socket().is_some_and(|socket| socket.has_clients())
    }

    /// Waits until no connection of this listener is open. Cancel safe.
    pub(in crate::lifecycle) async fn ended(&self) {
        self.open.wait().await;
    }

    /// Returns a token for which the drain of `term` waits. It belongs to an acceptor that accepts,
    /// or to a connection on which the client has not sent anything yet.
    pub(in crate::lifecycle) fn awaiting(&self, term: &Term) -> TaskTrackerToken {
        match self.order {
            StopOrder::First => term.awaiting_first_byte().token(),
            StopOrder::Last => term.last_awaiting().token(),
        }
    }

    /// Counts a connection that began at `since`. It counts as open until the returned value is
    /// dropped.
    pub(in crate::lifecycle) fn admit(
        self: &Arc<Self>,
        source: Source,
        traffic: &Arc<Traffic>,
        since: Instant,
    ) -> OpenConnection {
        // Count the connection as open first. Otherwise a drain that begins now would count it as
        // ended.
        let open = self.open.token();
        let entry = Some(self.ledger.enter(source, traffic, since));
        OpenConnection { entry, served: Arc::clone(self), _open: open }
    }

    /// Counts a connection that the successor has refused.
    pub(in crate::lifecycle) fn refused(&self) {
        self.ledger.count(|events| events.counters.refused += 1);
    }

    /// Sends connections from the predecessor to `queue` from now on, instead of to an earlier
    /// queue.
    pub(in crate::lifecycle) fn queue_arrivals(&self, queue: ArrivalQueue) {
        *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(queue));
    }

    /// Returns where connections from the predecessor go. Returns `None` if the server or the
    /// configuration does not let connections of this listener move.
    pub(in crate::lifecycle) fn arrivals(&self) -> Option<Arc<ArrivalQueue>> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        arrivals.filter(|_| self.on_handoff == OnHandoff::Carry)
    }
}

impl OpenConnection {
    /// Counts the connection as moved to the successor.
    pub(in crate::lifecycle) fn carried(mut self) {
        if let Some(entry) = self.entry.take() {
            entry.end(ListenerEvents::carried);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let is_draining = self.served.is_draining.load(Ordering::Relaxed);
        if let Some(entry) = self.entry.take().filter(|_| is_draining) {
            entry.end(|events| events.counters.drained += 1);
        }
    }
}
