//! This module creates the data plane (the part that serves clients) of a generation that runs an
//! external program, and prepares the instances of the program.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::instance::{Instance, SharedListeners};
use super::observed::{Facts, InstanceState, Observed, Order};
use super::plane::{OtherListeners, Phase, ProgramPlane};
use super::private;
use super::service::{ProgramService, proxy};
use crate::config::{Config, ListenerName, OnHandoff, ProgramConfig};
use crate::error::Error;
use crate::generation::Generation;
use crate::server::{Server, Workers};
use crate::service::Service;
use crate::sys::temporary_folder::TemporaryFolder;

/// The facts about this process that a [`ProgramPlane`] needs.
#[derive(Debug)]
pub(crate) struct ProgramHost {
    pub(crate) generation: Generation,
    /// The parent of the folder in which this process creates its sockets. `None` means the
    /// system's folder for temporary files.
    pub(crate) runtime_directory: Option<PathBuf>,
    /// The timeout of the service manager's watchdog.
    pub(crate) watchdog: Option<Duration>,
    /// How long connections may take to end when the generation drains.
    pub(crate) drain_timeout: Duration,
}

impl<S: Service> ProgramPlane<S> {
    /// Creates a data plane that has started nothing yet. The service in the last argument serves
    /// the listeners with the given names, and the program serves all others.
    ///
    /// # Errors
    /// Returns [`Error::System`] if the generation's folder cannot be created, or if no private
    /// address is available.
    pub(crate) fn new(
        program: ProgramConfig,
        host: ProgramHost,
        config: &Config,
        workers: Workers,
        (service, other_names): (S, Vec<ListenerName>),
    ) -> Result<Self, Error> {
        let folder = TemporaryFolder::create(host.runtime_directory.as_deref())
            .map_err(Error::system("create a directory for the program's sockets"))?;
        let private = private::addresses(program.attach, &folder, program.instances.get());
        let private = private.map_err(Error::system("find a private address for the program"))?;
        let proxy =
            if program.attach.is_private() { Some(proxy(&program, &private)?) } else { None };
        let service = ProgramService::new(proxy, service, other_names.clone(), private.clone());
        // Drain the connections at a handoff, because a connection cannot move to another process
        // of the program.
        let server_config = Config { on_handoff: OnHandoff::Drain, ..config.clone() };
        Ok(Self {
            config: Arc::new(program),
            host,
            folder,
            server: Server::new(service, workers, server_config),
            others: OtherListeners { names: other_names, open: Vec::new() },
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

    /// Starts one task for each instance (process) of the program. The tasks then wait for orders.
    pub(super) fn prepare(&mut self) {
        for (number, private) in self.private.iter().enumerate() {
            let state = watch::Sender::new(InstanceState::Ended);
            let facts = Arc::<Mutex<Facts>>::default();
            self.instances.push(Observed { state: state.subscribe(), facts: Arc::clone(&facts) });
            let instance = Instance {
                config: Arc::clone(&self.config),
                generation: self.host.generation,
                number,
                listeners: Arc::clone(&self.listeners),
                private: private.clone(),
                watchdog: self.host.watchdog.map(|limit| limit / 2),
                folder: self.folder.path().to_owned(),
                orders: self.orders.subscribe(),
                failures: self.failures.clone(),
                state,
                facts,
            };
            self.tasks.spawn(instance.run());
        }
    }
}
