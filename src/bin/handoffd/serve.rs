//! The flags of the daemon, merged with its configuration file. A flag overrides the same setting
//! in the file.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use handoffd::control::default_control_path;
use handoffd::listen::{Address, ListenerConfig, Listeners, OnHandoff, SocketAccess};
use handoffd::proxy::{Balance, HeaderVersion, Proxy, ProxyConfig, UpstreamTarget, Upstreams};
use handoffd::{
    BuiltinService, Config, ConfigFile, Echo, Error, LogFormat, METRICS_LISTENER, MaxGenerations,
    Routes, ServiceConfig, Spanned, parse_log_filter, parse_log_format, parse_time, parse_wait,
    parse_workers,
};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::cli::Answer;
use crate::listen::ListenFlags;

/// The connection limit of the metrics listener. Each metrics collector uses one connection.
const COLLECTORS_MAX: usize = 64;

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
    daemon: DaemonFlags,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyFlags {
    /// Forward connections to this upstream; if given several times, to each in turn.
    ///
    /// ADDRESS is IP:PORT, [IPV6]:PORT, HOST:PORT, /PATH or @NAME (abstract). A host name stands
    /// for all its addresses.
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<String>,

    /// How often host names of --to are resolved
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_wait)]
    resolve_interval: Duration,

    /// Which upstream is tried first: round-robin, least-connections or in-order
    #[arg(long, value_name = "ORDER", default_value = "round-robin", value_parser = balance)]
    balance: Balance,

    /// How long one upstream may take to accept a connection
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_wait)]
    connect_timeout: Duration,

    /// How long a client waits while no upstream accepts
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    connect_patience: Duration,

    /// Close a connection that has been idle for this long [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    idle_timeout: Option<Duration>,

    /// How many connections each listener may have at once; more clients wait in the backlog
    /// [default: no limit]
    #[arg(long, value_name = "COUNT", requires = "listen")]
    max_connections: Option<NonZeroUsize>,

    /// Send the client's address to the upstream in a PROXY header: v1 or v2 [default: none]
    #[arg(long, value_name = "VERSION", value_parser = header)]
    send_proxy_header: Option<HeaderVersion>,

    #[command(flatten)]
    listen: ListenFlags,

    #[command(flatten)]
    daemon: DaemonFlags,
}

/// The flags that a file can set too.
#[derive(Debug, Args)]
struct DaemonFlags {
    /// How long a successor may take to be ready [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    ready_timeout: Option<Duration>,

    /// How long both generations accept connections before the old one retires; until then a
    /// failure is rolled back [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    bake: Option<Duration>,

    /// How long connections may take to end by themselves before they are cut [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    drain_timeout: Option<Duration>,

    /// Move live connections to the new generation; this is the default, and wins over `carry =
    /// false` at the top of a file
    #[arg(long, conflicts_with = "no_carry")]
    carry: bool,

    /// Drain live connections in the old generation instead of moving them to the new one
    ///
    /// A listener's own `carry` in the file wins over both flags.
    #[arg(long)]
    no_carry: bool,

    /// During a drain, how long after accept a silent connection may still send its first request
    /// [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    first_request_grace: Option<Duration>,

    /// How many generations may serve or drain at once; if there are more, the oldest must cut its
    /// drain short [default: 8]
    #[arg(long, value_name = "COUNT", value_parser = generations)]
    max_generations: Option<MaxGenerations>,

    /// A file that always holds the pid of the process to signal
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,

    /// Serve metrics on this address, in the OpenMetrics format: GET /metrics. Needs --control
    ///
    /// If a parent passes in a socket named `metrics`, that socket is used instead.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,

    /// Path of the control socket for `reload` and `status` [default: $RUNTIME_DIRECTORY/control,
    /// if systemd has created that directory]
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    control: Option<PathBuf>,

    /// How many threads serve [default: one for each core]
    #[arg(long, value_name = "COUNT", value_parser = parse_workers)]
    workers: Option<NonZeroUsize>,

    /// Stay as a small init that ends with the service, for a supervisor that watches one process;
    /// process 1 always does this
    #[arg(long)]
    init: bool,

    /// What to log: error, warn, info, debug, trace or off, also for one target, as in
    /// info,handoffd=debug [default: info]
    #[arg(long, value_name = "FILTER", value_parser = parse_log_filter)]
    log: Option<Targets>,

    /// How log records look on standard error: text, or json for one JSON object a line; the
    /// journal has fields in any case [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = parse_log_format)]
    log_format: Option<LogFormat>,
}

/// The configuration of the daemon, merged from its flags and its file.
pub(crate) struct Serve {
    pub(crate) config: Config,
    pub(crate) routes: Routes,
    /// Whether one of the listeners serves metrics.
    pub(crate) metrics: bool,
    pub(crate) workers: Option<NonZeroUsize>,
    pub(crate) log: Targets,
    pub(crate) log_format: LogFormat,
    /// The contents of the configuration file. Empty if no file is used.
    pub(crate) file: Vec<u8>,
    pub(crate) watched: Watched,
}

/// The process that the parent of the daemon, such as systemd, watches as the main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The process of the active generation. The daemon tells systemd the pid of this process.
    /// Other parents than systemd watch no process.
    TheHead,
    /// This process, which stays as a small init until the service ends.
    ThisProcess,
}

impl ServeFlags {
    /// Merges these flags with the configuration file that they name. `runtime_directory` is the
    /// default directory of the control socket.
    pub(crate) fn read(self, runtime_directory: Option<&Path>) -> Result<Serve, Answer> {
        let mut metrics = None;
        let serve = match self.config {
            Some(path) => {
                let bytes = ConfigFile::read(&path)?;
                let file = ConfigFile::parse(&path, &bytes)?;
                metrics = file.metrics.clone().map(|address| Metrics::of_file(path, address));
                Serve::by_file(file, bytes)
            }
            None => Serve::everywhere(self.listen.read(None)?, BuiltinService::Echo(Echo)),
        };
        self.daemon.over(serve, metrics, runtime_directory)
    }
}

impl ProxyFlags {
    /// Merges the flags of the command `proxy`, as [`ServeFlags::read`] does for the daemon.
    pub(crate) fn read(self, runtime_directory: Option<&Path>) -> Result<Serve, Answer> {
        let upstreams: Result<Vec<UpstreamTarget>, _> =
            self.to.iter().map(|text| text.parse()).collect();
        let proxy = ProxyConfig {
            resolve_interval: self.resolve_interval,
            balance: self.balance,
            connect_timeout: self.connect_timeout,
            connect_patience: self.connect_patience,
            idle_timeout: self.idle_timeout,
            send_header: self.send_proxy_header,
            ..ProxyConfig::to(Upstreams::new(upstreams?)?)
        };
        let listeners = self.listen.read(self.max_connections)?;
        listeners.check_upstreams(&proxy.upstreams)?;
        let serve =
            Serve::everywhere(listeners, BuiltinService::Proxy(Box::new(Proxy::new(proxy))));
        self.daemon.over(serve, None, runtime_directory)
    }
}

impl DaemonFlags {
    /// Returns `serve`, the settings of a file or the defaults, with each setting replaced for
    /// which a flag is given.
    fn over(
        self,
        serve: Serve,
        metrics: Option<Metrics>,
        runtime_directory: Option<&Path>,
    ) -> Result<Serve, Answer> {
        let metrics = match self.metrics {
            Some(text) => Some(Metrics { address: text.parse()?, file: None }),
            None => metrics,
        };
        let said = serve.config;
        let in_runtime_directory =
            || runtime_directory.map(|folder| default_control_path(Some(folder)));
        let config = Config {
            ready_timeout: self.ready_timeout.unwrap_or(said.ready_timeout),
            bake: self.bake.unwrap_or(said.bake),
            drain_timeout: self.drain_timeout.unwrap_or(said.drain_timeout),
            first_request_grace: self.first_request_grace.unwrap_or(said.first_request_grace),
            on_handoff: match (self.carry, self.no_carry) {
                (true, _) => OnHandoff::Carry,
                (false, true) => OnHandoff::Drain,
                (false, false) => said.on_handoff,
            },
            max_generations: self.max_generations.unwrap_or(said.max_generations),
            pid_file: self.pid_file.or(said.pid_file),
            control: self.control.or(said.control).or_else(in_runtime_directory),
            listeners: said.listeners,
            identity: said.identity,
        };
        let is_shown = metrics.is_some();
        let config = match metrics {
            Some(metrics) => metrics.beside(config)?,
            None => config,
        };
        Ok(Serve {
            config,
            metrics: is_shown,
            workers: self.workers.or(serve.workers),
            log: self.log.unwrap_or(serve.log),
            log_format: self.log_format.unwrap_or(serve.log_format),
            watched: if self.init { Watched::ThisProcess } else { serve.watched },
            ..serve
        })
    }
}

/// The address of the listener that serves metrics.
struct Metrics {
    address: Address,
    /// The configuration file that sets the address, with line and column. `None` if the flag
    /// `--metrics` sets the address.
    file: Option<(PathBuf, usize, usize)>,
}

impl Metrics {
    fn of_file(file: PathBuf, Spanned { value, line, column }: Spanned<Address>) -> Self {
        Self { address: value, file: Some((file, line, column)) }
    }

    /// Adds the metrics listener to the configuration.
    fn beside(self, config: Config) -> Result<Config, Answer> {
        let Self { address, file } = self;
        if config.control.is_none() {
            let why = "needs a control socket: that is where the counters are asked for";
            return Err(match file {
                Some((file, line, column)) => Error::ConfigFile {
                    file,
                    line,
                    column,
                    what: format!("metrics {why}, expected control = \"/PATH\""),
                }
                .into(),
                None => Answer::usage(format!("--metrics {why} (--control)")),
            });
        }
        let mut listeners = match config.listeners {
            Listeners::Named(named) => named.as_slice().to_vec(),
            Listeners::Inherited => {
                return Err(Answer::usage(
                    "--metrics needs --listen beside it, or --config".to_owned(),
                ));
            }
        };
        // Drain these connections at a handoff instead of moving them, because each handles only
        // one request.
        let (name, on_handoff) = (Some(METRICS_LISTENER.parse()?), Some(OnHandoff::Drain));
        let (max_connections, access) =
            (NonZeroUsize::new(COLLECTORS_MAX), SocketAccess::default());
        listeners.push(ListenerConfig { name, address, max_connections, on_handoff, access });
        Ok(Config { listeners: Listeners::new(listeners)?, ..config })
    }
}

impl Serve {
    /// Uses the service `served` on every listener, and the default for every other setting.
    fn everywhere(listeners: Listeners, served: BuiltinService) -> Self {
        Self {
            config: Config { listeners, ..Config::default() },
            routes: Routes::all(served),
            metrics: false,
            workers: None,
            log: Targets::new().with_default(LevelFilter::INFO),
            log_format: LogFormat::default(),
            file: Vec::new(),
            watched: Watched::TheHead,
        }
    }

    /// Uses the settings of the parsed configuration file `file`. `bytes` are the file's contents.
    fn by_file(file: ConfigFile, bytes: Vec<u8>) -> Self {
        // No listener uses this echo service, because the file names the service of every listener.
        let routes = file.services.iter().fold(
            Routes::all(BuiltinService::Echo(Echo)),
            |routes, (name, service)| {
                let served = match service {
                    ServiceConfig::Echo => BuiltinService::Echo(Echo),
                    ServiceConfig::Proxy(proxy) => {
                        BuiltinService::Proxy(Box::new(Proxy::new((**proxy).clone())))
                    }
                };
                routes.with(name, served)
            },
        );
        let default = Self::everywhere(file.config.listeners.clone(), BuiltinService::Echo(Echo));
        Self {
            config: file.config,
            routes,
            metrics: false,
            workers: file.workers,
            log: file.log.unwrap_or(default.log),
            log_format: file.log_format.unwrap_or_default(),
            file: bytes,
            watched: default.watched,
        }
    }
}

fn balance(text: &str) -> Result<Balance, &'static str> {
    text.parse().map_err(|_| "expected round-robin, least-connections or in-order")
}

fn header(text: &str) -> Result<HeaderVersion, &'static str> {
    text.parse().map_err(|_| "expected v1 or v2")
}

fn generations(text: &str) -> Result<MaxGenerations, &'static str> {
    let count = text.parse().ok().and_then(|count| MaxGenerations::new(count).ok());
    count.ok_or("expected 2 to 64: one that serves and those that drain")
}

/// Parses a path that can be the address of a Unix socket.
fn socket_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = text.parse().ok().and_then(|address: Address| address.path().map(Path::to_owned));
    path.ok_or("expected an absolute path of at most 107 bytes")
}
