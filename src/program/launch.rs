//! What a program is started with: its path, arguments, environment and descriptors.
//!
//! Everything is read again at each start, so that a new path, a new environment file and a working
//! directory behind a changed link take effect with a handoff.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, eaccess};

use super::environment::{self, ProgramEnvironment};
use super::output;
use crate::address::Address;
use crate::config::{Attach, Listeners, ProgramConfig, Ready};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Listener;
use crate::sys::child::{Child, ChildProgram, start};

/// The number of the first listener in the program (see sd_listen_fds(3)).
const FIRST_LISTENER: i32 = 3;

/// One start of a program: the place in which it runs.
pub(super) struct ProgramLaunch<'a> {
    pub(super) config: &'a ProgramConfig,
    pub(super) generation: Generation,
    pub(super) instance: usize,
    pub(super) listeners: &'a [Listener],
    /// The address on which the program shall listen, if it does not inherit the listeners.
    pub(super) private: Option<&'a Address>,
    /// The path of the notification socket.
    pub(super) notify: &'a Path,
}

/// A program that has just been started.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) child: Child,
    /// The end of a pipe on which the standard error of the program arrives.
    pub(super) errors: OwnedFd,
    /// The end of a pipe on which a newline says that the program is ready.
    pub(super) ready: Option<OwnedFd>,
}

impl ProgramLaunch<'_> {
    /// Starts the program.
    ///
    /// # Errors
    /// [`Error::ProgramNotStarted`] if it cannot be started.
    pub(super) fn start(&self) -> Result<Launched, Error> {
        let failed = |what: String, source: io::Error| Error::ProgramNotStarted { what, source };
        let variables = self.variables()?;
        let directory = self.config.working_directory.as_deref();
        let command = self.expanded(&self.config.command)?;
        let program = find(&command[0], variables.get(OsStr::new("PATH")), directory)
            .map_err(|source| failed(command[0].clone(), source))?;
        let text = |bytes: Vec<u8>| {
            CString::new(bytes).map_err(|error| failed(command[0].clone(), error.into()))
        };
        let path = text(program.into_os_string().into_vec())?;
        let arguments = command.iter().map(|argument| text(argument.clone().into_bytes()));
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        let variables = texts(variables).map_err(|source| failed(command[0].clone(), source))?;
        let directory = directory.map(|path| text(path.as_os_str().as_bytes().to_vec()));
        let directory = directory.transpose()?;
        let pipe = || output::pipe().map_err(Error::system("create a pipe"));
        let (errors, their_errors) = pipe()?;
        let (ready, their_ready) = if let Ready::Descriptor(number) = self.config.ready() {
            let (ours, theirs) = pipe()?;
            (Some(ours), Some((theirs, i32::from(number))))
        } else {
            (None, None)
        };
        let mut descriptors: Vec<(BorrowedFd<'_>, i32)> = vec![(their_errors.as_fd(), 2)];
        if self.inherits() {
            descriptors.extend(self.listeners.iter().map(AsFd::as_fd).zip(FIRST_LISTENER..));
        }
        if let Some(name) = &self.config.stdin {
            descriptors.push((self.listener(name.as_str())?.as_fd(), 0));
        }
        if let Some((theirs, number)) = &their_ready {
            descriptors.push((theirs.as_fd(), *number));
        }
        let child = start(&ChildProgram {
            program: &path,
            arguments: &arguments,
            environment: &variables,
            listen_pid: self.inherits(),
            descriptors: &descriptors,
            directory: directory.as_ref(),
            umask: self.config.umask.map(|umask| umask.0),
            on_our_death: self.config.stop_signal.0,
        });
        let child = child.map_err(|source| failed(path.to_string_lossy().into_owned(), source))?;
        Ok(Launched { child, errors, ready })
    }

    /// Starts a command that checks whether the program `pid` is ready.
    ///
    /// # Errors
    /// [`Error::ProgramNotStarted`] if the command cannot be started.
    pub(super) fn start_check(&self, command: &[String], pid: u32) -> Result<Child, Error> {
        let failed = |source: io::Error| Error::ProgramNotStarted {
            what: format!("the readiness check {command:?}"),
            source,
        };
        let mut variables = self.variables()?;
        for ours in ["LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
            variables.remove(OsStr::new(ours));
        }
        variables.insert("HANDOFFD_PROGRAM_PID".into(), pid.to_string().into());
        let generation = self.generation.to_string();
        variables.insert("HANDOFFD_PROGRAM_GENERATION".into(), generation.into());
        if let Some(address) = self.private {
            variables.insert("HANDOFFD_PROGRAM_ADDRESS".into(), address.to_string().into());
        }
        let command = self.expanded(command)?;
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|error| failed(error.into()));
        let directory = self.config.working_directory.as_deref();
        let program = find(&command[0], variables.get(OsStr::new("PATH")), directory);
        let program = text(program.map_err(failed)?.into_os_string().into_vec())?;
        let arguments = command.iter().map(|argument| text(argument.clone().into_bytes()));
        let nothing = std::fs::File::open("/dev/null").map_err(failed)?;
        let directory = directory.map(|path| text(path.as_os_str().as_bytes().to_vec()));
        let child = start(&ChildProgram {
            program: &program,
            arguments: &arguments.collect::<Result<Vec<_>, _>>()?,
            environment: &texts(variables).map_err(failed)?,
            listen_pid: false,
            descriptors: &[(nothing.as_fd(), 0)],
            directory: directory.transpose()?.as_ref(),
            umask: self.config.umask.map(|umask| umask.0),
            on_our_death: Signal::SIGKILL,
        });
        child.map_err(failed)
    }

    /// Returns whether the program gets the listeners.
    fn inherits(&self) -> bool {
        matches!(self.config.attach, Attach::Inherit | Attach::Detect)
    }

    fn listener(&self, name: &str) -> Result<&Listener, Error> {
        let found = self.listeners.iter().find(|listener| &**listener.name() == name);
        found.ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })
    }

    /// Returns the environment of the program.
    pub(super) fn variables(&self) -> Result<ProgramEnvironment, Error> {
        let mut variables = environment::inherited();
        let mut set = |name: &str, value: String| variables.insert(name.into(), value.into());
        if self.inherits() {
            let names: Vec<_> = self.listeners.iter().map(|one| one.name().to_string()).collect();
            set("LISTEN_FDS", names.len().to_string());
            set("LISTEN_FDNAMES", names.join(":"));
        }
        if let Some(Address::Tcp(address)) = self.private {
            set("PORT", address.port().to_string());
        }
        set("NOTIFY_SOCKET", self.notify.to_string_lossy().into_owned());
        set("HANDOFFD_INSTANCE", self.instance.to_string());
        if let Some(file) = &self.config.environment_file {
            let read = environment::read(file);
            let read = read.map_err(|source| Error::ProgramNotStarted {
                what: format!("its environment file {}", file.display()),
                source,
            })?;
            variables.extend(read.into_iter().map(|(name, value)| (name.into(), value.into())));
        }
        for (name, value) in &self.config.environment {
            let value = self.expand(value)?;
            variables.insert(name.into(), value.into());
        }
        Ok(variables)
    }

    /// Returns a command with its placeholders replaced.
    pub(super) fn expanded(&self, command: &[String]) -> Result<Vec<String>, Error> {
        command.iter().map(|argument| self.expand(argument)).collect()
    }

    /// Replaces the placeholders in a text. Other text in braces stays as it is.
    fn expand(&self, text: &str) -> Result<String, Error> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let Some(length) = rest[open..].find('}') else { break };
            let placeholder = &rest[open + 1..open + length];
            expanded += &rest[..open];
            match self.value(placeholder)? {
                Some(value) => expanded += &value,
                None => expanded += &rest[open..=open + length],
            }
            rest = &rest[open + length + 1..];
        }
        Ok(expanded + rest)
    }

    /// Returns what a placeholder stands for, or `None` if it is none.
    fn value(&self, placeholder: &str) -> Result<Option<String>, Error> {
        let index = |name: Option<&str>| match name {
            Some(name) => {
                let place = self.listeners.iter().position(|one| &**one.name() == name);
                place.ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })
            }
            None if self.listeners.len() == 1 => Ok(0),
            None => Err(ambiguous(placeholder)),
        };
        let (word, name) = match placeholder.split_once(':') {
            Some((word, name)) => (word, Some(name)),
            None => (placeholder, None),
        };
        Ok(Some(match (word, name) {
            ("fd", _) => (3 + index(name)?).to_string(),
            ("address", _) => self.listeners[index(name)?].address().to_owned(),
            ("generation", None) => self.generation.to_string(),
            ("instance", None) => self.instance.to_string(),
            ("port", None) => match self.private {
                Some(Address::Tcp(address)) => address.port().to_string(),
                _ => return Ok(None),
            },
            ("socket", None) => match self.private {
                Some(Address::UnixPath(path)) => path.to_string_lossy().into_owned(),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }))
    }
}

/// Returns an environment as execve(2) takes it.
fn texts(variables: ProgramEnvironment) -> io::Result<Vec<CString>> {
    let text = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec()).map_err(io::Error::from)
    };
    variables.into_iter().map(text).collect()
}

fn ambiguous(placeholder: &str) -> Error {
    Error::Setting {
        setting: "placeholder",
        value: format!("{{{placeholder}}}"),
        why: "expected the name of a listener, as in {fd:web}, because there is not exactly one",
    }
}

/// Checks that a program could be started, without starting it: the program exists and is
/// executable, its files can be read, and its placeholders name listeners.
///
/// # Errors
/// [`Error::ProgramNotStarted`] for the first file that cannot be used, and
/// [`Error::NoSuchListener`] or [`Error::Setting`] for a placeholder that stands for no listener.
pub fn check(config: &ProgramConfig, listeners: &Listeners) -> Result<(), Error> {
    let not_started = |what: String, source| Error::ProgramNotStarted { what, source };
    let file = config.environment_file.as_deref().map(|file| (file, environment::read(file)));
    let mut variables = environment::inherited();
    if let Some((file, read)) = file {
        let what = format!("its environment file {}", file.display());
        let read = read.map_err(|source| not_started(what, source))?;
        variables.extend(read.into_iter().map(|(name, value)| (name.into(), value.into())));
    }
    variables.extend(config.environment.iter().map(|(name, value)| (name.into(), value.into())));
    let directory = config.working_directory.as_deref();
    if let Some(directory) = directory {
        let entered = eaccess(directory, AccessFlags::X_OK).map_err(io::Error::from);
        entered.map_err(|source| not_started(directory.display().to_string(), source))?;
    }
    let program = &config.command[0];
    find(program, variables.get(OsStr::new("PATH")), directory)
        .map_err(|source| not_started(program.clone(), source))?;
    check_placeholders(config, listeners)
}

fn check_placeholders(config: &ProgramConfig, listeners: &Listeners) -> Result<(), Error> {
    let Listeners::Named(named) = listeners else { return Ok(()) };
    let named = named.as_slice().iter().enumerate();
    let names: BTreeSet<_> = named.map(|(index, listener)| listener.name_at(index)).collect();
    let texts = config.command.iter().chain(config.environment.iter().map(|(_, value)| value));
    for text in texts {
        for placeholder in text.split('{').skip(1).filter_map(|text| text.split('}').next()) {
            let (word, name) = match placeholder.split_once(':') {
                Some((word, name)) => (word, Some(name)),
                None => (placeholder, None),
            };
            match (word, name) {
                ("fd" | "address", Some(name)) if !names.contains(name) => {
                    return Err(Error::NoSuchListener { name: name.to_owned() });
                }
                ("fd" | "address", None) if names.len() != 1 => return Err(ambiguous(placeholder)),
                _ => {}
            }
        }
    }
    match &config.stdin {
        Some(name) if !names.contains(name.as_str()) => {
            Err(Error::NoSuchListener { name: name.to_string() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the absolute path of a program. A name without a slash is searched in `path`, as a shell
/// does. A relative path counts from the working directory of the program.
pub(super) fn find(
    program: &str,
    path: Option<&OsString>,
    directory: Option<&Path>,
) -> io::Result<PathBuf> {
    let here = match directory {
        Some(directory) => std::path::absolute(directory)?,
        None => std::env::current_dir()?,
    };
    let executable = |path: &Path| -> io::Result<()> {
        eaccess(path, AccessFlags::X_OK)?;
        if path.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
    };
    if program.contains('/') {
        let path = here.join(program);
        executable(&path)?;
        return Ok(path);
    }
    let default = OsString::from("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let folders = std::env::split_paths(path.unwrap_or(&default));
    let mut candidates = folders.map(|folder| here.join(folder).join(program));
    let found = candidates.find(|candidate| executable(candidate).is_ok());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not found in PATH"))
}
