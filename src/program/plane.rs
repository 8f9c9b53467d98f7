//! The data plane (the part that serves clients) of a generation that runs an external program.
//!
//! The data plane starts the program, and is ready when the program is. A program that inherits the
//! listeners accepts connections itself. For a program with a private address, the built-in server
//! accepts connections and forwards them. In a drain, such a program is told to stop when its last
//! connection has ended, or at `stop_at`. The built-in server also serves listeners that do not
//! belong to the program, such as the metrics listener.

use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::creation::ProgramHost;
use super::instance::{ProgramListeners, SharedListeners};
use super::observed::{InstanceState, Observed, Order, ProgramFailure, failure};
use super::ready::ReadyBy;
use super::service::{ProgramService, contains};
use crate::address::Address;
use crate::config::{Attach, ListenerName, ProgramConfig};
use crate::data_plane::{Awaited, CarryPlane, DataPlane, PlaneEvent};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::net::Listener;
use crate::report::{Connections, Counters, ProgramReport};
use crate::server::Server;
use crate::service::Service;
use crate::sys::temporary_folder::TemporaryFolder;

/// The listeners that do not belong to the program. The built-in server serves them.
#[derive(Debug)]
pub(super) struct OtherListeners {
    pub(super) names: Vec<ListenerName>,
    pub(super) open: Vec<Listener>,
}

impl OtherListeners {
    fn contains(&self, listener: &Listener) -> bool {
        contains(&self.names, listener.name())
    }
}

/// The data plane of a generation that runs a program.
#[derive(Debug)]
pub(crate) struct ProgramPlane<S> {
    pub(super) config: Arc<ProgramConfig>,
    pub(super) host: ProgramHost,
    pub(super) folder: TemporaryFolder,
    /// The built-in server. It forwards connections to a program with a private address, and serves
    /// the listeners that do not belong to the program.
    pub(super) server: Server<ProgramService<S>>,
    pub(super) others: OtherListeners,
    /// Whether the built-in server forwards the program's connections. With [`Attach::Detect`],
    /// this is known only when the program is ready.
    pub(super) relays: bool,
    pub(super) private: Vec<Option<Address>>,
    pub(super) listeners: SharedListeners,
    pub(super) phase: Phase,
    pub(super) orders: watch::Sender<Order>,
    pub(super) instances: Vec<Observed>,
    pub(super) tasks: JoinSet<()>,
    /// The reason why an instance has failed and is not restarted. `None` while there is no such
    /// instance.
    pub(super) failures: watch::Sender<Option<ProgramFailure>>,
    /// Whether the handoff to this generation is committed. Before the commit, a failure of the
    /// program rolls back the handoff instead of restarting the program.
    pub(super) is_committed: bool,
    /// When to tell the program to stop even if forwarded connections are still open.
    pub(super) stop_at: Option<Instant>,
}

/// The progress of starting the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The program is not ready yet.
    Starting,
    /// The program is ready. The built-in server, if it serves any listener, has begun to accept.
    Accepting,
    /// The start is complete, or has never begun.
    Settled,
}

impl<S: Service> ProgramPlane<S> {
    /// Waits until every instance is ready. Returns whether the program listens on its private
    /// address. If so, the built-in server must serve the listeners.
    async fn all_ready(&self) -> bool {
        let mut is_private = false;
        for observed in &self.instances {
            let mut state = observed.state.clone();
            let ready = state.wait_for(|state| matches!(state, InstanceState::Ready(_))).await;
            match ready.map(|state| *state) {
                Ok(InstanceState::Ready(by)) => is_private |= by == ReadyBy::Connect,
                Ok(_) | Err(_) => std::future::pending().await,
            }
        }
        match self.config.attach {
            Attach::Detect => is_private,
            Attach::Inherit => false,
            Attach::PrivatePort | Attach::PrivateSocket => true,
        }
    }

    /// Waits until the program is ready and the built-in server accepts connections on the
    /// listeners that it serves. Cancel safe.
    async fn start_serving(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Starting {
            self.relays = self.all_ready().await;
            let mut served = self.others.open.clone();
            if self.relays {
                served.extend(listeners(&self.listeners).open.iter().cloned());
            }
            self.server.start(&served)?;
            self.phase = Phase::Accepting;
        }
        if self.is_accepting() {
            self.server.started().await?;
        }
        self.phase = Phase::Settled;
        Ok(())
    }

    /// Returns whether the built-in server accepts connections on any listener. While the program
    /// starts, the server accepts none, even if it accepted connections before.
    fn is_accepting(&self) -> bool {
        self.phase != Phase::Starting && (self.relays || !self.others.open.is_empty())
    }

    /// Returns the listeners in `listeners` on which the built-in server accepts connections.
    fn served(&self, listeners: &[Listener]) -> Vec<Listener> {
        let is_served = |listener: &&Listener| self.relays || self.others.contains(listener);
        listeners.iter().filter(is_served).cloned().collect()
    }

    /// Replaces the current order with `new`, but only if it is `old`.
    fn replace(&self, old: Order, new: Order) {
        self.orders.send_if_modified(|order| {
            let is_old = *order == old;
            if is_old {
                *order = new;
            }
            is_old
        });
    }
}

impl<S: Service> DataPlane for ProgramPlane<S> {
    fn start(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        let (others, own): (_, Vec<_>) =
            listeners.iter().cloned().partition(|listener| self.others.contains(listener));
        self.others.open = others;
        *self::listeners(&self.listeners) = own.into();
        if self.instances.is_empty() {
            self.prepare();
        }
        self.failures.send_replace(None);
        self.stop_at = None;
        self.phase = Phase::Starting;
        let order = if self.is_committed { Order::Run } else { Order::Prove };
        self.orders.send_replace(order);
        Ok(())
    }

    fn committed(&mut self) {
        self.is_committed = true;
        self.replace(Order::Prove, Order::Run);
    }

    fn stop_limit(&self) -> Duration {
        self.config.stop_timeout
    }

    fn not_started(&self, limit: Duration) -> Error {
        match self.instances.iter().find_map(Observed::missing) {
            Some(why) => Error::ProgramNotReady { limit, why },
            None => Error::NotAccepting { limit },
        }
    }

    async fn died(&self) -> Error {
        tokio::select! {
            error = failure(self.failures.subscribe()) => error,
            error = self.server.died() => error,
        }
    }

    fn heartbeat(&self) -> TaskTracker {
        let beat = if self.is_accepting() {
            self.server.heartbeat()
        } else {
            let beat = TaskTracker::new();
            beat.close();
            beat
        };
        for observed in &self.instances {
            observed.facts().ask(&beat);
        }
        beat
    }

    async fn stop_accepting(&mut self) {
        self.server.stop_accepting().await;
    }

    fn accept_backlog(&mut self, listeners: &[Listener]) {
        let mut served = self.served(listeners);
        // A program that was told to stop answers no further client.
        if !self.orders.borrow().runs() {
            served.retain(|listener| self.others.contains(listener));
        }
        self.server.accept_backlog(&served);
    }

    fn accept_late(&mut self, replaced: Vec<Listener>) {
        let served = self.served(&replaced);
        self.server.accept_late(served);
    }

    fn drain(&mut self, _successor: Option<OwnedFd>) {
        // Leave the program enough time to end by itself before the drain deadline.
        let last = self.host.drain_timeout.saturating_sub(self.config.stop_timeout);
        let last = last.max(self.host.drain_timeout / 2);
        self.stop_at = Instant::now().checked_add(last);
        // Drop our copies of the listeners, because a copy would keep a closed listener open.
        listeners(&self.listeners).open.clear();
        self.others.open.clear();
        self.server.drain(None);
        // If the built-in server forwards to the program, the program must run until the last of
        // these connections has ended. A program that accepts connections itself drains them when
        // it gets the stop signal.
        self.orders.send_replace(if self.relays { Order::Finish } else { Order::Stop });
    }

    async fn drained(&self) {
        let late = async {
            match self.stop_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.server.drained() => {}
            () = late => {}
        }
        self.replace(Order::Finish, Order::Stop);
        self.server.drained().await;
        for observed in &self.instances {
            let mut state = observed.state.clone();
            // An error means that the task of the instance has ended, and so has the program's
            // process.
            let _ = state.wait_for(|state| *state == InstanceState::Ended).await;
        }
    }

    fn cut(&mut self) {
        self.server.cut();
        if self.orders.send_replace(Order::Kill) != Order::Kill {
            self.instances.iter().enumerate().for_each(|(number, observed)| {
                observed.log_kill(number);
            });
        }
    }

    fn connections(&self) -> Option<Connections> {
        // The number is unknown if the program accepts connections itself.
        if self.relays { self.server.connections() } else { None }
    }

    fn counters(&self) -> Counters {
        let mut counters = self.server.counters();
        for observed in &self.instances {
            counters.program.add(&observed.facts().counters);
        }
        counters
    }

    fn programs(&self) -> Vec<ProgramReport> {
        self.instances.iter().map(Observed::report).collect()
    }

    fn report(&self) -> DrainReport {
        self.server.report()
    }

    async fn next(&mut self, awaited: Awaited) -> PlaneEvent {
        if awaited.taken_over {
            return PlaneEvent::TakenOver;
        }
        let failed = failure(self.failures.subscribe());
        // Continue to start the program even if the caller does not wait for it. The caller does
        // not wait when the program starts again because the successor has died.
        if self.phase != Phase::Settled && !awaited.drained {
            tokio::select! {
                biased;
                error = failed, if awaited.death => return PlaneEvent::Died(error),
                started = self.start_serving() => match started {
                    Ok(()) if awaited.start => return PlaneEvent::Started,
                    Ok(()) => {}
                    Err(error) => return PlaneEvent::Died(error),
                },
            }
        }
        tokio::select! {
            biased;
            error = self.died(), if awaited.death => PlaneEvent::Died(error),
            () = self.drained(), if awaited.drained => PlaneEvent::Drained,
            else => std::future::pending().await,
        }
    }
}

fn listeners(shared: &SharedListeners) -> MutexGuard<'_, ProgramListeners> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No connections move to the successor, because only the program knows their state.
impl<S: Service> CarryPlane for ProgramPlane<S> {}
