//! Is what a successor is started with: the same as this process was, resolved anew.
//!
//! Path, arguments and environment are those of the birth, less what was taken out; what a service
//! manager has said is passed on. Nothing grows from generation to generation.

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

/// What a successor is started with: the same as this process was, resolved anew.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The path by which this process was started, absolute, links not followed.
    path: PathBuf,
    /// With `argv[0]`.
    arguments: Vec<CString>,
    /// As it was at birth, less what was taken out.
    environment: Vec<CString>,
    /// What was taken out and belongs to the service manager.
    service_manager: Vec<CString>,
    notify_socket: Option<OsString>,
    numbers: ManagerNumbers,
    watchdog: Option<Duration>,
}

/// How the service manager numbers processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManagerNumbers {
    /// As this process does.
    Ours,
    /// In another way: it is in another pid namespace.
    Foreign,
}

impl Program {
    /// The one that runs here.
    ///
    /// # Errors
    /// [`Error::Program`]; [`Error::Environment`] for a watchdog that cannot be.
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

    /// What will be executed, whatever lies there then.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The arguments, `argv[0]` included.
    pub(crate) fn arguments(&self) -> &[CString] {
        &self.arguments
    }

    /// Where the service manager listens, if there is one.
    pub(crate) fn notify_socket(&self) -> Option<&OsStr> {
        self.notify_socket.as_deref()
    }

    /// How the service manager numbers processes.
    pub(crate) const fn manager_numbers(&self) -> ManagerNumbers {
        self.numbers
    }

    /// How often the service manager wants to hear that the main process is alive.
    pub(crate) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The environment of a successor: as this process found its own, with what it is passed in
    /// place of what this one was. Nothing grows from generation to generation.
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

/// How often the service manager wants to hear of the main process, sd_watchdog_enabled(3). With a
/// predecessor the pid is not ours, and the watch is.
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
