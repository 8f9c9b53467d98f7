//! The data plane of a generation whose server is an external program.
//!
//! The data plane starts the program, and is ready when the program is. A program that inherits the
//! listeners accepts connections itself. For a program with a private address, the built-in server
//! accepts connections and forwards them. The program is told to stop when its last connection has
//! ended.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::instance::{Facts, Instance, InstanceState, Order, SharedListeners};
use super::notify::NotifySocket;
use super::private::{self, Folder};
use super::ready::ReadyBy;
use crate::address::Address;
use crate::config::{Attach, Config, OnHandoff, ProgramConfig, ProxyConfig, Upstreams};
use crate::data_plane::{Awaited, CarryPlane, DataPlane, PlaneEvent};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Listener;
use crate::report::{Connections, Counters, ProgramReport, ProgramState};
use crate::server::{Server, Workers};
use crate::service::Proxy;

/// How long a client waits, by default, while a private program is not running. The client's own
/// timeout is normally much shorter.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The data plane of a generation that runs a program.
#[derive(Debug)]
pub(crate) struct ProgramPlane {
    config: Arc<ProgramConfig>,
    generation: Generation,
    drain_timeout: Duration,
    folder: Folder,
    /// The built-in server that forwards connections to a private program.
    relay: Option<Server<Proxy>>,
    /// Whether the relay serves the listeners. This is decided when the program is ready, because
    /// only then is it known whether the program is private.
    relays: bool,
    private: Vec<Option<Address>>,
    listeners: SharedListeners,
    phase: Phase,
    orders: watch::Sender<Order>,
    instances: Vec<Observed>,
    tasks: JoinSet<()>,
    /// The reason why an instance has failed and is not restarted. `None` while there is no such
    /// instance.
    failures: watch::Sender<Option<String>>,
    /// Whether the handoff to this generation is committed. Before the commit, a failure of the
    /// program rolls back the handoff instead of restarting the program.
    is_committed: bool,
    /// When to tell a private program to stop even if it still has connections.
    stop_at: Option<Instant>,
}

/// The progress of starting the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The program is not ready yet.
    Starting,
    /// The program is ready. The relay, if it serves the listeners, has begun to accept.
    Accepting,
    /// The start is complete, or the data plane was never started.
    Settled,
}

/// The data plane's view of an instance.
#[derive(Debug)]
struct Observed {
    state: watch::Receiver<InstanceState>,
    facts: Arc<Mutex<Facts>>,
}

impl ProgramPlane {
    /// Creates a data plane that has started nothing yet.
    ///
    /// # Errors
    /// [`Error::System`] if the generation's folder cannot be created, or no private address is
    /// available.
    pub(crate) fn new(
        program: ProgramConfig,
        generation: Generation,
        config: &Config,
        workers: Workers,
        runtime_directory: Option<&std::path::Path>,
    ) -> Result<Self, Error> {
        let folder = Folder::create(runtime_directory)
            .map_err(Error::system("create a folder for the program's sockets"))?;
        let address = |instance| private::address(program.attach, &folder, instance);
        let private = (0..program.instances.get()).map(address).collect::<Result<Vec<_>, _>>();
        let private = private.map_err(Error::system("find a private address"))?;
        let relay = if program.attach.is_private() {
            let upstreams = private.iter().flatten().cloned().map(Into::into).collect();
            let upstreams = Upstreams::new(upstreams)?;
            let proxy = match &program.relay {
                Some(relay) => ProxyConfig { upstreams, ..(**relay).clone() },
                // Let clients wait while the program is started again.
                None => ProxyConfig { connect_patience: PATIENCE, ..ProxyConfig::to(upstreams) },
            };
            // Drain the connections at a handoff, because a connection cannot move to another
            // process of the program.
            let config = Config { on_handoff: OnHandoff::Drain, ..config.clone() };
            Some(Server::new(Proxy::new(proxy), workers, config))
        } else {
            None
        };
        Ok(Self {
            config: Arc::new(program),
            generation,
            drain_timeout: config.drain_timeout,
            folder,
            relay,
            relays: false,
            private,
            listeners: SharedListeners::default(),
            phase: Phase::Settled,
            orders: watch::Sender::new(Order::Stop),
            failures: watch::Sender::new(None),
            instances: Vec::new(),
            tasks: JoinSet::new(),
            is_committed: false,
            stop_at: None,
        })
    }

    /// Starts the task of each instance. The tasks then wait for orders.
    fn prepare(&mut self) -> Result<(), Error> {
        for (number, private) in self.private.iter().enumerate() {
            let path = self.folder.path().join(format!("notify-{number}"));
            let notify = NotifySocket::bind(&path)
                .map_err(Error::system("create the program's notification socket"))?;
            let state = watch::Sender::new(InstanceState::Ended);
            let facts = Arc::<Mutex<Facts>>::default();
            self.instances.push(Observed { state: state.subscribe(), facts: Arc::clone(&facts) });
            let instance = Instance {
                config: Arc::clone(&self.config),
                generation: self.generation,
                number,
                listeners: Arc::clone(&self.listeners),
                private: private.clone(),
                notify,
                orders: self.orders.subscribe(),
                failures: self.failures.clone(),
                state,
                facts,
            };
            self.tasks.spawn(instance.run());
        }
        Ok(())
    }

    /// Waits until every instance is ready. Returns whether the program is private, so that the
    /// relay must serve the listeners.
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

    /// Waits until the program is ready and, if it is private, until the relay accepts connections.
    /// Cancel safe.
    async fn start_serving(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Starting {
            self.relays = self.all_ready().await;
            if let Some(relay) = self.relay.as_mut().filter(|_| self.relays) {
                relay.start(&listeners(&self.listeners))?;
            }
            self.phase = Phase::Accepting;
        }
        if let Some(relay) = self.relaying() {
            relay.started().await?;
        }
        self.phase = Phase::Settled;
        Ok(())
    }

    /// Gives the order `new`, but only if the current order is `old`.
    fn replace(&self, old: Order, new: Order) {
        self.orders.send_if_modified(|order| {
            let is_old = *order == old;
            if is_old {
                *order = new;
            }
            is_old
        });
    }

    fn relaying(&self) -> Option<&Server<Proxy>> {
        self.relay.as_ref().filter(|_| self.relays)
    }

    fn relaying_mut(&mut self) -> Option<&mut Server<Proxy>> {
        self.relay.as_mut().filter(|_| self.relays)
    }
}

impl DataPlane for ProgramPlane {
    fn start(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        *self::listeners(&self.listeners) = listeners.to_vec();
        if self.instances.is_empty() {
            self.prepare()?;
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

    async fn started(&self) -> Result<(), Error> {
        self.all_ready().await;
        Ok(())
    }

    async fn died(&self) -> Error {
        match self.relaying() {
            Some(relay) => tokio::select! {
                error = failure(self.failures.subscribe()) => error,
                error = relay.died() => error,
            },
            None => failure(self.failures.subscribe()).await,
        }
    }

    fn heartbeat(&self) -> TaskTracker {
        match self.relaying() {
            Some(relay) => relay.heartbeat(),
            None => {
                let beat = TaskTracker::new();
                beat.close();
                beat
            }
        }
    }

    async fn stop_accepting(&mut self) {
        if let Some(relay) = self.relaying_mut() {
            relay.stop_accepting().await;
        }
    }

    fn accept_backlog(&mut self, listeners: &[Listener]) {
        if let Some(relay) = self.relaying_mut() {
            relay.accept_backlog(listeners);
        }
    }

    fn accept_late(&mut self, replaced: Vec<Listener>) {
        if let Some(relay) = self.relaying_mut() {
            relay.accept_late(replaced);
        }
    }

    fn drain(&mut self, _successor: Option<OwnedFd>) {
        // Leave the program enough time to end by itself before the drain deadline.
        let last = self.drain_timeout.saturating_sub(self.config.stop_timeout);
        let last = last.max(self.drain_timeout / 2);
        self.stop_at = Instant::now().checked_add(last);
        // Drop our copies of the listeners, because a copy would keep a closed listener open.
        listeners(&self.listeners).clear();
        let order = match self.relaying_mut() {
            Some(relay) => {
                relay.drain(None);
                Order::Finish
            }
            None => Order::Stop,
        };
        self.orders.send_replace(order);
    }

    async fn drained(&self) {
        if let Some(relay) = self.relaying() {
            let late = async {
                match self.stop_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = relay.drained() => {}
                () = late => {}
            }
            self.replace(Order::Finish, Order::Stop);
            relay.drained().await;
        }
        for observed in &self.instances {
            let mut state = observed.state.clone();
            // An error means that the task has ended, and so has its process.
            let _ = state.wait_for(|state| *state == InstanceState::Ended).await;
        }
    }

    fn cut(&mut self) {
        if let Some(relay) = self.relaying_mut() {
            relay.cut();
        }
        self.orders.send_replace(Order::Kill);
    }

    fn connections(&self) -> Option<Connections> {
        self.relaying().and_then(DataPlane::connections)
    }

    fn counters(&self) -> Counters {
        let mut counters = self.relaying().map(DataPlane::counters).unwrap_or_default();
        for observed in &self.instances {
            let facts = observed.facts.lock().unwrap_or_else(PoisonError::into_inner);
            counters.program.add(&facts.counters);
        }
        counters
    }

    fn programs(&self) -> Vec<ProgramReport> {
        let report = |observed: &Observed| {
            let facts = observed.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let state = match &*observed.state.borrow() {
                InstanceState::Starting => ProgramState::Starting,
                InstanceState::Ready(_) => ProgramState::Ready,
                InstanceState::Stopping => ProgramState::Stopping,
                InstanceState::Restarting => ProgramState::Restarting,
                InstanceState::Failed => ProgramState::Failed,
                InstanceState::Ended => ProgramState::Ended,
            };
            ProgramReport {
                pid: facts.pid,
                state,
                starts: facts.counters.starts,
                status: facts.status,
            }
        };
        self.instances.iter().map(report).collect()
    }

    fn report(&self) -> DrainReport {
        let none = DrainReport { ended: 0, carried: 0, cut: 0 };
        self.relaying().map_or(none, DataPlane::report)
    }

    async fn next(&mut self, awaited: Awaited) -> PlaneEvent {
        if awaited.taken_over {
            return PlaneEvent::TakenOver;
        }
        let failed = failure(self.failures.subscribe());
        // Continue the start even if the caller does not await it. This happens when the program is
        // started again because the successor has died.
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

fn listeners(shared: &SharedListeners) -> MutexGuard<'_, Vec<Listener>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until an instance has failed and is not started again. Returns the reason.
async fn failure(mut failures: watch::Receiver<Option<String>>) -> Error {
    let what = failures.wait_for(Option::is_some).await.ok().and_then(|what| what.clone());
    Error::ProgramFailed { what: what.unwrap_or_default() }
}

/// No connections move to the successor, because only the program knows their state.
impl CarryPlane for ProgramPlane {}
