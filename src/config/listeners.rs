//! The listeners of a configuration: their names, addresses and settings.
//!
//! A list of listeners is checked when it is created, so no two listeners can conflict later.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use super::overlap::TakenAddresses;
use super::socket_access::SocketAccess;
use super::{CONTROL, OnHandoff};
use crate::address::Address;
use crate::error::Error;

/// The listeners of a generation: the sockets that it inherits, or a configured list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Listeners {
    /// The sockets that a parent passes in. If there are none, a single listener at
    /// [`DEFAULT_ADDRESS`](super::DEFAULT_ADDRESS).
    #[default]
    Inherited,
    /// Exactly the listeners in this list. Their names and addresses are unique.
    Named(UniqueListeners),
}

impl Listeners {
    /// Returns a setting with exactly these listeners. An empty list means
    /// [`Listeners::Inherited`].
    ///
    /// # Errors
    /// Returns [`Error::DuplicateName`], [`Error::DuplicateAddress`] or
    /// [`Error::OverlappingAddresses`] if two listeners conflict. Several listeners may use port 0,
    /// because the kernel gives each a different port.
    pub fn new(listeners: Vec<ListenerConfig>) -> Result<Self, Error> {
        if listeners.is_empty() {
            Ok(Self::Inherited)
        } else {
            UniqueListeners::new(listeners).map(Self::Named)
        }
    }

    /// Returns the `on_handoff` setting of each listener that has one, by listener name.
    pub(crate) fn on_handoff(&self) -> HashMap<String, OnHandoff> {
        let named = match self {
            Self::Inherited => &[],
            Self::Named(named) => named.as_slice(),
        };
        let named = named.iter().enumerate();
        named.filter_map(|(index, one)| Some((one.name_at(index), one.on_handoff?))).collect()
    }

    /// Returns the connection limit of each listener that has one, by listener name.
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
    /// The name of the listener. The listener inherits the socket that a parent passes in under
    /// this name. Otherwise it inherits the socket with its address, or else the next socket
    /// without a name.
    pub name: Option<ListenerName>,
    /// The address that the listener binds to if it inherits no socket.
    pub address: Address,
    /// How many connections of this listener may be open at once. At the limit, the listener stops
    /// accepting, and new clients wait in the backlog. Default: no limit. In a server of your own,
    /// the limit applies to [`Life::acceptor`](crate::embed::Life::acceptor),
    /// [`Life::blocking`](crate::embed::Life::blocking) and
    /// [`Life::private_listener`](crate::embed::Life::private_listener).
    pub max_connections: Option<NonZeroUsize>,
    /// What happens to connections of this listener when a successor takes over. If it is `None`,
    /// [`Config::on_handoff`](super::Config::on_handoff) applies.
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

    /// Returns the name of the listener. For a listener without a name, derives a name from
    /// `index`, its position in the list.
    pub(crate) fn name_at(&self, index: usize) -> String {
        self.name.as_ref().map_or_else(|| format!("listener-{}", index + 1), ToString::to_string)
    }
}

impl FromStr for ListenerConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // An equals sign ends a name only if it comes before the address, because the address may
        // contain an equals sign too.
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
            return refuse("this name is reserved for the control socket");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':' && byte != b'=') {
            return refuse(
                "a name may have only printable ASCII without spaces, colons and equals signs",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
            // This listener has no name, so its name is derived from its position in the list.
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
}
