//! The listeners of a server that accepts connections itself, and the connections that it has
//! accepted.
//!
//! A connection counts as open until its stream is dropped, also after a protocol upgrade. So a
//! websocket is drained, cut and reported like any other connection.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::term::Term;
use crate::config::OnHandoff;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::ledger::{ListenerEntry, ListenerEvents, ListenerLedger, Source, open_connections};
use crate::lifecycle::embed::ArrivalQueue;
use crate::net::{Listener, ListenerSet, Traffic};
use crate::report::{Connections, Counters};

/// The listeners of a server that accepts connections itself.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListeners {
    all: Vec<Arc<ServedListener>>,
    /// Whether the server accepts on a listener by itself, so that its connections are unknown.
    has_unknown: AtomicBool,
    /// How many connections had come and had ended when the drain began.
    ended_before: AtomicUsize,
    carried: AtomicUsize,
    cut: AtomicUsize,
}

/// A listener and the connections that were accepted on it.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListener {
    pub(in crate::lifecycle) listener: Listener,
    pub(in crate::lifecycle) order: StopOrder,
    /// Whether the configuration lets the connections move at a handoff.
    pub(in crate::lifecycle) on_handoff: OnHandoff,
    open: TaskTracker,
    /// How many connections were accepted, or came from the predecessor.
    came: AtomicUsize,
    ledger: ListenerLedger,
    /// Where connections from the predecessor go. `None` if the server takes over none.
    arrivals: Mutex<Option<Arc<ArrivalQueue>>>,
}

/// The entry of an open connection. Dropping this value removes the connection from all counts.
#[derive(Debug)]
pub(in crate::lifecycle) struct OpenConnection {
    _entry: ListenerEntry,
    // The process may exit when no token is left, so this field is the last.
    _open: TaskTrackerToken,
}

/// When a listener stops to accept while the service stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lifecycle) enum StopOrder {
    /// The listener stops at once.
    First,
    /// The listener stops after the connections of all other listeners have ended.
    Last,
}

impl ServedListeners {
    /// Prepares to count the connections of `listeners`. `last` are the names of those that stop
    /// last. `on_handoff` returns whether the connections of a listener may move at a handoff.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if one of these names is unknown.
    pub(in crate::lifecycle) fn new(
        listeners: &ListenerSet,
        last: &HashSet<String>,
        on_handoff: impl Fn(&str) -> OnHandoff,
    ) -> Result<Self, Error> {
        last.iter().try_for_each(|name| listeners.get(name).map(drop))?;
        let all = listeners.as_slice().iter().map(|listener| {
            let open = TaskTracker::new();
            // `wait` resolves only on a closed tracker. A closed tracker still gives out tokens.
            open.close();
            let is_last = last.contains(&**listener.name());
            let order = if is_last { StopOrder::Last } else { StopOrder::First };
            Arc::new(ServedListener {
                listener: listener.clone(),
                order,
                on_handoff: on_handoff(listener.name()),
                open,
                came: AtomicUsize::new(0),
                ledger: ListenerLedger::default(),
                arrivals: Mutex::default(),
            })
        });
        let [ended_before, carried, cut] = [const { AtomicUsize::new(0) }; 3];
        let (all, has_unknown) = (all.collect(), AtomicBool::new(false));
        Ok(Self { all, has_unknown, ended_before, carried, cut })
    }

    /// Records that the server accepts on a listener by itself.
    pub(in crate::lifecycle) fn set_unknown(&self) {
        self.has_unknown.store(true, Ordering::Relaxed);
    }

    /// Returns whether the server accepts on a listener by itself. If so, nobody knows when its
    /// connections have ended, or whether they have sent anything.
    pub(in crate::lifecycle) fn has_unknown(&self) -> bool {
        self.has_unknown.load(Ordering::Relaxed)
    }

    pub(in crate::lifecycle) fn get(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        let found = self.all.iter().find(|one| &**one.listener.name() == name);
        found.cloned().ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })
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
            let listener = counters.listeners.entry(one.listener.name().to_string()).or_default();
            listener.add(one.ledger.counters());
        }
        counters
    }

    /// Returns whether connections of any listener may move at a handoff.
    pub(in crate::lifecycle) fn carries(&self) -> bool {
        self.all.iter().any(|one| one.arrivals().is_some())
    }

    /// Counts a connection of `listener` as moved to the successor.
    pub(in crate::lifecycle) fn carried(&self, listener: &ServedListener) {
        self.carried.fetch_add(1, Ordering::Relaxed);
        listener.ledger.count(ListenerEvents::carried);
    }

    /// Records that the successor has died. Returns how many connections of this drain it had taken
    /// over. They are lost.
    pub(in crate::lifecycle) fn lost_with_successor(&self) -> u64 {
        self.ledgers().map(|ledger| ledger.count(ListenerEvents::successor_lost)).sum()
    }

    /// Starts to count how the connections end.
    pub(in crate::lifecycle) fn begin_drain(&self) {
        self.ledgers().for_each(|ledger| ledger.count(ListenerEvents::begin_drain));
        self.ended_before.store(self.came().saturating_sub(self.open()), Ordering::Relaxed);
        self.carried.store(0, Ordering::Relaxed);
        self.cut.store(0, Ordering::Relaxed);
    }

    /// Counts all open connections as cut.
    pub(in crate::lifecycle) fn cut(&self) {
        self.cut.store(self.open(), Ordering::Relaxed);
    }

    /// Returns how the connections of the drain have ended so far.
    pub(in crate::lifecycle) fn report(&self) -> DrainReport {
        let [before, carried, cut] = [&self.ended_before, &self.carried, &self.cut]
            .map(|count| count.load(Ordering::Relaxed));
        let left = if cut == 0 { self.open() } else { 0 };
        let ended = self.came().saturating_sub(before + carried + cut + left);
        DrainReport { ended, carried, cut }
    }

    fn open(&self) -> usize {
        self.all.iter().map(|one| one.open.len()).sum()
    }

    fn came(&self) -> usize {
        self.all.iter().map(|one| one.came.load(Ordering::Relaxed)).sum()
    }

    fn ledgers(&self) -> impl Iterator<Item = &ListenerLedger> {
        self.all.iter().map(|one| &one.ledger)
    }
}

impl ServedListener {
    /// Waits until no connection of this listener is open. Cancel safe.
    pub(in crate::lifecycle) async fn ended(&self) {
        self.open.wait().await;
    }

    /// Returns a token that makes the drain of `term` wait for a first byte.
    pub(in crate::lifecycle) fn awaiting(&self, term: &Term) -> TaskTrackerToken {
        match self.order {
            StopOrder::First => term.awaiting_first_byte().token(),
            StopOrder::Last => term.last_awaiting().token(),
        }
    }

    /// Counts a connection that began at `since`. It is open until the returned value is dropped.
    pub(in crate::lifecycle) fn admit(
        &self,
        source: Source,
        traffic: &Arc<Traffic>,
        since: Instant,
    ) -> OpenConnection {
        // Count the connection as open first. Otherwise a drain that begins now would count it as
        // ended.
        let open = self.open.token();
        self.came.fetch_add(1, Ordering::Relaxed);
        OpenConnection { _entry: self.ledger.enter(source, traffic, since), _open: open }
    }

    /// Counts a connection that the successor has refused.
    pub(in crate::lifecycle) fn refused(&self) {
        self.ledger.count(|events| events.counters.refused += 1);
    }

    /// Lets connections from the predecessor go to `queue`. An earlier queue gets no more.
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
