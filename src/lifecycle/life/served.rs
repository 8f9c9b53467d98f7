//! The listeners of a server that accepts connections itself, and the connections that it has
//! accepted.
//!
//! A connection counts as open until its stream is dropped, also after a protocol upgrade. So a
//! websocket is drained, cut and reported like any other connection.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::{Listener, ListenerSet};
use crate::report::{Connections, Counters};

/// The listeners of a server that accepts connections itself.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListeners {
    all: Vec<Arc<ServedListener>>,
    /// Whether the server accepts on a listener by itself, so that its connections are unknown.
    has_unknown: AtomicBool,
    /// How many connections had been accepted and had ended when the drain began.
    ended_before: AtomicUsize,
    carried: AtomicUsize,
    cut: AtomicUsize,
}

/// A listener and the connections that were accepted on it.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListener {
    pub(in crate::lifecycle) listener: Listener,
    pub(in crate::lifecycle) order: StopOrder,
    open: TaskTracker,
    accepted: AtomicUsize,
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
    /// last.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if one of these names is unknown.
    pub(in crate::lifecycle) fn new(
        listeners: &ListenerSet,
        last: &HashSet<String>,
    ) -> Result<Self, Error> {
        last.iter().try_for_each(|name| listeners.get(name).map(drop))?;
        let all = listeners.as_slice().iter().map(|listener| {
            let open = TaskTracker::new();
            // `wait` resolves only on a closed tracker. A closed tracker still gives out tokens.
            open.close();
            let is_last = last.contains(&**listener.name());
            let order = if is_last { StopOrder::Last } else { StopOrder::First };
            let (listener, accepted) = (listener.clone(), AtomicUsize::new(0));
            Arc::new(ServedListener { listener, order, open, accepted })
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

    /// Returns the number of open connections.
    pub(in crate::lifecycle) fn connections(&self) -> Connections {
        Connections { open: self.open() as u64, oldest_ms: None, transferred: 0 }
    }

    /// Returns the counters of each listener.
    pub(in crate::lifecycle) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for one in &self.all {
            let listener = counters.listeners.entry(one.listener.name().to_string()).or_default();
            listener.accepted += one.accepted.load(Ordering::Relaxed) as u64;
            listener.active += one.open.len() as u64;
        }
        counters
    }

    /// Starts to count how the connections end.
    pub(in crate::lifecycle) fn begin_drain(&self) {
        self.ended_before.store(self.accepted().saturating_sub(self.open()), Ordering::Relaxed);
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
        let ended = self.accepted().saturating_sub(before + carried + cut + left);
        DrainReport { ended, carried, cut }
    }

    fn open(&self) -> usize {
        self.all.iter().map(|one| one.open.len()).sum()
    }

    fn accepted(&self) -> usize {
        self.all.iter().map(|one| one.accepted.load(Ordering::Relaxed)).sum()
    }
}

impl ServedListener {
    /// Waits until no connection of this listener is open. Cancel safe.
    pub(in crate::lifecycle) async fn ended(&self) {
        self.open.wait().await;
    }

    /// Counts a connection. It is open until the returned token is dropped.
    pub(in crate::lifecycle) fn admit(&self) -> TaskTrackerToken {
        // Count the connection as open first. Otherwise a drain that begins now would count it as
        // ended.
        let token = self.open.token();
        self.accepted.fetch_add(1, Ordering::Relaxed);
        token
    }
}
