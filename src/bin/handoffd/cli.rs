//! Reads the command line into values that cannot be wrong.

use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::metrics;
use clap::error::{ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use handoffd::{
    Address, Config, Echo, Generation, Identity, ListenerConfig, Listeners, MaxGenerations, Proxy, ProxyConfig,
    ReloadOptions, Routes, Served, Upstreams, default_control_path,
};
use tracing_subscriber::filter::Targets;

/// Longest time that a flag takes: beyond it a mistyped unit is more likely than a wish.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A server that can be replaced while it serves. It echoes what it is sent.
#[derive(Debug, Parser)]
#[command(name = "handoffd", version, after_help = AFTERWARDS, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Line {
    #[command(flatten)]
    serve: ServeFlags,

    #[command(subcommand)]
    command: Option<CommandLine>,
}

#[derive(Debug, Subcommand)]
enum CommandLine {
    /// Replace the generation that serves by whatever now lies at its path, and say how that ended
    ///
    /// Returns when the new generation serves (0), or why it does not: see the exit codes of `handoffd --help`.
    Reload(ReloadFlags),
    /// Show every generation: its process, version, state and connections
    Status(StatusFlags),
    /// Pass every connection on to an upstream
    Proxy(ProxyFlags),
    /// Read what would be served, and say what is wrong with it; bind and touch nothing
    Check(ServeFlags),
    /// Say which settings of the systemd unit would break a handoff, and why
    Doctor(DoctorFlags),
}

#[derive(Debug, Args)]
struct ProxyFlags {
    /// Pass them on to this one; given several times, to each in turn.
    ///
    /// ADDRESS is IP:PORT, [IPV6]:PORT, /PATH or @NAME (abstract).
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<String>,

    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Args)]
struct ServeFlags {
    /// Listen here; may be given several times.
    ///
    /// ADDRESS is IP:PORT, [IPV6]:PORT, tcp6:[IPV6]:PORT (IPv6 alone), /PATH or @NAME (abstract). A socket that a parent
    /// passes in under NAME is used instead. Without this, all that is passed in is served, or else 127.0.0.1:48879.
    #[arg(long, value_name = "[NAME=]ADDRESS")]
    listen: Vec<String>,

    /// How long a successor may take to be ready
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    ready_timeout: Duration,

    /// How long old and new both accept before the old one retires; until then a failure is rolled back
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    bake: Duration,

    /// How long connections get to end by themselves before they are cut
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    drain_timeout: Duration,

    /// How long a new connection may take to send its first request when a drain begins
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    first_request_grace: Duration,

    /// How many generations may serve or drain at once; beyond, the oldest's drain is cut short
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = generations)]
    max_generations: MaxGenerations,

    /// A file that always names the process to signal
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,

    /// Listen here for whoever collects metrics, in the OpenMetrics format: GET /metrics. Needs --listen and --control
    ///
    /// A socket that a parent passes in under the name `metrics` is used instead.
    #[arg(long, value_name = "ADDRESS", requires = "listen")]
    metrics: Option<String>,

    /// Where `reload` and `status` are heard; without it $RUNTIME_DIRECTORY/control, if systemd has made that folder
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    control: Option<PathBuf>,

    /// Stay as a small init that ends with the service, for a supervisor that watches one process; process 1 always does
    #[arg(long)]
    init: bool,

    /// What to log: error, warn, info, debug or trace, also for one target, as in info,handoffd=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: Targets,
}

#[derive(Debug, Args)]
struct Where {
    /// Where the daemon listens for commands; without it $RUNTIME_DIRECTORY/control, or /run/handoffd/control
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ReloadFlags {
    #[command(flatten)]
    daemon: Where,

    /// Give up, and keep the old generation, if the new one does not serve by then
    #[arg(long, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,

    /// Only if this generation serves now
    #[arg(long, value_name = "NUMBER", value_parser = ordinal)]
    expect_generation: Option<Generation>,

    /// Return only when the old generation's last connection has ended
    #[arg(long)]
    wait_drained: bool,
}

#[derive(Debug, Args)]
struct StatusFlags {
    #[command(flatten)]
    daemon: Where,

    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,

    /// Follow what is under way, a line for each change, until nothing drains any more
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct DoctorFlags {
    #[command(flatten)]
    daemon: Where,

    /// The unit to look at; without it that of the daemon that answers
    unit: Option<String>,
}

const AFTERWARDS: &str = "\
Times are seconds, or a number with a unit: 500ms, 30s, 2m.

Signals:
  HUP        replace this process by whatever now lies at its path
  TERM, INT  drain and end; a second INT cuts
  QUIT       cut and end

Exit codes:
   0  done
  64  the command line is wrong
  69  nobody answers on the control socket
  70  the new generation did not take over; the old one serves on
  71  the operating system refused
  75  try again: a handoff is under way, or time ran out; the old one serves on
  76  the new generation was ready, and was rolled back; the old one serves on
  77  the control socket does not hear this user
  78  the configuration or what was inherited cannot be served, or the unit breaks a handoff";

/// What was asked for.
pub(crate) enum Command {
    Serve(Serve),
    Check(Serve),
    Reload { control: PathBuf, options: ReloadOptions },
    Status { control: PathBuf, form: Form, span: Span },
    Doctor { control: PathBuf, unit: Option<String> },
}

/// What to serve.
pub(crate) struct Serve {
    pub(crate) config: Config,
    pub(crate) routes: Routes,
    /// Whether one of the listeners is for metrics.
    pub(crate) metrics: bool,
    pub(crate) log: Targets,
    pub(crate) watched: Watched,
}

/// Whom whoever started this process watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Whoever is the head: systemd is told; others do not watch.
    TheHead,
    /// This process.
    ThisProcess,
}

/// For whom to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    People,
    Programs,
}

/// How long to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    Once,
    Watch,
}

/// Why nothing is done.
pub(crate) enum Answer {
    /// Help or the version was asked for.
    Print(String),
    /// The command line is wrong.
    Refuse(String),
}

/// Reads the command line. `runtime_directory` is where sockets are kept that are not said to be elsewhere.
pub(crate) fn parse(runtime_directory: Option<&Path>) -> Result<Command, Answer> {
    let line = Line::try_parse().map_err(|error| {
        let is_asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if is_asked_for { Answer::Print(error.render().to_string()) } else { Answer::Refuse(one_line(&error)) }
    })?;
    let find = |daemon: Where| daemon.control.unwrap_or_else(|| default_control_path(runtime_directory));
    Ok(match line.command {
        None => Command::Serve(serve(line.serve, runtime_directory)?),
        Some(CommandLine::Proxy(flags)) => Command::Serve(proxy(flags, runtime_directory)?),
        Some(CommandLine::Check(flags)) => Command::Check(serve(flags, runtime_directory)?),
        Some(CommandLine::Reload(flags)) => Command::Reload {
            options: ReloadOptions {
                expect_generation: flags.expect_generation,
                timeout_ms: flags.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
                wait_drained: flags.wait_drained,
            },
            control: find(flags.daemon),
        },
        Some(CommandLine::Doctor(flags)) => Command::Doctor { control: find(flags.daemon), unit: flags.unit },
        Some(CommandLine::Status(flags)) => Command::Status {
            control: find(flags.daemon),
            form: if flags.json { Form::Programs } else { Form::People },
            span: if flags.watch { Span::Watch } else { Span::Once },
        },
    })
}

fn proxy(flags: ProxyFlags, runtime_directory: Option<&Path>) -> Result<Serve, Answer> {
    let upstreams: Result<Vec<Address>, _> = flags.to.iter().map(|text| text.parse()).collect();
    let upstreams = upstreams.and_then(Upstreams::new).map_err(|error| Answer::Refuse(error.to_string()))?;
    let routes = Routes::all(Served::Proxy(Box::new(Proxy::new(ProxyConfig::to(upstreams)))));
    Ok(Serve { routes, ..serve(flags.serve, runtime_directory)? })
}

fn serve(flags: ServeFlags, runtime_directory: Option<&Path>) -> Result<Serve, Answer> {
    let metrics = flags.metrics.map(|address| format!("{}={address}", metrics::LISTENER));
    let listeners: Result<Vec<ListenerConfig>, _> =
        flags.listen.iter().chain(&metrics).map(|text| text.parse()).collect();
    let listeners = listeners.and_then(Listeners::exactly).map_err(|error| Answer::Refuse(error.to_string()))?;
    let config = Config {
        listeners,
        ready_timeout: flags.ready_timeout,
        bake: flags.bake,
        drain_timeout: flags.drain_timeout,
        first_request_grace: flags.first_request_grace,
        max_generations: flags.max_generations,
        pid_file: flags.pid_file,
        control: flags.control.or_else(|| runtime_directory.map(|folder| default_control_path(Some(folder)))),
        identity: Identity::default(),
    };
    if metrics.is_some() && config.control.is_none() {
        return Err(Answer::Refuse("--metrics needs --control: that is where the counters are asked for".to_owned()));
    }
    let watched = if flags.init { Watched::ThisProcess } else { Watched::TheHead };
    let routes = Routes::all(Served::Echo(Echo));
    Ok(Serve { config, routes, metrics: metrics.is_some(), log: flags.log, watched })
}

/// The first line of what clap says, which names the flag and the value; the rest is usage.
fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::InvalidUtf8 {
        // Clap does not say which.
        let culprit = std::env::args_os().find(|argument| argument.to_str().is_none()).unwrap_or_default();
        return format!("argument {culprit:?} is not UTF-8 (see --help)");
    }
    let mut text = error.render().to_string();
    for (_, value) in error.context() {
        if let ContextValue::String(given) = value {
            // What was given may hold line breaks.
            text = text.replace(given.as_str(), &printable(given));
        }
    }
    let first = text.lines().next().unwrap_or_default();
    printable(first.strip_prefix("error: ").unwrap_or(first)) + " (see --help)"
}

/// With control characters as escapes.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

/// Seconds, or a number with a unit.
fn time(text: &str) -> Result<Duration, String> {
    let seconds: Result<u64, ParseIntError> = text.parse();
    let time = match seconds {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|_| "expected a time, as in 500ms, 30s or 2m".to_owned())?,
    };
    if time > LONGEST { Err("expected at most 7 days".to_owned()) } else { Ok(time) }
}

fn generations(text: &str) -> Result<MaxGenerations, String> {
    let why = || "expected 2 to 64: one that serves and those that drain".to_owned();
    text.parse().ok().and_then(|count| MaxGenerations::new(count).ok()).ok_or_else(why)
}

fn ordinal(text: &str) -> Result<Generation, String> {
    text.parse().map_err(|_| "expected the number of a generation, from 1".to_owned())
}

/// A path at which a socket can be.
fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.parse().ok().and_then(|address: Address| address.path().map(Path::to_owned));
    path.ok_or_else(|| "expected an absolute path of at most 107 bytes".to_owned())
}
