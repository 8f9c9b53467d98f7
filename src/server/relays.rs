//! This module relays the connections of a proxy. Each worker has a relay plane, which is one task
//! for many connections. When a client is connected to an upstream, the connection's own task ends,
//! and the relay plane forwards its bytes.
//!
//! A connection leaves its relay plane when it ends, or when it is to move to the successor. It
//! then gets its own task again for work that takes time: an orderly close, the last bytes after a
//! failure, or the move.

mod ending;
mod leave;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use tokio::task::AbortHandle;
use tokio::time::Instant;

use ending::{close_other_side, finish, settle_other_side};
pub(super) use leave::RelayedConnections;

use super::connection::ConnectionContext;
use super::deaths::{Deaths, panic_text};
use super::slot::{ConnectionEnd, ConnectionSlot};
use crate::net::{ByteCounts, Listener, Peer};
use crate::plane::{Expired, Limits, Plane, Rejected, RelayEnd, RelayEntry, RelayOwner, Side};
use crate::service::{Connecting, Service, UpstreamCount, client_disconnected};

/// The relay planes (tasks that forward connections) of a server, one for each worker, in the order
/// of the workers. A relay plane is created when it is first needed.
#[derive(Debug)]
pub(super) struct Relays {
    planes: Box<[OnceLock<RunningPlane>]>,
    deaths: Deaths,
}

/// A relay plane and the task that runs it. Dropping this value resets the forwarded connections.
#[derive(Debug)]
struct RunningPlane {
    plane: Arc<Plane<RelayedConnection>>,
    task: AbortHandle,
}

impl Drop for RunningPlane {
    fn drop(&mut self) {
        self.task.abort();
        drop(ResetOnDrop(Arc::clone(&self.plane)));
    }
}

/// The data that the server stores with each connection that a relay plane forwards.
#[derive(Debug)]
pub(super) struct RelayedConnection {
    slot: ConnectionSlot,
    link: UpstreamLink,
    peer: Peer,
    carry: Carrying,
}

/// The state of the connection to the upstream.
#[derive(Debug)]
pub(super) enum UpstreamLink {
    /// The connection is not established yet. `None` only while `Established` replaces this value.
    Connecting(Option<Box<Connecting>>),
    Established(UpstreamCount),
}

/// Whether a relayed connection may move to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrying {
    /// A drain asks the connection to end.
    Never,
    /// A drain asks the connection to move.
    Possible,
    /// The connection was offered to the current successor, but stays in this process.
    Stays,
}

impl Relays {
    /// Creates an empty list of relay planes (forwarding tasks) for `workers` workers. If such a
    /// task fails later, `deaths` records the failure.
    pub(super) fn new(workers: usize, deaths: Deaths) -> Self {
        Self { planes: (0..workers).map(|_| OnceLock::new()).collect(), deaths }
    }

    /// Lets connections that stayed in this process at an earlier handoff move at the next one.
    pub(super) fn forget_refusals(&self) {
        for running in self.running() {
            running.plane.for_each(|connection| {
                if connection.carry == Carrying::Stays {
                    connection.carry = Carrying::Possible;
                }
            });
        }
    }

    /// Resets all relayed connections, and all that are added later.
    pub(super) fn cut(&self) {
        for entry in self.running().flat_map(|running| running.plane.cut()) {
            entry.reset_on_drop();
            finish(entry, ConnectionEnd::Cut);
        }
    }

    /// Returns when the oldest relayed connection began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let mut oldest = None;
        for running in self.running() {
            running.plane.for_each(|connection| {
                let since = connection.slot.since;
                oldest = Some(oldest.map_or(since, |oldest: Instant| oldest.min(since)));
            });
        }
        oldest
    }

    fn running(&self) -> impl Iterator<Item = &RunningPlane> {
        self.planes.iter().filter_map(OnceLock::get)
    }
}

impl<S: Service> ConnectionContext<S> {
    /// Starts the worker's relay plane, the task that forwards proxied connections, if a proxy
    /// serves one of the listeners. An early start reveals a lack of file descriptors before the
    /// first client arrives. Must be called within the worker's runtime.
    pub(super) fn prepare_to_relay(
        self: &Arc<Self>,
        listeners: &[Listener],
        worker: usize,
    ) -> io::Result<()> {
        if listeners.iter().any(|listener| self.service.proxy(listener.name()).is_some()) {
            self.plane(worker)?;
        }
        Ok(())
    }

    /// Adds a connection to the relay plane of `worker`, the task that forwards its bytes from now
    /// on. Must be called within the worker's runtime.
    pub(super) fn relay(self: &Arc<Self>, entry: RelayEntry<RelayedConnection>, worker: usize) {
        let rejected = match self.plane(worker) {
            Ok(plane) => plane.admit(entry).map_err(|rejected| *rejected),
            Err(error) => Err(Rejected::Unwatched(entry, error)),
        };
        let (entry, end) = match rejected {
            Ok(()) => return,
            Err(Rejected::Cut(entry)) => (entry, ConnectionEnd::Cut),
            Err(Rejected::Unwatched(entry, error)) => {
                let listener = entry.owner.slot.listener();
                tracing::error!(
                    event = "connection.unwatched", %listener, reason = %error,
                    "closed a client connection on {listener}, because it cannot be watched for \
                    events: {error}"
                );
                (entry, ConnectionEnd::Broken(error))
            }
        };
        entry.reset_on_drop();
        finish(entry, end);
    }

    /// Returns the worker's relay plane, which forwards its connections. The first call creates the
    /// relay plane and starts its task.
    fn plane(self: &Arc<Self>, worker: usize) -> io::Result<&Plane<RelayedConnection>> {
        let Relays { planes, deaths } = &self.relays;
        if let Some(running) = planes[worker].get() {
            return Ok(&running.plane);
        }
        let plane = Arc::new(Plane::new()?);
        let start = || {
            let (context, deaths) = (Arc::downgrade(self), deaths.clone());
            let task = tokio::spawn(run(Arc::clone(&plane), context, worker));
            let abort = task.abort_handle();
            tokio::spawn(async move {
                match task.await {
                    Ok(Ok(never)) => match never {},
                    Ok(Err(error)) => {
                        deaths.report("a task that forwards connections", &error.to_string())
                    }
                    Err(error) => {
                        if let Ok(panic) = error.try_into_panic() {
                            deaths.report("a task that forwards connections", &panic_text(&*panic));
                        }
                    }
                }
            });
            RunningPlane { plane: Arc::clone(&plane), task: abort }
        };
        Ok(&planes[worker].get_or_init(start).plane)
    }

    /// Ends a connection that the relay plane no longer forwards, or connects its client to another
    /// upstream.
    fn ended(self: &Arc<Self>, entry: RelayEntry<RelayedConnection>, end: RelayEnd, worker: usize) {
        match end {
            RelayEnd::NotConnected(error) => self.connect_slowly(entry, &error, worker),
            RelayEnd::ClientLeft => {
                entry.reset_on_drop();
                finish(entry, ConnectionEnd::Broken(client_disconnected()));
            }
            RelayEnd::Finished => {
                entry.upstream.half_close_if_shared();
                entry.client.half_close_if_shared();
                finish(entry, ConnectionEnd::Finished { late: 0 });
            }
            RelayEnd::PeerClosed(side) => drop(tokio::spawn(close_other_side(entry, side))),
            // An idle connection without undelivered bytes ends as if both sides had finished.
            RelayEnd::Expired(Expired::Idle)
                if !entry.relay.owes() && entry.unacknowledged() == 0 =>
            {
                drop(tokio::spawn(close_other_side(entry, Side::Upstream)));
            }
            RelayEnd::Expired(expired) => {
                entry.reset_on_drop();
                finish(entry, ConnectionEnd::Broken(expired.into()));
            }
            RelayEnd::ClientBroke(error) => {
                drop(tokio::spawn(settle_other_side(entry, Side::Client, error)));
            }
            RelayEnd::UpstreamBroke(error) => {
                drop(tokio::spawn(settle_other_side(entry, Side::Upstream, error)));
            }
        }
    }
}

impl RelayedConnection {
    /// Creates the data that the server stores with a connection. `carry` says whether a drain may
    /// move the connection to the successor.
    pub(super) fn new(
        slot: ConnectionSlot,
        link: UpstreamLink,
        peer: Peer,
        carry: Carrying,
    ) -> Self {
        Self { slot, link, peer, carry }
    }

    fn may_move(&self) -> bool {
        self.carry == Carrying::Possible
    }
}

impl RelayOwner for RelayedConnection {
    fn connect_deadline(&self) -> Option<Instant> {
        match &self.link {
            UpstreamLink::Connecting(connecting) => connecting.as_ref().map(|one| one.deadline()),
            UpstreamLink::Established(_) => None,
        }
    }

    fn connected(&mut self) -> Limits {
        let UpstreamLink::Connecting(connecting) = &mut self.link else { return Limits::none() };
        let Some(connecting) = connecting.take() else { return Limits::none() };
        let (count, limits) = connecting.established();
        self.link = UpstreamLink::Established(count);
        limits
    }

    fn transferred(&self, client: ByteCounts, upstream: ByteCounts) {
        self.slot.entry.add(client);
        if let UpstreamLink::Established(count) = &self.link {
            count.add(upstream);
        }
    }
}

/// Resets the connections of a relay plane when the task that forwards them ends. The task ends
/// when its worker has died or the server no longer exists.
struct ResetOnDrop(Arc<Plane<RelayedConnection>>);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        self.0.cut().iter().for_each(RelayEntry::reset_on_drop);
    }
}

/// Runs a relay plane, which forwards connections, as long as the server exists.
async fn run<S: Service>(
    plane: Arc<Plane<RelayedConnection>>,
    context: Weak<ConnectionContext<S>>,
    worker: usize,
) -> io::Result<Infallible> {
    let running = ResetOnDrop(plane);
    running
        .0
        .run(|entry, end| match context.upgrade() {
            Some(context) => context.ended(entry, end, worker),
            None => entry.reset_on_drop(),
        })
        .await
}
