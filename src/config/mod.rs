//! Holds what a generation is told to do, as values that cannot be wrong.
//!
//! Everything is checked when a value is made and never again. Where the values come from (flags, a
//! file) is the caller's affair.

mod overlap;
mod proxy;
mod socket_access;
mod upstream;
mod upstream_loop;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::Address;
use crate::error::Error;
use crate::report::Identity;

pub(crate) use overlap::TakenAddresses;
pub use proxy::{Balance, Check, Ejection, HeaderVersion, Network, ProxyConfig};
pub use socket_access::{SocketAccess, SocketMode};
pub use upstream::{HostPort, UpstreamTarget, Upstreams};
pub(crate) use upstream_loop::{Loop, find_loop};

/// Where the daemon listens when it is told nothing and inherits nothing: the port of the program
/// that this one follows.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:48879";

/// The name of the operator's socket on its way from process to process: no listener can have it.
pub(crate) const CONTROL: &str = "control";

/// The name of the listener that shows the counters.
#[cfg_attr(
    not(feature = "config-file"),
    allow(unreachable_pub, reason = "the configuration file exports it")
)]
pub const METRICS_LISTENER: &str = "metrics";

/// All that a generation is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to listen on.
    pub listeners: Listeners,
    /// How long a successor may take from `fork` to ready before it is killed. Default 30 s.
    pub ready_timeout: Duration,
    /// How long both generations accept after the successor is ready; until then it can be rolled
    /// back. Default 1 s; zero retires the predecessor at once.
    pub bake: Duration,
    /// How long connections get to end by themselves before they are cut. Default 30 s.
    pub drain_timeout: Duration,
    /// What becomes of connections when a successor takes over, on listeners that do not say
    /// otherwise. By default they are carried.
    pub on_handoff: OnHandoff,
    /// How long after it was accepted a connection may still send its first request when a drain
    /// begins. Default 1 s.
    pub first_request_grace: Duration,
    /// How many generations may serve or drain at once.
    pub max_generations: MaxGenerations,
    /// A file that names the process to signal, always.
    pub pid_file: Option<PathBuf>,
    /// Where an operator's commands are heard: the path of a Unix socket, which is open to the user
    /// of this process and to root alone. Without one nothing is heard there, unless a parent
    /// passes a socket in under the name `control`.
    pub control: Option<PathBuf>,
    /// What `status` says of the program and its configuration.
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

/// What becomes of connections when a successor takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHandoff {
    /// They are told to come to an end, and cut at the drain deadline.
    Drain,
    /// They move to the successor, if the service of both generations can carry them. Those that
    /// cannot are drained.
    #[default]
    Carry,
}

/// What to listen on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Listeners {
    /// Whatever a parent passes in; if nothing, [`DEFAULT_ADDRESS`].
    #[default]
    Inherited,
    /// These and no others. Names and addresses are unique.
    Named(UniqueListeners),
}

impl Listeners {
    /// Exactly these; none at all means [`Listeners::Inherited`].
    ///
    /// # Errors
    /// [`Error::DuplicateName`], [`Error::DuplicateAddress`] and [`Error::OverlappingAddresses`].
    /// Port 0 may be asked for more than once.
    pub fn exactly(listeners: Vec<ListenerConfig>) -> Result<Self, Error> {
        if listeners.is_empty() {
            Ok(Self::Inherited)
        } else {
            UniqueListeners::new(listeners).map(Self::Named)
        }
    }

    /// Checks that a proxy on all of these does not connect to itself.
    ///
    /// # Errors
    /// [`Error::UpstreamLoop`].
    pub fn check_upstreams(&self, upstreams: &Upstreams) -> Result<(), Error> {
        let Self::Named(named) = self else { return Ok(()) };
        let all: Vec<_> =
            named.as_slice().iter().map(|one| (&one.address, upstreams.as_slice())).collect();
        match find_loop(&all) {
            None => Ok(()),
            Some(Loop { upstream, leads_to, .. }) => Err(Error::UpstreamLoop {
                upstream: upstreams.as_slice()[upstream].to_string(),
                listener: named.as_slice()[leads_to].address.to_string(),
            }),
        }
    }

    /// What becomes of the connections of each when a successor takes over, by the name that it
    /// goes by, where that is said.
    pub(crate) fn on_handoff(&self) -> HashMap<String, OnHandoff> {
        let named = match self {
            Self::Inherited => &[],
            Self::Named(named) => named.as_slice(),
        };
        let named = named.iter().enumerate();
        named.filter_map(|(index, one)| Some((one.name_at(index), one.on_handoff?))).collect()
    }

    /// How many connections each may have at once, by the name that it goes by, where that is said.
    pub(crate) fn limits(&self) -> HashMap<String, NonZeroUsize> {
        let named = match self {
            Self::Inherited => &[],
            Self::Named(named) => named.as_slice(),
        };
        let limits = named.iter().enumerate();
        limits.filter_map(|(index, one)| Some((one.name_at(index), one.max_connections?))).collect()
    }
}

/// Listeners of which no two share a name, and no two addresses overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueListeners(Vec<ListenerConfig>);

impl UniqueListeners {
    fn new(listeners: Vec<ListenerConfig>) -> Result<Self, Error> {
        let mut names = HashSet::new();
        let mut taken = TakenAddresses::new();
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

    /// In the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[ListenerConfig] {
        &self.0
    }
}

/// One listener: `[name=]ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its name, by which an inherited socket is matched; without one it goes by its address, then
    /// by its place.
    pub name: Option<ListenerName>,
    /// Where to listen when no socket is passed in for it.
    pub address: Address,
    /// How many connections it may have at once; when there are as many, nobody is accepted, and
    /// whoever comes waits in the queue. Default: as many as come.
    pub max_connections: Option<NonZeroUsize>,
    /// What becomes of its connections when a successor takes over; none: as [`Config::on_handoff`]
    /// says.
    pub on_handoff: Option<OnHandoff>,
    /// Who may connect, when its address is a path that the line binds.
    pub access: SocketAccess,
}

impl ListenerConfig {
    /// The name that it goes by as the listener at `index`: its own, or one by its place.
    pub(crate) fn name_at(&self, index: usize) -> String {
        self.name.as_ref().map_or_else(|| format!("listener-{}", index + 1), ToString::to_string)
    }
}

impl FromStr for ListenerConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // An abstract or path address may hold an equals sign; a name comes before the first
        // character of an address.
        let (name, address) = match text.split_once('=') {
            Some((name, address))
                if !name.starts_with(['/', '@']) && !name.starts_with("unix:") =>
            {
                (Some(name.parse()?), address)
            }
            _ => (None, text),
        };
        Ok(Self {
            name,
            address: address.parse()?,
            max_connections: None,
            on_handoff: None,
            access: SocketAccess::default(),
        })
    }
}

/// A listener's name: what `LISTEN_FDNAMES` can carry, sd_listen_fds(3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerName(String);

impl ListenerName {
    /// The name as text.
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

/// How many generations may serve or drain at once; one on probation does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxGenerations(usize);

impl MaxGenerations {
    /// One that serves and at least one that drains, at most 64.
    ///
    /// # Errors
    /// [`Error::Setting`] outside of 2 to 64.
    pub fn new(count: usize) -> Result<Self, Error> {
        if (2..=64).contains(&count) {
            Ok(Self(count))
        } else {
            let why = "expected 2 to 64: one that serves and those that drain";
            Err(Error::Setting { setting: "max-generations", value: count.to_string(), why })
        }
    }

    /// The number, 2 to 64.
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
        Listeners::exactly(texts.iter().map(|text| text.parse().unwrap()).collect())
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
        let listeners = Listeners::exactly(vec![
            says("gives=127.0.0.1:1", Some(OnHandoff::Carry)),
            // By its place: it has no name of its own.
            says("127.0.0.1:2", Some(OnHandoff::Drain)),
            says("silent=127.0.0.1:3", None),
        ]);
        let said = listeners.unwrap().on_handoff();
        let all =
            ["gives", "listener-2", "silent", "passed-in"].map(|name| said.get(name).copied());
        assert_eq!(all, [Some(OnHandoff::Carry), Some(OnHandoff::Drain), None, None]);
        assert!(Listeners::Inherited.on_handoff().is_empty());
        assert_eq!(Config::default().on_handoff, OnHandoff::Carry, "the promise needs no flag");
    }

    #[test]
    fn a_bound_on_generations_leaves_room_for_one_that_drains() {
        assert!(MaxGenerations::new(1).is_err());
        assert!(MaxGenerations::new(65).is_err());
        assert_eq!(MaxGenerations::new(2).unwrap().get(), 2);
    }
}
