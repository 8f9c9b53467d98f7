//! Sets up a generation (one process of the service): its listeners, its settings, and the threads
//! that serve connections.

use std::collections::HashSet;
#[cfg(feature = "program")]
use std::path::Path;

use super::driver::{Driver, RunReport};
use super::life::{Life, ServerLink};
use crate::config::{Config, Listeners};
#[cfg(feature = "program")]
use crate::config::{ListenerName, ProgramConfig};
use crate::error::Error;
use crate::handoff::Inheritance;
#[cfg(feature = "program")]
use crate::program::{ProgramHost, ProgramPlane};
use crate::server::{Server, Workers};
#[cfg(feature = "program")]
use crate::service::Echo;
use crate::service::Service;

/// The settings of one process of the service (a generation) before it starts to serve.
///
/// If the start fails, the predecessor (the process that serves now) receives the reason and keeps
/// serving.
///
/// ```no_run
/// use handoffd::{Builder, Echo, Inheritance};
/// use std::time::Duration;
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let inheritance = Inheritance::take()?; // first: it changes the environment
///     let server = Builder::new(inheritance)
///         .listen("web=127.0.0.1:7000")?
///         .listen("admin=/run/app/admin.sock")?
///         .configure(|config| config.bake = Duration::from_secs(10));
///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
///     runtime.block_on(server.run(Echo))?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Builder {
    pub(super) inheritance: Inheritance,
    pub(super) config: Config,
    pub(super) workers: Option<Workers>,
    /// The names of the listeners that stop last when the service stops; see [`Builder::last`].
    pub(super) last: HashSet<String>,
    pub(super) life: Life,
    pub(super) line: ServerLink,
}

impl Builder {
    /// Creates a builder with the default settings. If [`Builder::listen`] adds no listener, the
    /// generation uses the listeners that a parent passed in. Without such listeners, it listens on
    /// 127.0.0.1:48879 under the name `default`.
    #[must_use]
    pub fn new(inheritance: Inheritance) -> Self {
        let (life, line) = Life::new(inheritance.generation());
        let (config, workers, last) = (Config::default(), None, HashSet::new());
        Self { inheritance, config, workers, last, life, line }
    }

    /// Takes what this process inherits, such as listening sockets, and creates a builder with it.
    /// See [`Inheritance::take`]. Call this function first in `main`, before any thread exists.
    ///
    /// If the service manager has created a runtime directory (`RuntimeDirectory=` in the unit),
    /// the control socket is `control` in this directory. Then `handoffd reload --control PATH`
    /// reports the outcome of a reload.
    ///
    /// # Errors
    /// Returns the same errors as [`Inheritance::take`].
    pub fn from_env() -> Result<Self, Error> {
        let inheritance = Inheritance::take()?;
        let control = inheritance.runtime_directory().map(|folder| folder.join("control"));
        Ok(Self::new(inheritance).configure(|config| config.control = control))
    }

    /// Adds a listener, written as `[NAME=]ADDRESS`. If a parent passed in a socket with this name
    /// or address, the listener uses that socket. Otherwise the generation binds the address.
    ///
    /// # Errors
    /// Returns [`Error::Address`] or [`Error::ListenerName`] if the text is not a valid listener.
    /// Returns [`Error::DuplicateName`], [`Error::DuplicateAddress`] or
    /// [`Error::OverlappingAddresses`] if the listener conflicts with an earlier one.
    pub fn listen(mut self, listener: &str) -> Result<Self, Error> {
        let mut all = match &self.config.listeners {
            Listeners::Inherited => Vec::new(),
            Listeners::Named(named) => named.as_slice().to_vec(),
        };
        let added = listener.parse().and_then(|listener| {
            all.push(listener);
            Listeners::new(all)
        });
        match added {
            Ok(listeners) => self.config.listeners = listeners,
            Err(error) => {
                self.inheritance.refuse(&error);
                return Err(error);
            }
        }
        Ok(self)
    }

    /// Lets the listener called `name` stop last when the service stops: it accepts until the
    /// connections of all other listeners have ended. Use it for a listener that reports the state
    /// of the server. At a handoff, all listeners stop together, because the successor accepts on
    /// them. Has an effect only with [`Builder::serve_with`] and [`Builder::serve_here`].
    #[must_use]
    pub fn last(mut self, name: &str) -> Self {
        self.last.insert(name.to_owned());
        self
    }

    /// Returns a handle to this generation, for a service that is run with [`Builder::run`].
    /// Through the handle, the service learns when this process becomes active, and when it must
    /// stop accepting.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life.clone()
    }

    /// Returns what this process has inherited, such as its generation number.
    #[must_use]
    pub const fn inheritance(&self) -> &Inheritance {
        &self.inheritance
    }

    /// Tells the predecessor, if one exists, why this process cannot serve. The predecessor then
    /// keeps serving.
    pub fn refuse(self, reason: &dyn std::fmt::Display) {
        self.inheritance.refuse(reason);
    }

    /// Changes the configuration by calling `change`.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Serves the connections in the runtimes of `workers` instead of in the caller's runtime. The
    /// caller's runtime still handles signals, deadlines and handoffs. Has no effect with
    /// [`Builder::serve_with`] and [`Builder::serve_here`].
    #[must_use]
    pub fn workers(mut self, workers: Workers) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Runs the generation with a service, as [`crate::run`] does.
    ///
    /// # Errors
    /// Fails when this generation cannot start to accept connections, or ends early. A predecessor
    /// that has not handed over yet receives the reason and keeps serving.
    pub async fn run<S: Service>(self, service: S) -> Result<RunReport, Error> {
        let workers = self.workers.unwrap_or_else(Workers::here);
        let server = Server::new(service, workers, self.config.clone());
        Driver::start(self.config, self.inheritance, server, self.line)?.live()?.run().await
    }

    /// Runs the generation with a program that serves the listeners. The caller must be the main
    /// thread, because the kernel stops the program when the thread that started it ends.
    ///
    /// # Errors
    /// Fails when the program does not become ready, or the generation ends early. A predecessor
    /// that has not handed over yet receives the reason and keeps serving.
    #[cfg(feature = "program")]
    pub async fn run_program(self, program: ProgramConfig) -> Result<RunReport, Error> {
        self.run_program_beside(program, Echo, Vec::new()).await
    }

    /// Runs the generation as [`Builder::run_program`] does, but serves the listeners in `names`
    /// with a service in this process.
    ///
    /// # Errors
    /// Returns the same errors as [`Builder::run_program`].
    #[cfg(feature = "program")]
    pub async fn run_program_beside(
        self,
        program: ProgramConfig,
        service: impl Service,
        names: Vec<ListenerName>,
    ) -> Result<RunReport, Error> {
        let Self { inheritance, config, workers, line, .. } = self;
        let workers = workers.unwrap_or_else(Workers::here);
        let host = ProgramHost {
            generation: inheritance.generation(),
            runtime_directory: inheritance.runtime_directory().map(Path::to_owned),
            watchdog: inheritance.program.watchdog(),
            drain_timeout: config.drain_timeout,
        };
        match ProgramPlane::new(program, host, &config, workers, (service, names)) {
            Ok(plane) => Driver::start(config, inheritance, plane, line)?.live()?.run().await,
            Err(error) => {
                inheritance.refuse(&error);
                Err(error)
            }
        }
    }
}
