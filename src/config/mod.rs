//! The configuration of a generation (a process of the service). All values in it are valid.
//!
//! Every value is checked once, when it is created. The values can come from flags, from a file or
//! from a program that uses this library.

mod listeners;
mod overlap;
#[cfg(feature = "program")]
mod program;
#[cfg(feature = "proxy")]
mod proxy;
mod socket_access;
#[cfg(feature = "proxy")]
mod upstream;
#[cfg(feature = "proxy")]
mod upstream_loop;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::report::{Identity, Settings};

pub use listeners::{ListenerConfig, ListenerName, Listeners, UniqueListeners};
pub use overlap::TakenAddresses;
#[cfg(feature = "program")]
pub use program::{Attach, ProgramConfig, Ready, Restart, StopSignal, Umask};
#[cfg(feature = "proxy")]
pub use proxy::{Balance, Check, Ejection, HeaderVersion, Network, ProxyConfig};
pub use socket_access::{SocketAccess, SocketMode};
#[cfg(feature = "proxy")]
pub use upstream::{HostPort, UpstreamTarget, Upstreams};
#[cfg(feature = "proxy")]
pub use upstream_loop::{Loop, find_loop};

/// The address on which the daemon listens if neither the configuration nor the parent provides a
/// listener.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:48879";

/// The name of the control socket when a parent or a predecessor passes it to this process. No
/// listener may have this name.
pub(crate) const CONTROL: &str = "control";

/// The name of the metrics listener, which serves the counters of all generations. It may use
/// reserved file descriptors, so that a daemon can still be monitored when no other descriptor is
/// free.
pub const METRICS_LISTENER: &str = "metrics";

/// The configuration of a generation. [`Builder`](crate::Builder) can change individual settings.
///
/// ```
/// use handoffd::Config;
/// use handoffd::listen::Listeners;
/// use std::time::Duration;
///
/// let mut config = Config::default();
/// config.listeners = Listeners::new(vec!["web=127.0.0.1:7000".parse()?])?;
/// config.bake = Duration::from_secs(10);
/// # Ok::<(), handoffd::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The listeners on which this generation accepts connections.
    pub listeners: Listeners,
    /// How long a successor may take to become ready, counted from the fork. After this time the
    /// predecessor kills it. The successor itself gives up half a second earlier, so that it can
    /// report what it was waiting for. Default 30 s.
    pub ready_timeout: Duration,
    /// How long both generations accept connections after the successor is ready. If the successor
    /// fails during this time, it is rolled back. Otherwise the predecessor stops accepting at the
    /// end. Default 1 s. With zero, the predecessor stops accepting at once.
    pub bake: Duration,
    /// How long connections may take to end by themselves during a drain. After this time the
    /// server closes them. Default 30 s.
    pub drain_timeout: Duration,
    /// What happens to open connections when a successor takes over. A listener may have its own
    /// setting. Default: they move to the successor.
    pub on_handoff: OnHandoff,
    /// During a drain, how long a client that has sent nothing yet may take to send its first
    /// request, counted from when it was accepted. A server of your own waits for at most a quarter
    /// of `drain_timeout`. Default 1 s.
    pub first_request_grace: Duration,
    /// During a drain, how long a server of your own lets a connection wait for its next request.
    /// [`Life::closing`](crate::embed::Life::closing) waits for this time, but at most for half of
    /// `drain_timeout`. Default 5 s.
    pub keep_alive_grace: Duration,
    /// How long a task that only one generation may run (see
    /// [`Life::alone`](crate::embed::Life::alone)) may take to end before a handoff or at the end
    /// of the service. Default 10 s.
    pub alone_timeout: Duration,
    /// The maximum number of generations that serve or drain at the same time.
    pub max_generations: MaxGenerations,
    /// The path of the pid file, which always contains the pid of the process that takes the
    /// operator's signals. `None` means no file.
    pub pid_file: Option<PathBuf>,
    /// The path of the control socket. Only the user of this process and root may connect. If it is
    /// `None`, there is a control socket only if a parent passes in a socket named `control`.
    pub control: Option<PathBuf>,
    /// The identity of this generation's program and configuration, as `status` reports it.
    pub identity: Identity,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listeners: Listeners::default(),
            ready_timeout: Duration::from_secs(30),
            bake: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            on_handoff: OnHandoff::default(),
            first_request_grace: Duration::from_secs(1),
            keep_alive_grace: Duration::from_secs(5),
            alone_timeout: Duration::from_secs(10),
            max_generations: MaxGenerations::default(),
            pid_file: None,
            control: None,
            identity: Identity::default(),
        }
    }
}

/// Converts the time limits of a configuration to the form that a status report contains.
impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            ready_timeout_ms: milliseconds(config.ready_timeout),
            bake_ms: milliseconds(config.bake),
            drain_timeout_ms: milliseconds(config.drain_timeout),
        }
    }
}

/// What happens to connections when a successor takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHandoff {
    /// The server asks the connections to end, and closes those that are still open at the drain
    /// deadline.
    Drain,
    /// The connections move to the successor if the services of both generations can carry them.
    /// Other connections are drained.
    #[default]
    Carry,
}

/// The maximum number of generations that serve or drain at the same time. A successor that can
/// still be rolled back does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxGenerations(usize);

impl MaxGenerations {
    /// Accepts a number from 2 to 64. The minimum leaves room for one generation that serves and
    /// one that drains.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for any other number.
    pub fn new(count: usize) -> Result<Self, Error> {
        if (2..=64).contains(&count) {
            Ok(Self(count))
        } else {
            let why = "expected 2 to 64, because one process serves while others drain";
            Err(Error::Setting { setting: "max-generations", value: count.to_string(), why })
        }
    }

    /// Returns the maximum number of generations, from 2 to 64.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }
}

impl Default for MaxGenerations {
    fn default() -> Self {
        Self(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_generations_is_between_2_and_64() {
        assert!(MaxGenerations::new(1).is_err());
        assert!(MaxGenerations::new(65).is_err());
        assert_eq!(MaxGenerations::new(2).unwrap().get(), 2);
    }
}
