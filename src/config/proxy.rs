//! Holds what a proxied listener is told: where to, in which order, how long to wait, what to say
//! of the client.
//!
//! Everything is checked when a value is made. How a connection fares by it is decided in
//! `service::proxy`.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::upstream::Upstreams;
use crate::error::Error;

/// What is done with the connections of one listener.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where they go.
    pub upstreams: Upstreams,
    /// How often host names among them are resolved. Default 30 s.
    pub resolve_interval: Duration,
    /// Which upstream is tried first.
    pub balance: Balance,
    /// How long one upstream may take to accept. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a client is held while no upstream accepts. Default 10 s; zero means that each is
    /// tried once.
    pub connect_patience: Duration,
    /// A connection on which nothing moves for this long is closed. Default: never.
    pub idle_timeout: Option<Duration>,
    /// A connection that is older than this is closed. Default: never.
    pub lifetime: Option<Duration>,
    /// In which form the upstream is told who the client is. Default: it is not.
    pub send_header: Option<HeaderVersion>,
    /// From these networks the client begins with a PROXY header, which says who it really is.
    /// Default: none.
    pub accept_header_from: Vec<Network>,
    /// How long such a client may take for its header. Default 3 s.
    pub header_timeout: Duration,
    /// How long nothing may be heard before the kernel probes a peer, on both sides
    /// (`TCP_KEEPIDLE`). Default: never.
    pub keep_alive: Option<Duration>,
    /// How long what was sent may stay unacknowledged, on both sides (`TCP_USER_TIMEOUT`). Default:
    /// the kernel's.
    pub user_timeout: Option<Duration>,
    /// When an upstream that fails is passed over.
    pub ejection: Ejection,
    /// How upstreams are looked after when no client does it. Default: not at all.
    pub check: Option<Check>,
}

impl ProxyConfig {
    /// The defaults, for these upstreams.
    #[must_use]
    pub fn to(upstreams: Upstreams) -> Self {
        Self {
            upstreams,
            resolve_interval: Duration::from_secs(30),
            balance: Balance::default(),
            connect_timeout: Duration::from_secs(5),
            connect_patience: Duration::from_secs(10),
            idle_timeout: None,
            lifetime: None,
            send_header: None,
            accept_header_from: Vec::new(),
            header_timeout: Duration::from_secs(3),
            keep_alive: None,
            user_timeout: None,
            ejection: Ejection::default(),
            check: None,
        }
    }
}

/// Which upstream is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest connections of ours.
    LeastConnections,
    /// The first one that is well; those after it stand by.
    InOrder,
}

impl FromStr for Balance {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            "in-order" => Ok(Self::InOrder),
            _ => {
                let why = "expected round-robin, least-connections or in-order";
                Err(Error::Setting { setting: "balance", value: format!("{text:?}"), why })
            }
        }
    }
}

/// In which form an upstream is told who the client is: HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl FromStr for HeaderVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => {
                let why = "expected v1 (text) or v2 (binary)";
                Err(Error::Setting { setting: "PROXY header", value: format!("{text:?}"), why })
            }
        }
    }
}

/// When an upstream that fails is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// After how many failures in a row. Default 3; zero means never.
    pub failures: u32,
    /// For how long. Default 10 s. When all are passed over, none is.
    pub time: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 3, time: Duration::from_secs(10) }
    }
}

/// How upstreams are looked after when no client does it: a connection is made, and closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// How often.
    pub interval: Duration,
    /// How long it may take.
    pub timeout: Duration,
}

/// Clients that are told apart by where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(Members);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Members {
    /// Addresses that share a prefix.
    Prefix(ipnet::IpNet),
    /// All clients of Unix sockets.
    Unix,
}

impl Network {
    /// Whether `address` is one of them. An IPv4 address that came in over IPv6 is the IPv4
    /// address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match self.0 {
            Members::Prefix(network) => network.contains(&address.to_canonical()),
            Members::Unix => false,
        }
    }

    /// Whether the clients of Unix sockets are meant, which have no address.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.0 == Members::Unix
    }
}

impl FromStr for Network {
    type Err = Error;

    /// `192.0.2.0/24`, `2001:db8::/32`, `unix`; a single address is a network of one.
    fn from_str(text: &str) -> Result<Self, Error> {
        // The second is how nginx has it.
        if matches!(text, "unix" | "unix:") {
            return Ok(Self(Members::Unix));
        }
        let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Into::into));
        let why = "expected a network, as in 192.0.2.0/24 or 2001:db8::/32, or unix";
        let network = network.ok_or_else(|| Error::Address { text: text.to_owned(), why })?;
        Ok(Self(Members::Prefix(canonical(network))))
    }
}

/// IPv4 addresses written as IPv6 (`::ffff:192.0.2.0/120`) are the IPv4 addresses (`192.0.2.0/24`).
fn canonical(network: ipnet::IpNet) -> ipnet::IpNet {
    const MAPPED: u8 = 96;
    let ipnet::IpNet::V6(six) = network else { return network };
    let length = six.prefix_len().checked_sub(MAPPED);
    match (six.addr().to_ipv4_mapped(), length) {
        (Some(address), Some(length)) => {
            ipnet::Ipv4Net::new(address, length).map_or(network, Into::into)
        }
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_knows_its_own_by_whichever_way_they_come() {
        let network: Network = "192.0.2.0/24".parse().unwrap();
        assert!(network.contains("192.0.2.77".parse().unwrap()));
        assert!(network.contains("::ffff:192.0.2.77".parse().unwrap()));
        assert!(!network.contains("192.0.3.1".parse().unwrap()));
        assert!("2001:db8::1".parse::<Network>().unwrap().contains("2001:db8::1".parse().unwrap()));
        assert!("192.0.2.0/33".parse::<Network>().is_err());
    }

    #[test]
    fn a_network_of_ipv4_may_be_written_as_ipv6() {
        for text in [
            "::ffff:127.0.0.0/104",
            "::ffff:127.1.2.3/104",
            "::ffff:7f00:0/104",
            "::ffff:127.0.0.1",
        ] {
            let network: Network = text.parse().unwrap();
            assert!(network.contains("127.0.0.1".parse().unwrap()), "{text}");
            assert!(network.contains("::ffff:127.0.0.1".parse().unwrap()), "{text}");
            assert!(!network.contains("128.0.0.1".parse().unwrap()), "{text}");
            assert!(!network.contains("::1".parse().unwrap()), "{text}");
        }
        let all: Network = "::ffff:0.0.0.0/96".parse().unwrap();
        assert!(all.contains("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn clients_of_unix_sockets_are_a_network_without_addresses() {
        let network: Network = "unix".parse().unwrap();
        assert!(network.is_unix() && !network.contains("127.0.0.1".parse().unwrap()));
        assert!(!"0.0.0.0/0".parse::<Network>().unwrap().is_unix());
    }
}
