//! Reads the command line into values that cannot be wrong.

use std::num::ParseIntError;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::error::{ContextValue, ErrorKind};
use handoffd::{Config, ListenerConfig, Listeners, MaxGenerations};
use tracing_subscriber::filter::Targets;

/// Longest time that a flag takes: beyond it a mistyped unit is more likely than a wish.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A server that can be replaced while it serves. It echoes what it is sent.
#[derive(Debug, Parser)]
#[command(name = "handoffd", version, after_help = SIGNALS, max_term_width = 100)]
struct Flags {
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

    /// What to log: error, warn, info, debug or trace, also for one target, as in info,handoffd=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: Targets,
}

const SIGNALS: &str = "\
Times are seconds, or a number with a unit: 500ms, 30s, 2m.

Signals:
  HUP        replace this process by whatever now lies at its path
  TERM, INT  drain and end; a second INT cuts
  QUIT       cut and end

Exit codes:
   0  done
  64  the command line is wrong
  71  the operating system refused
  78  the configuration or what was inherited cannot be served";

/// What was asked for.
pub(crate) struct Arguments {
    pub(crate) config: Config,
    pub(crate) log: Targets,
}

/// Why nothing is served.
pub(crate) enum Answer {
    /// Help or the version was asked for.
    Print(String),
    /// The command line is wrong.
    Refuse(String),
}

/// Reads the command line.
pub(crate) fn parse() -> Result<Arguments, Answer> {
    let flags = Flags::try_parse().map_err(|error| {
        let is_asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if is_asked_for { Answer::Print(error.render().to_string()) } else { Answer::Refuse(one_line(&error)) }
    })?;
    let listeners: Result<Vec<ListenerConfig>, _> = flags.listen.iter().map(|text| text.parse()).collect();
    let listeners = listeners.and_then(Listeners::exactly).map_err(|error| Answer::Refuse(error.to_string()))?;
    let config = Config {
        listeners,
        ready_timeout: flags.ready_timeout,
        bake: flags.bake,
        drain_timeout: flags.drain_timeout,
        first_request_grace: flags.first_request_grace,
        max_generations: flags.max_generations,
        pid_file: flags.pid_file,
    };
    Ok(Arguments { config, log: flags.log })
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
