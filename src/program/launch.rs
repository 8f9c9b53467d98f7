//! This module starts a program, or checks that such a start would succeed. It prepares the
//! program's arguments, environment and descriptors.
//!
//! Each start looks up the program again, reads the environment file again, and follows the links
//! in the path of the working directory again. So changes take effect at the next handoff.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::command::{PreparedCommand, check_directory, find, not_started};
use super::environment::{self, ProgramEnvironment};
use super::instance::ProgramListeners;
use super::output;
use super::placeholder::{Placeholder, replace};
use super::ready::Probe;
use crate::address::Address;
use crate::config::{Attach, ListenerConfig, Listeners, ProgramConfig, Ready};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Listener;
use crate::sys::child::Child;

/// The descriptor number of the first listener in the program (see sd_listen_fds(3)).
const FIRST_LISTENER: u8 = 3;

/// The inputs for one start of a program.
pub(super) struct ProgramLaunch<'a> {
    pub(super) config: &'a Arc<ProgramConfig>,
    pub(super) generation: Generation,
    pub(super) instance: usize,
    pub(super) listeners: &'a ProgramListeners,
    /// The private address on which the program may listen. `None` if the program can only inherit
    /// the listeners.
    pub(super) private: Option<&'a Address>,
    /// The maximum time between two keep-alive messages (`WATCHDOG=1`) of the program.
    pub(super) watchdog: Option<Duration>,
    /// The path of the notification socket.
    pub(super) notify: &'a Path,
}

/// A program that has just been started.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Child,
    /// The read end of the pipe that is the program's standard error.
    pub(super) errors: OwnedFd,
    /// The read end of the readiness pipe, if one is configured. The program writes a newline to
    /// the pipe when it is ready.
    pub(super) ready: Option<OwnedFd>,
    /// The probe that finds out whether the program is ready.
    pub(super) probe: Probe,
}

impl ProgramLaunch<'_> {
    /// Starts the program.
    ///
    /// # Errors
    /// Returns [`Error::ProgramNotStarted`] if the program cannot start, and the errors of
    /// [`check`].
    pub(super) fn start(&self) -> Result<Launched, Error> {
        let config = self.config;
        check_ready_descriptor(config, self.listeners.names.len())?;
        let variables = self.variables()?;
        let mut probe = self.probe(&variables)?;
        let command = self.expanded(&config.command)?;
        let command = PreparedCommand::new(config, &command, variables)?;
        let pipe = || output::pipe().map_err(Error::system("create a pipe"));
        let (errors, their_errors) = pipe()?;
        let (ready, their_ready) = if let Ready::Descriptor(number) = config.ready() {
            let (ours, theirs) = pipe()?;
            (Some(ours), Some((theirs, i32::from(number))))
        } else {
            (None, None)
        };
        let mut descriptors: Vec<(BorrowedFd<'_>, i32)> = vec![(their_errors.as_fd(), 2)];
        if self.passes_listeners() {
            let numbers = i32::from(FIRST_LISTENER)..;
            descriptors.extend(self.listeners.open.iter().map(AsFd::as_fd).zip(numbers));
        }
        if let Some(name) = &config.stdin {
            descriptors.extend(self.listener(name.as_str())?.map(|one| (one.as_fd(), 0)));
        }
        if let Some((theirs, number)) = &their_ready {
            descriptors.push((theirs.as_fd(), *number));
        }
        let child = command.start(&descriptors, self.passes_listeners(), config.stop_signal.0)?;
        probe.pid = child.pid();
        Ok(Launched { child, errors, ready, probe })
    }

    /// Prepares the probe that finds out whether the program is ready.
    fn probe(&self, variables: &ProgramEnvironment) -> Result<Probe, Error> {
        let ready = self.config.ready();
        let mut command = None;
        if let Ready::Command(words) = &ready {
            let mut variables = variables.clone();
            for ours in ["LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
                variables.remove(OsStr::new(ours));
            }
            let mut set = |name: &str, value: String| variables.insert(name.into(), value.into());
            set("HANDOFFD_PROGRAM_GENERATION", self.generation.to_string());
            if let Some(address) = self.private {
                set("HANDOFFD_PROGRAM_ADDRESS", address.to_string());
            }
            let words = self.expanded(words)?;
            // Find the executable of the check now, so that a missing executable is reported before
            // the program starts.
            PreparedCommand::new(self.config, &words, variables.clone())?;
            command = Some((words, variables));
        }
        Ok(Probe::new(Arc::clone(self.config), ready, self.private.cloned(), command))
    }

    /// Returns whether the program inherits listeners. In a drain, none is left to inherit.
    fn passes_listeners(&self) -> bool {
        self.config.attach.inherits() && !self.listeners.open.is_empty()
    }

    /// Returns the listener with this name. Returns `None` in a drain, which has closed it.
    fn listener(&self, name: &str) -> Result<Option<&Listener>, Error> {
        let ProgramListeners { names, open, .. } = self.listeners;
        if !names.iter().any(|known| known == name) {
            return Err(Error::no_such_listener(name, names));
        }
        Ok(open.iter().find(|listener| &**listener.name() == name))
    }

    /// Returns the environment of the program.
    fn variables(&self) -> Result<ProgramEnvironment, Error> {
        let mut variables = environment::inherited();
        let mut set = |name: &str, value: String| variables.insert(name.into(), value.into());
        if self.passes_listeners() {
            set("LISTEN_FDS", self.listeners.open.len().to_string());
            set("LISTEN_FDNAMES", self.listeners.names.join(":"));
        }
        if let Some(Address::Tcp(address)) = self.private {
            set("PORT", address.port().to_string());
        }
        set("NOTIFY_SOCKET", self.notify.to_string_lossy().into_owned());
        if let Some(watchdog) = self.watchdog {
            set("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        set("HANDOFFD_INSTANCE", self.instance.to_string());
        variables.extend(of_file(self.config)?);
        for (name, value) in &self.config.environment {
            variables.insert(name.into(), self.expand(value)?.into());
        }
        Ok(variables)
    }

    /// Returns a command with its placeholders replaced.
    fn expanded(&self, command: &[String]) -> Result<Vec<String>, Error> {
        command.iter().map(|argument| self.expand(argument)).collect()
    }

    fn expand(&self, text: &str) -> Result<String, Error> {
        replace(text, |placeholder| {
            let listener = placeholder.resolve(self.config.attach, &self.listeners.names)?;
            Ok(match (placeholder, self.private) {
                (Placeholder::Fd(_), _) => (usize::from(FIRST_LISTENER) + listener).to_string(),
                (Placeholder::Address(_), _) => self.listeners.addresses[listener].clone(),
                (Placeholder::Port, Some(Address::Tcp(address))) => address.port().to_string(),
                (Placeholder::Socket, Some(Address::UnixPath(path))) => {
                    path.to_string_lossy().into_owned()
                }
                (Placeholder::Generation, _) => self.generation.to_string(),
                (Placeholder::Instance, _) => self.instance.to_string(),
                // This case cannot occur, because `resolve` accepts `{port}` and `{socket}` only
                // for a program with a private port or a private socket.
                (Placeholder::Port | Placeholder::Socket, _) => String::new(),
            })
        })
    }
}

/// Returns the variables of the environment file, if there is one.
fn of_file(config: &ProgramConfig) -> Result<ProgramEnvironment, Error> {
    let Some(file) = &config.environment_file else { return Ok(ProgramEnvironment::new()) };
    let what = || format!("the program with the environment file {}", file.display());
    let read = environment::read(file).map_err(|source| not_started(what(), source))?;
    Ok(read.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
}

/// Checks that the descriptor for the program's readiness report is not used for a listener.
fn check_ready_descriptor(config: &ProgramConfig, listeners: usize) -> Result<(), Error> {
    let Ready::Descriptor(number) = config.ready() else { return Ok(()) };
    let first_free = usize::from(FIRST_LISTENER) + listeners;
    if config.attach.inherits() && usize::from(number) < first_free {
        let value = format!("descriptor:{number}");
        let why = "expected a number above the descriptors of the listeners, which begin with 3";
        return Err(Error::Setting { setting: "ready condition", value, why });
    }
    Ok(())
}

/// Checks that a program could be started, without starting it. The program must exist and be
/// executable, and its files must be readable. [`check_settings`] checks everything else.
///
/// # Errors
/// Returns [`Error::ProgramNotStarted`] for the first file that cannot be used.
pub fn check(config: &ProgramConfig) -> Result<(), Error> {
    let mut variables = environment::inherited();
    variables.extend(of_file(config)?);
    variables.extend(config.environment.iter().map(|(name, value)| (name.into(), value.into())));
    let directory = config.working_directory.as_deref();
    if let Some(directory) = directory {
        check_directory(directory)?;
    }
    for program in config.command.iter().take(1).chain(ready_command(config).iter().take(1)) {
        find(program, variables.get(OsStr::new("PATH")), directory)
            .map_err(|source| not_started(program.clone(), source))?;
    }
    Ok(())
}

/// Checks the settings of a program that refer to its listeners, without looking at any file: its
/// placeholders must have values, the descriptors of the listeners must be free, and no listener
/// may have a setting that the program would not follow.
///
/// # Errors
/// Returns [`Error::NoSuchListener`] or [`Error::Setting`] for a placeholder that has no value, for
/// a descriptor that is used twice, and for the connection limit of a listener on which the program
/// itself accepts connections.
pub fn check_settings(config: &ProgramConfig, listeners: &Listeners) -> Result<(), Error> {
    let Listeners::Named(named) = listeners else { return Ok(()) };
    check_limits(config, named.as_slice())?;
    let named = named.as_slice().iter().enumerate();
    let names: Vec<_> = named.map(|(index, listener)| listener.name_at(index)).collect();
    check_ready_descriptor(config, names.len())?;
    let values = config.environment.iter().map(|(_, value)| value);
    for text in config.command.iter().chain(ready_command(config)).chain(values) {
        replace(text, |placeholder| {
            placeholder.resolve(config.attach, &names).map(|_| String::new())
        })?;
    }
    match &config.stdin {
        Some(name) if !names.iter().any(|known| known == name.as_str()) => {
            Err(Error::no_such_listener(name.as_str(), &names))
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks that no listener has a connection limit if the program itself accepts connections.
fn check_limits(config: &ProgramConfig, listeners: &[ListenerConfig]) -> Result<(), Error> {
    match listeners.iter().find_map(|listener| listener.max_connections) {
        Some(limit) if config.attach == Attach::Inherit => Err(Error::Setting {
            setting: "max_connections",
            value: limit.to_string(),
            why: "expected no limit, because the program itself accepts connections",
        }),
        Some(_) | None => Ok(()),
    }
}

/// Returns the words of the command that checks whether the program is ready.
fn ready_command(config: &ProgramConfig) -> &[String] {
    if let Some(Ready::Command(command)) = &config.ready { command } else { &[] }
}
