//! Names the variables of the environment that a process is born with and that mean something here,
//! and reads them.
//!
//! What a variable cannot mean is an error that names it: a process that guesses serves the wrong
//! socket.

use std::ffi::OsStr;
use std::str::FromStr;

use crate::error::Error;
use crate::sys::env::Environment;

/// How many descriptors are passed, sd_listen_fds(3).
pub(super) const LISTEN_FDS: &str = "LISTEN_FDS";
/// Their names, joined by colons.
pub(super) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// For whom they are.
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
/// The same, by the inode of a process descriptor.
pub(super) const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
/// `VERSION:DESCRIPTOR` of the channel to the predecessor. Private: taken out of the environment at
/// once.
pub(super) const CHANNEL: &str = "HANDOFFD_CHANNEL";
/// The ordinal of this process.
pub(super) const GENERATION: &str = "HANDOFFD_GENERATION";
/// Where a service manager listens, sd_notify(3). Kept out of sight, and passed on.
pub(super) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How often it wants to hear of the main process, sd_watchdog_enabled(3). The same.
pub(super) const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// Whom it watches: the first generation. Those after it are watched in its place, under other
/// pids.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// Set when the service manager is in another pid namespace. A later generation may have lost the
/// ancestor by which the first one has found that.
pub(super) const FOREIGN_MANAGER: &str = "HANDOFFD_FOREIGN_MANAGER";
/// Where the service may keep its sockets of control and the like, systemd.exec(5).
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// What no program may see that this process starts.
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

/// Reads a variable, if it is there.
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

/// A variable holds what it cannot mean.
pub(super) fn bad(variable: &'static str, value: &OsStr, why: impl Into<String>) -> Error {
    Error::Environment { variable, value: value.to_string_lossy().into_owned(), why: why.into() }
}
