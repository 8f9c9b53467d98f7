//! The command line of handoffd. The parser accepts only valid values.

mod deferred;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use handoffd::Generation;
use handoffd::control::{ReloadOptions, default_control_path};
use handoffd::text::escaped;

use self::deferred::Deferred;
use crate::failure::Failure;
use crate::settings::{ProxyFlags, RunFlags, ServeFlags, StartSettings, parse_timeout};

/// Zero-downtime TCP proxy and socket-handoff daemon. Without `proxy` or --config it is an echo
/// server
#[derive(Debug, Parser)]
#[command(name = "handoffd", version, after_help = AFTERWARDS, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    serve: ServeFlags,

    #[command(subcommand)]
    command: Option<CommandLine>,
}

#[derive(Debug, Subcommand)]
enum CommandLine {
    /// Start the current binary and configuration, hand over to it, and report the outcome
    ///
    /// Returns 0 when the new generation serves. Any other exit code says why it does not: see
    /// `handoffd --help`.
    Reload(ReloadFlags),
    /// Show every generation: its process, version, state and connections
    Status(StatusFlags),
    /// Run a server in any language, and replace it at each reload
    Run(Box<Deferred<RunFlags>>),
    /// Run as a proxy, which forwards every connection to an upstream
    Proxy(Box<Deferred<ProxyFlags>>),
    /// Check the configuration and report mistakes, without binding or changing anything
    ///
    /// Takes the same arguments as the daemon: flags, a file, or `proxy` or `run` and their flags.
    Check(Box<Deferred<CheckFlags>>),
    /// Report which settings of the systemd unit would break a handoff, and why
    Doctor(DoctorFlags),
    /// Print the completions of all commands and flags for a shell
    Completions {
        /// The shell: bash, zsh or fish
        #[arg(value_parser = shell)]
        shell: Shell,
    },
    /// Write the man pages: one for each command
    Man {
        /// The directory for the man pages, which must exist
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct CheckFlags {
    #[command(flatten)]
    serve: ServeFlags,

    #[command(subcommand)]
    command: Option<Checked>,
}

#[derive(Debug, Subcommand)]
enum Checked {
    /// Run a server in any language, and replace it at each reload
    Run(Box<Deferred<RunFlags>>),
    /// Run as a proxy, which forwards every connection to an upstream
    Proxy(Box<Deferred<ProxyFlags>>),
}

#[derive(Debug, Args)]
struct Where {
    /// Path of the daemon's control socket [default: $RUNTIME_DIRECTORY/control, or
    /// /run/handoffd/control]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ReloadFlags {
    #[command(flatten)]
    daemon: Where,

    /// Give up, and keep the old generation, if the new one does not serve within this time
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<Duration>,

    /// Reload only if the generation with this number serves now
    #[arg(long, value_name = "NUMBER", value_parser = ordinal)]
    expect_generation: Option<Generation>,

    /// Return only when the old generation has no connection left: all have moved, ended or been
    /// cut
    #[arg(long)]
    wait_drained: bool,
}

impl ReloadFlags {
    fn options(&self) -> ReloadOptions {
        let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut options = ReloadOptions::default();
        options.expect_generation = self.expect_generation;
        options.timeout_ms = self.timeout.map(milliseconds);
        options.wait_drained = self.wait_drained;
        options
    }
}

#[derive(Debug, Args)]
struct StatusFlags {
    #[command(flatten)]
    daemon: Where,

    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,

    /// Print a line for each change, until only one generation is left and serves
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct DoctorFlags {
    #[command(flatten)]
    daemon: Where,

    /// Ask the service manager of the calling user [default: the one that runs the daemon]
    #[arg(long)]
    user: bool,

    /// The unit to examine [default: the unit of the daemon that answers]
    unit: Option<String>,
}

impl DoctorFlags {
    fn read(self, runtime_directory: Option<&Path>) -> Command {
        let users = users_runtime_directory(nix::unistd::getuid().as_raw()).join("handoffd");
        let (scope, directory) = if self.user {
            (Scope::User, Some(&*users))
        } else {
            (Scope::OfTheDaemon, runtime_directory)
        };
        let default = || ControlPath::Default(default_control_path(directory));
        let control = self.daemon.control.map_or_else(default, ControlPath::Given);
        Command::Doctor { control, unit: self.unit, scope }
    }
}

const AFTERWARDS: &str = "\
Times are seconds, or a number with a unit: 500ms, 30s, 2m.

Signals:
  HUP        start the current binary and configuration, and hand over to it
  TERM, INT  drain and exit; a second INT cuts all connections
  QUIT       cut all connections and exit

Exit codes:
   0  done
  64  the command line is wrong
  69  no daemon answers on the control socket
  70  the new generation did not take over; the old one keeps serving
  71  the operating system refused a call, or is short of a resource
  74  the command was carried out, but its output could not be written
  75  try again: a handoff is under way or time ran out, and the old generation keeps serving. When
      the daemon starts: an address is in use or does not exist yet, or, during a handoff, no host
      name of an upstream resolves
  76  the new generation was ready, but was rolled back; the old one keeps serving
  77  the control socket refused this user or this request
  78  the configuration or the inherited state is invalid, or the unit would break a handoff";

/// A parsed command.
pub(crate) enum Command {
    /// Prints the help or the version.
    Print(String),
    Serve(Box<StartSettings>),
    Check(Box<StartSettings>),
    Reload {
        control: PathBuf,
        options: ReloadOptions,
    },
    Status {
        control: PathBuf,
        form: OutputFormat,
        span: StatusMode,
    },
    Doctor {
        control: ControlPath,
        unit: Option<String>,
        scope: Scope,
    },
    Completions(Shell),
    Man {
        directory: PathBuf,
    },
}

/// The kind of output: text for people, or JSON for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    People,
    Programs,
}

/// The path of the control socket at which the command `doctor` looks for the daemon.
#[derive(Debug)]
pub(crate) enum ControlPath {
    /// The path that the operator has given. The command looks at no other path.
    Given(PathBuf),
    /// The default path. If a unit is named, the command also looks in the unit's runtime
    /// directory.
    Default(PathBuf),
}

impl ControlPath {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Given(path) | Self::Default(path) => path,
        }
    }
}

/// Whether to show the status once or to keep watching it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusMode {
    Once,
    Watch,
}

/// The systemd service manager to ask: the system's or a user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The service manager that runs the daemon. If no daemon answers, the system's service
    /// manager.
    OfTheDaemon,
    /// The service manager of the calling user.
    User,
}

/// Parses the command line. `runtime_directory` is the default directory of the control socket.
pub(crate) fn parse(runtime_directory: Option<&Path>) -> Result<Command, Failure> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            return Ok(Command::Print(error.render().to_string()));
        }
        Err(error) => return Err(Failure::Usage(one_line(&error))),
    };
    let find =
        |daemon: Where| daemon.control.unwrap_or_else(|| default_control_path(runtime_directory));
    Ok(match arguments.command {
        None => Command::Serve(arguments.serve.read(runtime_directory)?.into()),
        Some(CommandLine::Run(flags)) => Command::Serve(flags.0.read(runtime_directory)?.into()),
        Some(CommandLine::Proxy(flags)) => Command::Serve(flags.0.read(runtime_directory)?.into()),
        Some(CommandLine::Check(flags)) => Command::Check(match flags.0.command {
            None => flags.0.serve.read(runtime_directory)?.into(),
            Some(Checked::Run(run)) => run.0.read(runtime_directory)?.into(),
            Some(Checked::Proxy(proxy)) => proxy.0.read(runtime_directory)?.into(),
        }),
        Some(CommandLine::Reload(flags)) => {
            let options = flags.options();
            Command::Reload { control: find(flags.daemon), options }
        }
        Some(CommandLine::Doctor(flags)) => flags.read(runtime_directory),
        Some(CommandLine::Status(flags)) => Command::Status {
            control: find(flags.daemon),
            form: if flags.json { OutputFormat::Programs } else { OutputFormat::People },
            span: if flags.watch { StatusMode::Watch } else { StatusMode::Once },
        },
        Some(CommandLine::Completions { shell }) => Command::Completions(shell),
        Some(CommandLine::Man { directory }) => Command::Man { directory },
    })
}

/// Parses a command line without reading the configuration file that it names.
#[cfg(test)]
pub(crate) fn parse_words<'a>(words: impl Iterator<Item = &'a str>) -> Result<(), clap::Error> {
    Arguments::try_parse_from(words).map(drop)
}

/// Returns the description of all commands and flags, from which clap parses the command line.
pub(crate) fn description() -> clap::Command {
    Arguments::command()
}

/// Returns the first line of an error from clap, which names the flag and the value. The other
/// lines only explain the usage.
fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::InvalidUtf8 {
        // Find out which argument is wrong, because clap's error does not name it in this case.
        let culprit =
            std::env::args_os().find(|argument| argument.to_str().is_none()).unwrap_or_default();
        return format!("argument {culprit:?} is not UTF-8 (see --help)");
    }
    let mut text = error.render().to_string();
    for (_, value) in error.context() {
        if let ContextValue::String(given) = value {
            // Escape the given value, because it may contain line breaks.
            text = text.replace(given.as_str(), &escaped(given));
        }
    }
    let first = text.lines().next().unwrap_or_default();
    let mut line = escaped(first.strip_prefix("error: ").unwrap_or(first));
    if let (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    {
        // Append the missing arguments, because clap lists them on separate lines, after the first
        // one.
        line += &format!(" {}", missing.join(", "));
    }
    line + " (see --help)"
}

/// Returns the directory in which a user's service manager creates the runtime directories of its
/// units (see pam_systemd(8)).
pub(crate) fn users_runtime_directory(user: u32) -> PathBuf {
    Path::new("/run/user").join(user.to_string())
}

fn ordinal(text: &str) -> Result<Generation, &'static str> {
    text.parse().map_err(|_| "expected a generation number, 1 or higher")
}

fn shell(text: &str) -> Result<Shell, &'static str> {
    match text {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("expected bash, zsh or fish"),
    }
}
