//! The environment variables that a process reads at startup.
//!
//! An invalid value is an error that names the variable. A process that guessed the value could
//! serve the wrong socket.

use std::ffi::OsStr;
use std::str::FromStr;

use crate::error::Error;
use crate::sys::env::Environment;

/// The variable that holds the number of passed file descriptors (see sd_listen_fds(3)).
pub(super) const LISTEN_FDS: &str = "LISTEN_FDS";
/// The variable that holds the names of the passed file descriptors, joined by colons.
pub(super) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// The variable that holds the pid of the process that should use the passed file descriptors.
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
/// The variable that holds the inode of the pidfd of the process that should use the passed file
/// descriptors. Unlike a pid, this number is not reused.
pub(super) const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
/// The variable that holds the file descriptor of the channel to the predecessor, as
/// `VERSION:DESCRIPTOR`. Only handoffd uses this variable, so it is removed from the environment at
/// startup.
pub(super) const CHANNEL: &str = "HANDOFFD_CHANNEL";
/// The variable that holds the generation number of this process.
pub(super) const GENERATION: &str = "HANDOFFD_GENERATION";
/// The variable that names the socket for notifications to the service manager (see sd_notify(3)).
/// Child programs do not see this variable, but a successor does.
pub(super) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// The variable that holds the timeout of the service manager's watchdog in microseconds (see
/// sd_watchdog_enabled(3)). Child programs do not see this variable, but a successor does.
pub(super) const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// The variable that holds the pid of the process that the watchdog of the service manager watches.
/// The service manager sets it to the pid of the first generation, although the watchdog also
/// watches later generations.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// The variable that is set if the service manager is in another pid namespace. The first
/// generation sets it for later generations. They cannot check this themselves, because the check
/// reads the environment of an ancestor that may have ended.
pub(super) const FOREIGN_MANAGER: &str = "HANDOFFD_FOREIGN_MANAGER";
/// The variable that names the directory for the control socket of the service (see
/// systemd.exec(5)).
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// The variables that this process removes from its environment, to hide them from programs that it
/// starts.
pub(super) const TAKEN_OUT: [&str; 10] = [
    LISTEN_FDS,
    LISTEN_FDNAMES,
    LISTEN_PID,
    LISTEN_PIDFDID,
    CHANNEL,
    GENERATION,
    NOTIFY_SOCKET,
    WATCHDOG_USEC,
    WATCHDOG_PID,
    FOREIGN_MANAGER,
];

/// Parses the value of a variable. Returns `None` if the variable is not set.
///
/// # Errors
/// [`Error::Environment`] if the value is invalid. The message contains `expected`, a description
/// of a valid value.
pub(super) fn parse<T: FromStr>(
    environment: &Environment,
    name: &'static str,
    expected: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = environment.get(name) else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| bad(name, value, format!("expected {expected}")))
}

/// Returns the error for a variable that has an invalid value.
pub(super) fn bad(variable: &'static str, value: &OsStr, why: impl Into<String>) -> Error {
    Error::Environment { variable, value: value.to_string_lossy().into_owned(), why: why.into() }
}
