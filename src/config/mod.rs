//! The configuration of a generation, as values that are always valid.
//!
//! Every value is checked once, when it is created. The values can come from flags, from a file or
//! from a program that uses this library.

mod overlap;
#[cfg(feature = "proxy")]
mod proxy;
mod socket_access;
#[cfg(feature = "proxy")]
mod upstream;
#[cfg(feature = "proxy")]
mod upstream_loop;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::Address;
use crate::error::Error;
use crate::report::{Identity, Settings};

pub use overlap::TakenAddresses;
#[cfg(feature = "proxy")]
pub use proxy::{Balance, Check, Ejection, HeaderVersion, Network, ProxyConfig};
pub use socket_access::{SocketAccess, SocketMode};
#[cfg(feature = "proxy")]
pub use upstream::{HostPort, UpstreamTarget, Upstreams};
#[cfg(feature = "proxy")]
pub use upstream_loop::{Loop, find_loop};

/// The address on which the daemon listens if the configuration and the parent provide no
/// listeners.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:48879";

/// The name of the control socket when a parent or a predecessor passes it to this process. No
/// listener may have this name.
pub(crate) const CONTROL: &str = "control";

/// The name of the listener that answers requests for the counters of all generations. It may use
/// file descriptors that other listeners may not, so that a full daemon can still be observed.
pub const METRICS_LISTENER: &str = "metrics";

/// The configuration of a generation. [`Builder`](crate::Builder) changes single settings.
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
    /// How long a successor may take to become ready, counted from `fork`. After this time the
    /// predecessor kills it. Default 30 s.
    pub ready_timeout: Duration,
    /// How long both generations accept connections after the successor is ready. If the successor
    /// fails in this time, it is rolled back. Then the predecessor retires. Default 1 s. With zero,
    /// it retires at once.
    pub bake: Duration,
    /// How long connections may take to end by themselves during a drain. After this time the
    /// server closes them. Default 30 s.
    pub drain_timeout: Duration,
    /// What happens to open connections when a successor takes over. A listener may have its own
    /// setting. Default: they move to the successor.
    pub on_handoff: OnHandoff,
    /// How long after accept a client that has sent nothing may still send its first request during
    /// a drain. Default 1 s.
    pub first_request_grace: Duration,
    /// The maximum number of generations that serve or drain at the same time.
    pub max_generations: MaxGenerations,
    /// The path of a file that always contains the pid of the process to which an operator sends
    /// signals. `None` means no file.
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
            max_generations: MaxGenerations::default(),
            pid_file: None,
            control: None,
            identity: Identity::default(),
        }
    }
}

/// The time limits of a configuration, as a status report shows them.
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

/// The listeners of a generation: the sockets that it inherits, or a configured list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Listeners {
    /// The sockets that a parent passes in. Without such sockets, the listener is
    /// [`DEFAULT_ADDRESS`].
    #[default]
    Inherited,
    /// The listeners of this list and no others. Their names and addresses are unique.
    Named(UniqueListeners),
}

impl Listeners {
    /// Uses the listeners of this list and no others. An empty list means [`Listeners::Inherited`].
    ///
    /// # Errors
    /// Returns [`Error::DuplicateName`], [`Error::DuplicateAddress`] or
    /// [`Error::OverlappingAddresses`] if two listeners conflict. Several listeners may have port
    /// 0.
    pub fn new(listeners: Vec<ListenerConfig>) -> Result<Self, Error> {
        if listeners.is_empty() {
            Ok(Self::Inherited)
        } else {
            UniqueListeners::new(listeners).map(Self::Named)
        }
    }

    /// Returns the `on_handoff` settings of the listeners that have one, by listener name.
    pub(crate) fn on_handoff(&self) -> HashMap<String, OnHandoff> {
        let named = match self {
            Self::Inherited => &[],
            Self::Named(named) => named.as_slice(),
        };
        let named = named.iter().enumerate();
        named.filter_map(|(index, one)| Some((one.name_at(index), one.on_handoff?))).collect()
    }

    /// Returns the connection limits of the listeners that have one, by listener name.
    pub(crate) fn limits(&self) -> HashMap<String, NonZeroUsize> {
        let named = match self {
            Self::Inherited => &[],
            Self::Named(named) => named.as_slice(),
        };
        let limits = named.iter().enumerate();
        limits.filter_map(|(index, one)| Some((one.name_at(index), one.max_connections?))).collect()
    }
}

/// A list of listeners with unique names and with addresses that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueListeners(Vec<ListenerConfig>);

impl UniqueListeners {
    fn new(listeners: Vec<ListenerConfig>) -> Result<Self, Error> {
        let mut names = HashSet::new();
        let mut taken = TakenAddresses::default();
        for (index, one) in listeners.iter().enumerate() {
            let name = one.name_at(index);
            if names.contains(&name) {
                return Err(Error::DuplicateName { name });
            }
            names.insert(name);
            taken.take(&one.address, &one.address).map_err(|other| {
                let address = one.address.to_string();
                if *other == one.address {
                    Error::DuplicateAddress { address }
                } else {
                    Error::OverlappingAddresses { address, other: other.to_string() }
                }
            })?;
        }
        Ok(Self(listeners))
    }

    /// Returns the listeners in the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[ListenerConfig] {
        &self.0
    }
}

/// The configuration of one listener, written as `[name=]ADDRESS`.
///
/// ```
/// use handoffd::listen::ListenerConfig;
///
/// let mut web: ListenerConfig = "web=/run/app/web.sock".parse()?;
/// web.access.mode = Some("0660".parse()?);
/// web.max_connections = std::num::NonZeroUsize::new(1000);
/// # Ok::<(), handoffd::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerConfig {
    /// The name of the listener. The listener inherits the socket with this name. Without a name,
    /// it inherits the socket with its address, or else the socket at its position in the list.
    pub name: Option<ListenerName>,
    /// The address that the listener binds if it inherits no socket.
    pub address: Address,
    /// How many connections of this listener may be open at once. At the limit, the listener stops
    /// accepting, and new clients wait in the backlog. Default: no limit.
    pub max_connections: Option<NonZeroUsize>,
    /// What happens to connections of this listener when a successor takes over. `None` means the
    /// setting of [`Config::on_handoff`].
    pub on_handoff: Option<OnHandoff>,
    /// The owner and the mode of the socket's path, if the listener binds a path in the file
    /// system.
    pub access: SocketAccess,
}

impl ListenerConfig {
    /// Returns the configuration of a listener at `address`, without a name, and with the defaults
    /// for all other settings.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            name: None,
            address,
            max_connections: None,
            on_handoff: None,
            access: SocketAccess::default(),
        }
    }

    /// Returns the name of the listener. For a listener without a name, makes a name from `index`,
    /// its position in the list.
    pub(crate) fn name_at(&self, index: usize) -> String {
        self.name.as_ref().map_or_else(|| format!("listener-{}", index + 1), ToString::to_string)
    }
}

impl FromStr for ListenerConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // Only an equals sign before the address ends a name, because the address may contain an
        // equals sign too.
        let (name, address) = match text.split_once('=') {
            Some((name, address))
                if !name.starts_with(['/', '@']) && !name.starts_with("unix:") =>
            {
                (Some(name.parse()?), address)
            }
            _ => (None, text),
        };
        Ok(Self { name, ..Self::new(address.parse()?) })
    }
}

/// The name of a listener. It consists of characters that `LISTEN_FDNAMES` can contain (see
/// sd_listen_fds(3)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerName(String);

impl ListenerName {
    /// Returns the name of the listener as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ListenerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why| Err(Error::ListenerName { text: text.to_owned(), why });
        if text.is_empty() {
            return refuse("a name may not be empty");
        }
        if text.len() > 255 {
            return refuse("a name has at most 255 characters");
        }
        if text == CONTROL {
            return refuse("that is what the operator's socket is called");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':' && byte != b'=') {
            return refuse("a name is printable ASCII without spaces, colons and equals signs");
        }
        Ok(Self(text.to_owned()))
    }
}

/// The maximum number of generations that serve or drain at the same time. A successor that can
/// still be rolled back does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxGenerations(usize);

impl MaxGenerations {
    /// Accepts a number from 2 to 64: one generation that serves, and at least one that drains.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for any other number.
    pub fn new(count: usize) -> Result<Self, Error> {
        if (2..=64).contains(&count) {
            Ok(Self(count))
        } else {
            let why = "expected 2 to 64: one that serves and those that drain";
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

    fn listen(texts: &[&str]) -> Result<Listeners, Error> {
        Listeners::new(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_name_is_what_stands_before_an_address() {
        let named: ListenerConfig = "web=127.0.0.1:80".parse().unwrap();
        assert_eq!(named.name.unwrap().as_str(), "web");
        for text in ["127.0.0.1:80", "/run/a=b", "@a=b", "unix:/run/a=b"] {
            let unnamed: ListenerConfig = text.parse().unwrap();
            assert_eq!(unnamed.name, None, "{text}");
        }
    }

    #[test]
    fn names_that_the_environment_cannot_carry_are_refused() {
        for text in ["", "control", "a:b", "a b", "a\n", "ü", &"x".repeat(256)] {
            assert!(text.parse::<ListenerName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn two_listeners_share_neither_name_nor_address() {
        assert!(matches!(
            listen(&["a=127.0.0.1:1", "a=127.0.0.1:2"]),
            Err(Error::DuplicateName { .. })
        ));
        assert!(matches!(
            listen(&["listener-2=127.0.0.1:1", "127.0.0.1:2"]),
            Err(Error::DuplicateName { .. })
        ));
        assert!(matches!(
            listen(&["127.0.0.1:1", "b=127.0.0.1:1"]),
            Err(Error::DuplicateAddress { .. })
        ));
        assert!(matches!(
            listen(&["127.0.0.1:1", "[::]:1"]),
            Err(Error::OverlappingAddresses { .. })
        ));
        assert!(listen(&["127.0.0.1:0", "127.0.0.1:0"]).is_ok());
        assert_eq!(listen(&[]).unwrap(), Listeners::Inherited);
    }

    #[test]
    fn a_listener_may_say_what_becomes_of_its_connections() {
        let says = |text: &str, on_handoff| ListenerConfig { on_handoff, ..text.parse().unwrap() };
        let listeners = Listeners::new(vec![
            says("gives=127.0.0.1:1", Some(OnHandoff::Carry)),
            // This listener has no name, so a name is made from its position in the list.
            says("127.0.0.1:2", Some(OnHandoff::Drain)),
            says("silent=127.0.0.1:3", None),
        ]);
        let said = listeners.unwrap().on_handoff();
        let all =
            ["gives", "listener-2", "silent", "passed-in"].map(|name| said.get(name).copied());
        assert_eq!(all, [Some(OnHandoff::Carry), Some(OnHandoff::Drain), None, None]);
        assert!(Listeners::Inherited.on_handoff().is_empty());
        assert_eq!(
            Config::default().on_handoff,
            OnHandoff::Carry,
            "connections are carried by default"
        );
    }

    #[test]
    fn max_generations_is_between_2_and_64() {
        assert!(MaxGenerations::new(1).is_err());
        assert!(MaxGenerations::new(65).is_err());
        assert_eq!(MaxGenerations::new(2).unwrap().get(), 2);
    }
}
