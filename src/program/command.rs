//! This module prepares a command for execve(2), and finds its program in `PATH`.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, eaccess};

use super::environment::ProgramEnvironment;
use crate::config::ProgramConfig;
use crate::error::Error;
use crate::sys::child::{Child, ChildProgram, start};

/// A command that is ready to be executed: either the program itself, or the command that checks
/// whether the program is ready.
#[derive(Debug)]
pub(super) struct PreparedCommand {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
    umask: Option<u32>,
}

impl PreparedCommand {
    /// Finds the executable of a command, and prepares its arguments, environment and directory.
    ///
    /// # Errors
    /// Returns [`Error::ProgramNotStarted`] if the executable does not exist, or if an argument or
    /// a variable contains a zero byte.
    pub(super) fn new(
        config: &ProgramConfig,
        command: &[String],
        environment: ProgramEnvironment,
    ) -> Result<Self, Error> {
        let prepare = || -> io::Result<Self> {
            let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::from);
            let directory = config.working_directory.as_deref();
            let name = command.first().ok_or(io::ErrorKind::InvalidInput)?;
            let program = find(name, environment.get(OsStr::new("PATH")), directory)?;
            let arguments = command.iter().map(|argument| text(argument.clone().into_bytes()));
            let variables = environment.into_iter().map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                text(name.into_vec())
            });
            let directory = directory.map(|path| text(path.as_os_str().as_bytes().to_vec()));
            Ok(Self {
                program: text(program.into_os_string().into_vec())?,
                arguments: arguments.collect::<io::Result<_>>()?,
                environment: variables.collect::<io::Result<_>>()?,
                directory: directory.transpose()?,
                umask: config.umask.map(|umask| umask.0),
            })
        };
        if let Some(directory) = &config.working_directory {
            check_directory(directory)?;
        }
        let name = || command.first().cloned().unwrap_or_default();
        prepare().map_err(|source| not_started(name(), source))
    }

    /// Starts the command, which inherits `descriptors`. `on_our_death` is the signal that the
    /// command gets when this process dies.
    ///
    /// # Errors
    /// Returns [`Error::ProgramNotStarted`] with the kernel's error.
    pub(super) fn start(
        &self,
        descriptors: &[(BorrowedFd<'_>, i32)],
        listen_pid: bool,
        on_our_death: Signal,
    ) -> Result<Child, Error> {
        let started = start(&ChildProgram {
            program: &self.program,
            arguments: &self.arguments,
            environment: &self.environment,
            listen_pid,
            descriptors,
            directory: self.directory.as_ref(),
            umask: self.umask,
            on_our_death,
        });
        started.map_err(|source| not_started(self.program.to_string_lossy().into_owned(), source))
    }
}

/// Checks that a program can start in this working directory.
///
/// # Errors
/// Returns [`Error::ProgramNotStarted`] if it cannot. The error names the directory.
pub(super) fn check_directory(directory: &Path) -> Result<(), Error> {
    let what = || format!("the program in the directory {}", directory.display());
    let entered = match eaccess(directory, AccessFlags::X_OK) {
        Ok(()) if !directory.is_dir() => Err(io::Error::from(Errno::ENOTDIR)),
        entered => entered.map_err(io::Error::from),
    };
    entered.map_err(|source| not_started(what(), source))
}

pub(super) fn not_started(what: String, source: io::Error) -> Error {
    Error::ProgramNotStarted { what, source }
}

/// Returns the absolute path of a program. A name without a slash is looked up in `path`, as in a
/// shell. A relative path is relative to the program's working directory.
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
