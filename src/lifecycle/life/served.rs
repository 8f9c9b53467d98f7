//! The listeners of a server that accepts connections itself, and the connections that it has
//! accepted.
//!
//! A connection counts as open until its stream is dropped, also after a protocol upgrade. So a
//! websocket is drained, cut and reported like any other connection.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::{Listener, ListenerSet, Peer, Stream, pending};
use crate::report::{Connections, Counters};

/// The listeners of a server that accepts connections itself.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListeners {
    all: Vec<Arc<ServedListener>>,
    /// How many connections had been accepted and had ended when the drain began.
    ended_before: AtomicUsize,
    carried: AtomicUsize,
    cut: AtomicUsize,
}

/// A listener and the connections that were accepted on it.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServedListener {
    pub(in crate::lifecycle) name: Arc<str>,
    pub(in crate::lifecycle) address: Arc<str>,
    pub(in crate::lifecycle) order: StopOrder,
    /// The listening socket. `None` once it is closed, because no generation accepts on it any
    /// more.
    socket: Mutex<Option<Listener>>,
    /// Whether no generation will accept on this listener again. The server then accepts the
    /// clients that are left in the backlog, and closes the socket.
    is_given_up: AtomicBool,
    /// Whether the server accepts on a copy of the socket by itself.
    is_copied: AtomicBool,
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
            Arc::new(ServedListener {
                name: Arc::clone(listener.name()),
                address: listener.address().into(),
                order,
                socket: Mutex::new(Some(listener.clone())),
                is_given_up: AtomicBool::new(false),
                is_copied: AtomicBool::new(false),
                open,
                accepted: AtomicUsize::new(0),
            })
        });
        let [ended_before, carried, cut] = [const { AtomicUsize::new(0) }; 3];
        Ok(Self { all: all.collect(), ended_before, carried, cut })
    }

    /// Returns whether the server accepts on a listener by itself. If so, the library does not know
    /// when its connections have ended, or whether they have sent anything.
    pub(in crate::lifecycle) fn has_unknown(&self) -> bool {
        self.all.iter().any(|one| one.is_copied.load(Ordering::Relaxed))
    }

    pub(in crate::lifecycle) fn get(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        let found = self.all.iter().find(|one| &*one.name == name);
        found.cloned().ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })
    }

    /// Records that no generation will accept on `listeners` again. Returns those of them in whose
    /// backlog clients wait.
    pub(in crate::lifecycle) fn give_up(&self, listeners: &[Listener]) -> Vec<Arc<ServedListener>> {
        let ours = |listener: &Listener| self.get(listener.name()).ok();
        let given_up: Vec<_> = listeners.iter().filter_map(ours).collect();
        given_up.iter().for_each(|one| one.is_given_up.store(true, Ordering::Release));
        given_up.into_iter().filter(|one| one.has_clients()).collect()
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

    /// Returns the number of open connections.
    pub(in crate::lifecycle) fn connections(&self) -> Connections {
        Connections { open: self.open() as u64, oldest_ms: None, transferred: 0 }
    }

    /// Returns the counters of each listener.
    pub(in crate::lifecycle) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for one in &self.all {
            let listener = counters.listeners.entry(one.name.to_string()).or_default();
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
    /// Returns the listening socket, or `None` if it is closed.
    pub(in crate::lifecycle) fn socket(&self) -> Option<Listener> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether no generation will accept on this listener again.
    pub(in crate::lifecycle) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Records that the server accepts on a copy of the socket by itself.
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

    /// Counts a connection. It is open until the returned token is dropped.
    pub(in crate::lifecycle) fn admit(&self) -> TaskTrackerToken {
        // Count the connection as open first. Otherwise a drain that begins now would count it as
        // ended.
        let token = self.open.token();
        self.accepted.fetch_add(1, Ordering::Relaxed);
        token
    }
}
