//! A listener of a server that accepts connections itself, and its connections.
//!
//! A connection counts as open until its stream is dropped, also after a protocol upgrade. So a
//! websocket is drained, cut and reported like any other connection.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::term::Term;
use crate::carry::Declined;
use crate::config::OnHandoff;
use crate::ledger::{
    ConnectionLimit, HeldPermit, ListenerEntry, ListenerEvents, ListenerLedger, Permit, Source,
};
use crate::lifecycle::embed::ArrivalQueue;
use crate::net::{Listener, Peer, Stream, Traffic, WatchedListener, pending, pending_blocking};

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
    pub(super) is_given_up: AtomicBool,
    /// The time until which late clients may arrive. The successor replaced this listener with a
    /// new socket during the TCP handshakes of these clients.
    pub(super) late_until: OnceLock<Instant>,
    /// Whether the server has requested this listener.
    pub(super) is_used: AtomicBool,
    /// The limit on the connections of all sockets with this name, if there is one.
    pub(super) limit: Option<Arc<ConnectionLimit>>,
    /// Whether the server has taken a copy of the socket, on which it accepts connections without
    /// this library.
    pub(super) is_copied: AtomicBool,
    pub(super) open: TaskTracker,
    /// Whether a connection that ends now counts as drained. After a cut, all connections have
    /// already been counted.
    pub(super) is_draining: AtomicBool,
    pub(super) ledger: ListenerLedger,
    /// The queue for connections from the predecessor. `None` if the server takes over none.
    arrivals: Mutex<Option<Arc<ArrivalQueue>>>,
}

/// Counts an open connection of a listener. When this value is dropped, the connection no longer
/// counts as open.
#[derive(Debug)]
pub(in crate::lifecycle) struct OpenConnection {
    /// `None` once the connection is counted as ended.
    entry: Option<ListenerEntry>,
    served: Arc<ServedListener>,
    _permit: Option<Permit>,
    // This field is the last, so that it is dropped last: the process may exit when no token is
    // left.
    _open: TaskTrackerToken,
}

/// Whether a thread of the server still holds the socket of a listener on which this generation has
/// stopped accepting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lifecycle) enum SocketUse {
    /// A thread that was about to accept holds the socket open, so clients can still connect. The
    /// thread is usually done in a moment.
    Continues,
    /// No thread holds the socket.
    Over,
}

/// When a listener stops accepting while the service stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lifecycle) enum StopOrder {
    /// The listener stops accepting at once.
    First,
    /// The listener stops after the connections of all other listeners have ended.
    Last,
}

impl ServedListener {
    /// Prepares to count the connections of `listener`.
    pub(super) fn new(
        listener: &Listener,
        order: StopOrder,
        on_handoff: OnHandoff,
        limit: Option<Arc<ConnectionLimit>>,
    ) -> Self {
        let open = TaskTracker::new();
        // Close the tracker, because `wait` never resolves on an open one. A closed tracker can
        // still track new connections.
        open.close();
        Self {
            name: Arc::clone(listener.name()),
            address: listener.address().into(),
            order,
            on_handoff,
            socket: Mutex::new(Some(listener.clone())),
            is_given_up: AtomicBool::new(false),
            late_until: OnceLock::new(),
            is_used: AtomicBool::new(false),
            limit,
            is_copied: AtomicBool::new(false),
            open,
            is_draining: AtomicBool::new(false),
            ledger: ListenerLedger::default(),
            arrivals: Mutex::default(),
        }
    }

    /// Returns the listening socket, or `None` if it is closed.
    pub(in crate::lifecycle) fn socket(&self) -> Option<Listener> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the socket is open and belongs to `listener`.
    pub(super) fn has_socket_of(&self, listener: &Listener) -> bool {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().is_some_and(|socket| socket.is(listener))
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

    /// Records that the server has requested this listener.
    pub(in crate::lifecycle) fn set_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }

    /// Returns whether the connections of this listener are limited.
    pub(in crate::lifecycle) const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Waits until the listener has fewer connections than its limit, and takes a permit for
    /// another one. Returns `None` if there is no limit. Cancel safe.
    pub(in crate::lifecycle) async fn take_permit(&self) -> Option<HeldPermit> {
        Some(self.limit.as_ref()?.take().await)
    }

    /// Returns the connection limit, or `None` if there is none.
    pub(in crate::lifecycle) fn max_connections(&self) -> Option<NonZeroUsize> {
        self.limit.as_ref().map(|limit| limit.max_connections())
    }

    /// Takes a permit for a connection from the predecessor, whose connection limit for this
    /// listener is `there`. Returns `None` if there is no limit here.
    ///
    /// # Errors
    /// Fails if the limit here is reached and lower than `there`.
    pub(in crate::lifecycle) fn permit_for_carried(
        &self,
        there: Option<NonZeroUsize>,
    ) -> Result<Option<Permit>, Declined> {
        let Some(limit) = &self.limit else { return Ok(None) };
        let full = || format!("the listener {} has reached its connection limit", self.name);
        Ok(Some(limit.acquire_for_carried(there).ok_or_else(full)?))
    }

    /// Closes the socket of this process, so that the address is free once other processes have
    /// closed theirs. Keeps a socket of which the server has a copy, because the server needs
    /// another copy if it is called again.
    pub(in crate::lifecycle) fn close(&self) {
        if !self.is_copied.load(Ordering::Relaxed) {
            self.close_now();
        }
    }

    /// Closes the socket of this process, even if the server has a copy of it.
    pub(super) fn close_now(&self) {
        drop(self.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Accepts the clients that are left in the backlog, and closes the socket. Must be called in a
    /// tokio runtime.
    pub(in crate::lifecycle) fn take_backlog(&self) -> Vec<(Stream, Peer)> {
        let clients = self.socket().map_or_else(Vec::new, |socket| pending(&socket).collect());
        self.close();
        clients
    }

    /// Accepts the clients that are left in the backlog, for a server of threads. Then closes the
    /// socket, unless a thread still holds it.
    pub(in crate::lifecycle) fn take_backlog_blocking(&self) -> (Vec<(OwnedFd, Peer)>, SocketUse) {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listener) = &*socket else { return (Vec::new(), SocketUse::Over) };
        let clients = pending_blocking(listener).collect();
        if listener.is_cloned() {
            return (clients, SocketUse::Continues);
        }
        if !self.is_copied.load(Ordering::Relaxed) {
            *socket = None;
        }
        (clients, SocketUse::Over)
    }

    /// Returns an accept loop for late clients. Returns `None` if no late clients can arrive on
    /// this listener, or if the kernel lacks memory for the loop. Must be called in a tokio
    /// runtime.
    pub(in crate::lifecycle) fn watch_late(&self) -> Option<WatchedListener> {
        self.late_clients()?;
        WatchedListener::new(self.socket()?).ok()
    }

    /// Returns whether clients wait in the backlog.
    pub(in crate::lifecycle) fn has_clients(&self) -> bool {
        self.socket().is_some_and(|socket| socket.has_clients())
    }

    /// Waits until all connections of this listener have ended. If the successor has replaced the
    /// listener, also waits until no late client can arrive. Cancel safe.
    pub(in crate::lifecycle) async fn ended(&self) {
        if let Some(left) = self.late_clients() {
            sleep(left).await;
        }
        self.open.wait().await;
    }

    /// Returns a token that delays the end of the drain until it is dropped, as an open connection
    /// does.
    pub(in crate::lifecycle) fn hold_open(&self) -> TaskTrackerToken {
        self.open.token()
    }

    /// Returns a token that delays the drain of `term` until it is dropped. An acceptor holds a
    /// token while it accepts, and a connection holds one until its client has sent something.
    pub(in crate::lifecycle) fn awaiting(&self, term: &Term) -> TaskTrackerToken {
        match self.order {
            StopOrder::First => term.awaiting_first_byte().token(),
            StopOrder::Last => term.last_awaiting().token(),
        }
    }

    /// Counts a connection that began at `since`. It counts as open until the returned value is
    /// dropped. `permit` is its permit of the connection limit. Without one, the connection may
    /// exceed the limit.
    pub(in crate::lifecycle) fn admit(
        self: &Arc<Self>,
        source: Source,
        traffic: &Arc<Traffic>,
        since: Instant,
        permit: Option<Permit>,
    ) -> OpenConnection {
        // Count the connection as open first. Otherwise a drain that begins now would count it as
        // ended.
        let open = self.open.token();
        let entry = Some(self.ledger.enter(source, traffic, since));
        let permit = permit.or_else(|| Some(self.limit.as_ref()?.acquire_beyond()));
        OpenConnection { entry, served: Arc::clone(self), _permit: permit, _open: open }
    }

    /// Counts a shortage of file descriptors or memory, during which the server accepts no clients.
    pub(in crate::lifecycle) fn count_shortage(&self) {
        self.ledger.count(|events| events.counters.limited += 1);
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

    /// Returns the queue for connections from the predecessor. Returns `None` if the server or the
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

    /// Counts the connection as cut, because this generation closes it without serving it.
    pub(in crate::lifecycle) fn cut(mut self) {
        let is_draining = self.served.is_draining.load(Ordering::Relaxed);
        if let Some(entry) = self.entry.take().filter(|_| is_draining) {
            entry.end(|events| events.counters.cut += 1);
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

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::config::Listeners;
    use crate::net::ListenerSet;

    /// While another thread holds the socket, clients can connect, and must still be accepted.
    #[test]
    fn a_socket_that_is_in_use_is_not_closed() {
        let configured = Listeners::new(vec!["web=127.0.0.1:0".parse().unwrap()]).unwrap();
        let mut set = ListenerSet::assemble(&configured, None, Vec::new()).unwrap();
        let listener = set.take().pop().unwrap();
        let address = listener.address().to_owned();
        let served = ServedListener::new(&listener, StopOrder::First, OnHandoff::Drain, None);
        for _ in 0..2 {
            let _clients = [(); 2].map(|()| TcpStream::connect(&address).unwrap());
            let (taken, socket_use) = served.take_backlog_blocking();
            assert_eq!((taken.len(), socket_use), (2, SocketUse::Continues));
        }
        drop((listener, set));
        assert_eq!(served.take_backlog_blocking().1, SocketUse::Over);
        assert!(TcpStream::connect(&address).is_err());
    }
}
