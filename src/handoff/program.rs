//! The program that this process starts as its successor, with the same path, arguments and
//! environment as this process.
//!
//! The path is resolved again at each start, so a deployment can put a new binary at this path. The
//! successor gets the original environment of this process and the variables of the service
//! manager. Only the values of the handoff variables change, so the environment does not grow from
//! generation to generation.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::message::VERSION;
use super::variables::{
    CHANNEL, FOREIGN_MANAGER, GENERATION, LISTEN_FDS, NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC,
    parse,
};
use crate::error::Error;
use crate::generation::Generation;
use crate::sys;
use crate::sys::env::Environment;

/// The path, arguments and environment that this process uses to start a successor.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The absolute path by which this process was started. Symbolic links are not resolved.
    path: PathBuf,
    /// All arguments of the program, including `argv[0]`.
    arguments: Vec<CString>,
    /// The environment of this process at startup, without the handoff variables and the service
    /// manager's variables.
    environment: Vec<CString>,
    /// The variables of the service manager, as `NAME=value`. This process passes them only to a
    /// successor, not to other programs that it starts.
    service_manager: Vec<CString>,
    notify_socket: Option<OsString>,
    numbers: ManagerNumbers,
    watchdog: Option<Duration>,
}

/// Whether the service manager and this process see the same pids, that is, share a pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManagerNumbers {
    /// The service manager uses the same pids as this process.
    Ours,
    /// The service manager uses other pids, because it is in another pid namespace.
    Foreign,
}

impl Program {
    /// Returns the path, arguments and environment of this process.
    ///
    /// # Errors
    /// [`Error::Program`] if the path of this program cannot be found, and [`Error::Environment`]
    /// for an invalid watchdog variable.
    pub(super) fn of_this_process(environment: &Environment) -> Result<Self, Error> {
        let watchdog = watchdog(environment)?;
        let notify_socket = environment.get(NOTIFY_SOCKET);
        let notify =
            notify_socket.map(|value| [NOTIFY_SOCKET.as_bytes(), b"=", value.as_bytes()].concat());
        let is_foreign = environment.get(FOREIGN_MANAGER).is_some()
            || notify
                .as_deref()
                .is_some_and(|variable| !sys::namespace::is_shared_with_setter_of(variable));
        let numbers = if is_foreign { ManagerNumbers::Foreign } else { ManagerNumbers::Ours };
        let passed_on = [
            notify,
            is_foreign.then(|| format!("{FOREIGN_MANAGER}=1").into_bytes()),
            watchdog.map(|limit| format!("{WATCHDOG_USEC}={}", limit.as_micros()).into_bytes()),
        ];
        Ok(Self {
            path: sys::env::program().map_err(|source| Error::Program { source })?,
            arguments: sys::env::arguments(),
            environment: environment.rest.clone(),
            service_manager: passed_on
                .into_iter()
                .flatten()
                .filter_map(|variable| CString::new(variable).ok())
                .collect(),
            notify_socket: notify_socket.map(OsStr::to_owned),
            numbers,
            watchdog,
        })
    }

    /// Returns the path of the program. A deployment may change the file at this path at any time.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the arguments of the program, including `argv[0]`.
    pub(crate) fn arguments(&self) -> &[CString] {
        &self.arguments
    }

    /// Returns the socket for notifications to the service manager, if there is a service manager.
    pub(crate) fn notify_socket(&self) -> Option<&OsStr> {
        self.notify_socket.as_deref()
    }

    /// Returns whether the service manager uses the same pids as this process.
    pub(crate) const fn manager_numbers(&self) -> ManagerNumbers {
        self.numbers
    }

    /// Returns the timeout of the service manager's watchdog. The main process must notify the
    /// watchdog again within this time. Returns `None` if no watchdog is configured.
    pub(crate) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Returns the environment for a successor: the original environment of this process, with the
    /// handoff variables set for the successor. The new values replace the old ones, so the
    /// environment does not grow from generation to generation.
    pub(crate) fn environment_for(
        &self,
        generation: Generation,
        count: usize,
        channel: RawFd,
    ) -> Vec<CString> {
        let ours = [
            format!("{LISTEN_FDS}={count}"),
            format!("{CHANNEL}={VERSION}:{channel}"),
            format!("{GENERATION}={generation}"),
        ];
        let ours = ours.into_iter().filter_map(|variable| CString::new(variable).ok());
        self.environment.iter().chain(&self.service_manager).cloned().chain(ours).collect()
    }
}

/// Returns the timeout of the service manager's watchdog (see sd_watchdog_enabled(3)). The timeout
/// also applies to a successor, although `WATCHDOG_PID` holds the pid of the first generation.
fn watchdog(environment: &Environment) -> Result<Option<Duration>, Error> {
    let is_ours = environment.get(CHANNEL).is_some()
        || environment
            .get(WATCHDOG_PID)
            .is_none_or(|pid| pid.to_str() == Some(&std::process::id().to_string()));
    if !is_ours {
        return Ok(None);
    }
    let limit =
        parse(environment, WATCHDOG_USEC, "a number of microseconds")?.map(Duration::from_micros);
    Ok(limit.filter(|limit| !limit.is_zero() && *limit != Duration::from_micros(u64::MAX)))
}
