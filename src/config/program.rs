//! The configuration of a program that serves the listeners. The program can be written in any
//! language.
//!
//! Every value is checked when it is created. The module `program` starts the program and replaces
//! it at a handoff.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::ListenerName;
use super::proxy::ProxyConfig;
use super::upstream::Upstreams;
use crate::error::Error;

/// If this process forwards connections to a program, a client waits this long by default while the
/// program is not running. The client's own timeout normally ends the wait much earlier.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The configuration of a program that serves the listeners.
///
/// ```
/// use handoffd::program::ProgramConfig;
///
/// let config = ProgramConfig::new(vec!["gunicorn".into(), "app:app".into()])?;
/// # Ok::<(), handoffd::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProgramConfig {
    /// The program and its arguments, with placeholders such as `{fd}` and `{port}`.
    pub command: Vec<String>,
    /// How connections to the listeners reach the program.
    pub attach: Attach,
    /// How a started program reports that it is ready. `None` means the default for `attach`.
    pub ready: Option<Ready>,
    /// How often to check that a ready program is still healthy. Default: never. A check that fails
    /// before the old generation retires causes a rollback.
    pub check_interval: Option<Duration>,
    /// What happens when a program that was ready ends. Default: it is started again.
    pub restart: Restart,
    /// The signal that asks the program to end. Default SIGTERM.
    pub stop_signal: StopSignal,
    /// How long the program may take to end after the stop signal. Default 10 s.
    pub stop_timeout: Duration,
    /// How many processes of the program run at once. Default 1.
    pub instances: NonZeroUsize,
    /// Variables that are added to the environment. Their values may contain placeholders.
    pub environment: Vec<(String, String)>,
    /// A file with environment variables, in the format of systemd's `EnvironmentFile=`. It is read
    /// again at each start of the program.
    pub environment_file: Option<PathBuf>,
    /// The working directory. Its symbolic links are resolved at each start of the program.
    pub working_directory: Option<PathBuf>,
    /// The file mode creation mask of the program. Default: that of this process.
    pub umask: Option<Umask>,
    /// The listener that the program gets as its standard input.
    pub stdin: Option<ListenerName>,
    /// The proxy settings for forwarding connections to the private address of the program. The
    /// upstreams in these settings are not used, because each generation chooses new addresses for
    /// its program. By default, a client waits up to an hour while the program restarts.
    pub relay: Box<ProxyConfig>,
}

impl ProgramConfig {
    /// Returns the configuration of the program in `command`, with defaults for everything else.
    /// The placeholders in the command determine [`attach`](Self::attach).
    ///
    /// # Errors
    /// [`Error::Setting`] if the command is empty or names no program.
    pub fn new(command: Vec<String>) -> Result<Self, Error> {
        if command.first().is_none_or(|program| program.is_empty()) {
            let value = format!("{command:?}");
            let why = "expected a program, as in [\"gunicorn\", \"app:app\"]";
            return Err(Error::Setting { setting: "command", value, why });
        }
        Ok(Self {
            attach: Attach::of_words(&command),
            command,
            ready: None,
            check_interval: None,
            restart: Restart::Always,
            stop_signal: StopSignal(Signal::SIGTERM),
            stop_timeout: Duration::from_secs(10),
            instances: NonZeroUsize::MIN,
            environment: Vec::new(),
            environment_file: None,
            working_directory: None,
            umask: None,
            stdin: None,
            relay: Box::new(ProxyConfig {
                connect_patience: PATIENCE,
                ..ProxyConfig::to(Upstreams::unknown())
            }),
        })
    }

    /// Returns how a started program reports that it is ready.
    #[must_use]
    pub fn ready(&self) -> Ready {
        self.ready.clone().unwrap_or(match self.attach {
            Attach::Inherit => Ready::NotifyOrAlive,
            Attach::Detect => Ready::NotifyOrConnect,
            Attach::PrivatePort | Attach::PrivateSocket => Ready::Connect,
        })
    }
}

/// How connections to the listeners reach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// The program gets both the listeners and a private port. If it accepts connections on the
    /// port when it is ready, this process forwards connections to the port. Otherwise the program
    /// accepts connections on the listeners itself.
    Detect,
    /// The program inherits the listeners and accepts connections on them.
    Inherit,
    /// The program listens on a private port of 127.0.0.1, and this process forwards connections to
    /// that port.
    PrivatePort,
    /// The program listens on a private Unix socket, and this process forwards connections to that
    /// socket.
    PrivateSocket,
}

impl Attach {
    /// Returns how connections reach a program, as the placeholders in its arguments and in the
    /// values of its environment variables show: `{port}`, for example, means a private port.
    /// Without a placeholder, returns [`Attach::Detect`].
    #[must_use]
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a String>) -> Self {
        let words: Vec<_> = words.into_iter().collect();
        let mentions = |placeholder: &str| words.iter().any(|word| word.contains(placeholder));
        if mentions("{socket}") {
            Self::PrivateSocket
        } else if mentions("{port}") {
            Self::PrivatePort
        } else if mentions("{fd}") || mentions("{fd:") {
            Self::Inherit
        } else {
            Self::Detect
        }
    }

    /// Returns whether the listeners are passed to the program.
    #[must_use]
    pub const fn inherits(self) -> bool {
        matches!(self, Self::Inherit | Self::Detect)
    }

    /// Returns whether this process may have to accept connections and forward them to the program.
    #[must_use]
    pub const fn is_private(self) -> bool {
        matches!(self, Self::Detect | Self::PrivatePort | Self::PrivateSocket)
    }
}

/// How a started program reports that it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// The program sends `READY=1` to its `NOTIFY_SOCKET` (see sd_notify(3)).
    Notify,
    /// The program sends `READY=1`, or has run for one second. The time is only a guess, because
    /// some programs cannot report anything.
    NotifyOrAlive,
    /// The program sends `READY=1`, or accepts connections on its private port.
    NotifyOrConnect,
    /// The program writes a newline to this descriptor, as programs for s6 do.
    Descriptor(u8),
    /// The program is ready when this command succeeds.
    Command(Vec<String>),
    /// The program accepts a connection on its private address.
    Connect,
    /// The program answers an HTTP request for this path, on its private address, with a status
    /// from 200 to 399.
    Http(String),
    /// The program is ready when it has run for this time.
    After(Duration),
}

impl Ready {
    /// Returns whether this check can be repeated while the program runs, as `check_interval`
    /// requires.
    #[must_use]
    pub const fn is_repeatable(&self) -> bool {
        match self {
            Self::NotifyOrConnect | Self::Connect | Self::Http(_) | Self::Command(_) => true,
            Self::Notify | Self::NotifyOrAlive | Self::Descriptor(_) | Self::After(_) => false,
        }
    }
}

/// What happens when a program that was ready ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// The program is started again, after a pause that grows from 100 ms to 10 s.
    #[default]
    Always,
    /// The generation ends when the program ends.
    Never,
}

/// The signal that asks a program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal(pub(crate) Signal);

impl FromStr for StopSignal {
    type Err = Error;

    /// Parses the name of a signal, with or without `SIG`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let name = text.to_ascii_uppercase();
        let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
        let why = "expected a signal that ends a program, as in TERM, INT, QUIT or USR2";
        let refused = || Error::Setting { setting: "signal", value: format!("{text:?}"), why };
        let signal: Signal = name.parse().map_err(|_| refused())?;
        if matches!(signal, Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGCHLD) {
            return Err(refused());
        }
        Ok(Self(signal))
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// A file mode creation mask (see umask(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Umask(pub(crate) u32);

impl FromStr for Umask {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits =
            (3..=4).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit());
        let mask = u32::from_str_radix(text, 8).ok().filter(|mask| digits && *mask <= 0o777);
        let why = "expected three or four octal digits, as in 0027";
        let refused = || Error::Setting { setting: "umask", value: format!("{text:?}"), why };
        mask.map(Self).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(command: &[&str]) -> Attach {
        Attach::of_words(&command.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_placeholders_decide_how_a_program_attaches() {
        assert_eq!(attach(&["gunicorn", "app:app"]), Attach::Detect);
        assert_eq!(attach(&["uvicorn", "--fd", "{fd}"]), Attach::Inherit);
        assert_eq!(attach(&["node", "server.js", "--port={port}"]), Attach::PrivatePort);
        assert_eq!(attach(&["uvicorn", "--uds", "{socket}"]), Attach::PrivateSocket);
    }

    #[test]
    fn a_stop_signal_has_a_name() {
        for (text, signal) in
            [("TERM", Signal::SIGTERM), ("SIGQUIT", Signal::SIGQUIT), ("usr2", Signal::SIGUSR2)]
        {
            assert_eq!(text.parse::<StopSignal>().unwrap(), StopSignal(signal));
        }
        for text in ["", "15", "STOP", "NOPE"] {
            assert!(text.parse::<StopSignal>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_umask_is_octal() {
        assert_eq!("0027".parse::<Umask>().unwrap(), Umask(0o27));
        for text in ["", "27", "0999", "07777"] {
            assert!(text.parse::<Umask>().is_err(), "{text}");
        }
    }
}
