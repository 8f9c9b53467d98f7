//! The environment variables that have a meaning at start, and how they are read.
//!
//! An invalid value is an error that names the variable: a process that guesses may serve the wrong
//! socket.

use std::ffi::OsStr;
use std::str::FromStr;

use crate::error::Error;
use crate::sys::env::Environment;

/// The number of passed file descriptors, sd_listen_fds(3).
pub(super) const LISTEN_FDS: &str = "LISTEN_FDS";
/// The names of the passed file descriptors, joined by colons.
pub(super) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// The pid of the process for which the file descriptors are meant.
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
/// The inode of the process descriptor of that process.
pub(super) const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
/// `VERSION:DESCRIPTOR` of the channel to the predecessor. Private: taken out of the environment at
/// once.
pub(super) const CHANNEL: &str = "HANDOFFD_CHANNEL";
/// The generation number of this process.
pub(super) const GENERATION: &str = "HANDOFFD_GENERATION";
/// The notification socket of the service manager, sd_notify(3). Hidden from child programs, and
/// passed to the successor.
pub(super) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How often the service manager expects a sign of life, in microseconds, sd_watchdog_enabled(3).
/// Hidden from child programs, and passed to the successor.
pub(super) const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// The pid that the watchdog watches: the first generation. Later generations are watched in its
/// place under other pids.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// Set if the service manager is in another pid namespace. The first generation detects this from
/// its oldest ancestor, which may be gone when a later generation starts.
pub(super) const FOREIGN_MANAGER: &str = "HANDOFFD_FOREIGN_MANAGER";
/// The directory in which the service may keep its control socket, systemd.exec(5).
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// The variables that programs started by this process must not see.
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

/// Parses a variable, if it is set.
///
/// # Errors
/// [`Error::Environment`], which says what was `expected`.
pub(super) fn parse<T: FromStr>(
    environment: &Environment,
    name: &'static str,
    expected: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = environment.get(name) else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| bad(name, value, format!("expected {expected}")))
}

/// Returns the error for a variable with an invalid value.
pub(super) fn bad(variable: &'static str, value: &OsStr, why: impl Into<String>) -> Error {
    Error::Environment { variable, value: value.to_string_lossy().into_owned(), why: why.into() }
}
