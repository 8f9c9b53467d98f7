//! The settings with which the daemon starts: its flags merged with its configuration file. A flag
//! overrides the same setting in the file.
//!
//! `daemon`, `listener`, `program` and `proxy` declare each setting once, for both the flag and the
//! file. `kinds` has the parsers for their values. `file` and `listeners` read the configuration
//! file, and `mistake` reports errors.

mod daemon;
mod file;
mod filter;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod kinds;
mod listener;
mod listeners;
mod mistake;
mod program;
mod program_kinds;
mod proxy;
mod relay;
#[cfg(test)]
mod tests;
mod time;
mod value;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use handoffd::listen::{Address, ListenerConfig, Listeners, METRICS_LISTENER, OnHandoff};
use handoffd::program::{ProgramConfig, check_settings};
use handoffd::proxy::{Loop, Proxy, Upstreams, find_loop};
use handoffd::{Config, Echo};
use tracing_subscriber::filter::{LevelFilter, Targets};

use self::daemon::DaemonSettings;
use self::file::{ConfigFile, FileSettings, ServiceConfig};
use self::listener::ListenFlags;
use self::mistake::{Mistake, SettingSource};
use self::program::ProgramSettings;
use self::proxy::ProxySettings;
use self::value::{Given, value};
use crate::failure::Failure;
use crate::routes::{BuiltinService, Routes};

pub(crate) use self::kinds::LogFormat;
pub(crate) use self::time::parse_timeout;

/// The connection limit of the metrics listener. Each metrics collector uses one connection.
const COLLECTORS_MAX: usize = 64;

/// The flags of `handoffd` when no command is given.
#[derive(Debug, Args)]
pub(crate) struct ServeFlags {
    /// Read the configuration from this file, which names the listeners; each generation reads it
    /// again
    ///
    /// The format is TOML; docs/handoffd.toml explains every setting. A flag wins over the same
    /// setting in the file.
    #[arg(long, value_name = "FILE", conflicts_with = "listen")]
    config: Option<PathBuf>,

    #[command(flatten)]
    listen: ListenFlags,

    #[command(flatten)]
    daemon: DaemonSettings,

    #[command(flatten)]
    init: InitFlag,
}

/// The flags of the command `proxy`.
#[derive(Debug, Args)]
pub(crate) struct ProxyFlags {
    #[command(flatten)]
    proxy: ProxySettings,

    #[command(flatten)]
    listen: ListenFlags,

    #[command(flatten)]
    daemon: DaemonSettings,

    #[command(flatten)]
    init: InitFlag,
}

/// The flags of the command `run`.
#[derive(Debug, Args)]
pub(crate) struct RunFlags {
    #[command(flatten)]
    program: ProgramSettings,

    #[command(flatten)]
    listen: ListenFlags,

    #[command(flatten)]
    daemon: DaemonSettings,

    #[command(flatten)]
    init: InitFlag,
}

#[derive(Debug, Args)]
struct InitFlag {
    /// Keep the first process as a small init until the service ends, for a supervisor that watches
    /// one process; process 1 always does this
    #[arg(long)]
    init: bool,
}

/// All settings with which the daemon starts, merged from its flags and its configuration file.
pub(crate) struct StartSettings {
    pub(crate) config: Config,
    pub(crate) served: Served,
    /// Whether one of the listeners serves metrics.
    pub(crate) metrics: bool,
    pub(crate) workers: Option<NonZeroUsize>,
    pub(crate) log: Targets,
    pub(crate) log_format: LogFormat,
    /// The contents of the configuration file. Empty if no file is used.
    pub(crate) file: Vec<u8>,
    pub(crate) watched: Watched,
}

/// The server for the listeners: either built-in services or a program.
pub(crate) enum Served {
    /// The services of this daemon.
    Services(Routes),
    /// A program that this daemon runs.
    Program(Box<ProgramConfig>),
}

/// The process that the parent of the daemon, such as systemd, watches as the main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The process of the active generation. Only systemd can watch it, because the daemon tells
    /// systemd the pid of this process after each handoff.
    ActiveGeneration,
    /// This process, which stays as a small init until the service ends.
    ThisProcess,
}

impl ServeFlags {
    /// Merges these flags with the configuration file that they name. `runtime_directory` is the
    /// default directory of the control socket.
    pub(crate) fn read(self, runtime_directory: Option<&Path>) -> Result<StartSettings, Failure> {
        let Self { config, listen, daemon, init } = self;
        let Some(path) = config else {
            let echo = Served::Services(Routes::all(BuiltinService::Echo(Echo)));
            return start(daemon, listen.read()?, echo, init, runtime_directory)
                .map_err(Mistake::in_flags);
        };
        let file = ConfigFile::open(path)?;
        let FileSettings { daemon: in_file, listeners, services, program, stop_timeout } =
            file.parse()?;
        let served = match program {
            Some(program) => Served::Program(Box::new(program)),
            None => Served::Services(routes(&services)),
        };
        let daemon = daemon.or(in_file);
        let checked = daemon.check_stop_timeout(stop_timeout.as_ref(), SettingSource::File);
        checked.map_err(|mistake| file.failure(mistake))?;
        let start = start(daemon, listeners, served, init, runtime_directory);
        let start = start.map_err(|mistake| file.failure(mistake))?;
        Ok(StartSettings { file: file.into_bytes(), ..start })
    }
}

impl ProxyFlags {
    /// Combines the flags of the command `proxy` into settings. `runtime_directory` is the default
    /// directory of the control socket.
    pub(crate) fn read(self, runtime_directory: Option<&Path>) -> Result<StartSettings, Failure> {
        let listeners = self.listen.read()?;
        let addresses = addresses(&listeners);
        let proxy = self.proxy.into_config(SettingSource::Flags, &addresses);
        let proxy = proxy.map_err(Mistake::in_flags)?;
        check_loop(&addresses, &proxy.upstreams)?;
        let routes = Routes::all(BuiltinService::Proxy(Box::new(Proxy::new(proxy))));
        let served = Served::Services(routes);
        start(self.daemon, listeners, served, self.init, runtime_directory)
            .map_err(Mistake::in_flags)
    }
}

impl RunFlags {
    /// Combines the flags of the command `run` into settings. `runtime_directory` is the default
    /// directory of the control socket.
    pub(crate) fn read(self, runtime_directory: Option<&Path>) -> Result<StartSettings, Failure> {
        let listeners = self.listen.read()?;
        let stop_timeout = self.program.stop_timeout.clone();
        let checked = self.daemon.check_stop_timeout(stop_timeout.as_ref(), SettingSource::Flags);
        checked.map_err(Mistake::in_flags)?;
        let program = self.program.into_config(SettingSource::Flags, &addresses(&listeners));
        let program = program.map_err(Mistake::in_flags)?;
        check_settings(&program, &listeners)?;
        let served = Served::Program(Box::new(program));
        start(self.daemon, listeners, served, self.init, runtime_directory)
            .map_err(Mistake::in_flags)
    }
}

/// Returns the configured addresses of listeners.
fn addresses(listeners: &Listeners) -> Vec<&Address> {
    match listeners {
        Listeners::Inherited => Vec::new(),
        Listeners::Named(named) => named.as_slice().iter().map(|one| &one.address).collect(),
    }
}

/// Checks that a proxy on these addresses does not connect to itself.
fn check_loop(addresses: &[&Address], upstreams: &Upstreams) -> Result<(), Failure> {
    let all: Vec<_> = addresses.iter().map(|address| (*address, upstreams.as_slice())).collect();
    let Some(Loop { upstream, leads_to, .. }) = find_loop(&all) else { return Ok(()) };
    Err(Failure::Usage(format!(
        "the upstream {} leads back to the listener {}: connections would loop forever",
        upstreams.as_slice()[upstream],
        addresses[leads_to]
    )))
}

/// Returns the service of each listener of a configuration file.
fn routes(services: &[(handoffd::listen::ListenerName, ServiceConfig)]) -> Routes {
    // No listener uses this echo service, because the file names the service of every listener.
    let none = Routes::all(BuiltinService::Echo(Echo));
    services.iter().fold(none, |routes, (name, service)| {
        let service = match service {
            ServiceConfig::Echo => BuiltinService::Echo(Echo),
            ServiceConfig::Proxy(proxy) => {
                BuiltinService::Proxy(Box::new(Proxy::new((**proxy).clone())))
            }
            ServiceConfig::Program => return routes,
        };
        routes.with(name, service)
    })
}

/// Checks and combines the settings of the daemon and of its listeners, so that the daemon can
/// start.
fn start(
    daemon: DaemonSettings,
    listeners: Listeners,
    served: Served,
    InitFlag { init }: InitFlag,
    runtime_directory: Option<&Path>,
) -> Result<StartSettings, Mistake> {
    if let Served::Program(program) = &served {
        daemon.check_ready_time(program)?;
    }
    let metrics = daemon.metrics.clone();
    let workers = value(daemon.workers.clone());
    let log = value(daemon.log.clone());
    let log_format = value(daemon.log_format.clone()).unwrap_or_default();
    let mut config = daemon.into_config(listeners, runtime_directory);
    let shows_metrics = metrics.is_some();
    if let Some(address) = metrics {
        add_metrics(&mut config, address)?;
    }
    Ok(StartSettings {
        config,
        served,
        metrics: shows_metrics,
        workers,
        log: log.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO)),
        log_format,
        file: Vec::new(),
        watched: if init { Watched::ThisProcess } else { Watched::ActiveGeneration },
    })
}

/// Adds the metrics listener to the configuration.
fn add_metrics(config: &mut Config, address: Given<Address>) -> Result<(), Mistake> {
    let Given { value: address, offset } = address;
    let refuse = |what: String| Mistake::at(offset, what);
    if config.control.is_none() {
        let (metrics, control) = match offset {
            Some(_) => ("metrics", "expected control = \"/PATH\""),
            None => ("--metrics", "expected --control PATH"),
        };
        return Err(refuse(format!(
            "{metrics} needs a control socket, to read the counters: {control}"
        )));
    }
    let mut listeners = match &config.listeners {
        Listeners::Named(named) => named.as_slice().to_vec(),
        Listeners::Inherited => {
            return Err(refuse("--metrics needs --listen or --config".to_owned()));
        }
    };
    let mut listener = ListenerConfig::new(address);
    listener.name = Some(METRICS_LISTENER.parse().map_err(|_| refuse("bad name".to_owned()))?);
    listener.max_connections = NonZeroUsize::new(COLLECTORS_MAX);
    // Drain these connections at a handoff instead of moving them, because each handles only one
    // request.
    listener.on_handoff = Some(OnHandoff::Drain);
    listeners.push(listener);
    let listeners = Listeners::new(listeners).map_err(|error| refuse(error.to_string()))?;
    config.listeners = listeners;
    Ok(())
}
