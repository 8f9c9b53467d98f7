//! The configuration of a proxy: its upstreams and their order, timeouts, and PROXY headers.
//!
//! Every value is checked when it is created. The module `service::proxy` applies the configuration
//! to connections.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::upstream::Upstreams;
use crate::error::Error;

/// The configuration of the proxy of one listener.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxyConfig {
    /// The upstreams to which the proxy forwards connections.
    pub upstreams: Upstreams,
    /// How often the proxy resolves the host names of upstreams. Default 30 s.
    pub resolve_interval: Duration,
    /// Which upstream the proxy tries first for a new client.
    pub balance: Balance,
    /// How long an upstream may take to accept a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a client waits while no upstream accepts its connection. Default 10 s. With zero,
    /// the proxy tries each upstream once.
    pub connect_patience: Duration,
    /// How long a connection may be idle before the proxy closes it. Default: no limit.
    pub idle_timeout: Option<Duration>,
    /// How old a connection may become before the proxy closes it. Default: no limit.
    pub lifetime: Option<Duration>,
    /// The version of the PROXY header that tells the upstream the client's address. Default: no
    /// header.
    pub send_header: Option<HeaderVersion>,
    /// The networks whose clients begin each connection with a PROXY header, which contains the
    /// original client's address. Default: none.
    pub accept_header_from: Vec<Network>,
    /// How long a client may take to send a required PROXY header. Default 3 s.
    pub header_timeout: Duration,
    /// How long a connection may be silent before the kernel sends keep-alive probes to the client
    /// or the upstream (`TCP_KEEPIDLE`). Default: no probes.
    pub keep_alive: Option<Duration>,
    /// How long the client or the upstream may leave data unacknowledged before the kernel ends the
    /// connection (`TCP_USER_TIMEOUT`). Default: the kernel decides.
    pub user_timeout: Option<Duration>,
    /// When the proxy ejects a failing upstream, that is, stops using it for some time.
    pub ejection: Ejection,
    /// Periodic health checks of the upstreams, which do not depend on clients. Default: no checks.
    pub check: Option<Check>,
}

impl ProxyConfig {
    /// Returns the configuration with these upstreams and with defaults for all other settings.
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

/// Which upstream a proxy tries first for a new client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Balance {
    /// For each client, the proxy starts with the next upstream in the list.
    #[default]
    RoundRobin,
    /// The proxy starts with the upstream that has the fewest connections from this process.
    LeastConnections,
    /// The proxy always starts with the first upstream that is not ejected. Later upstreams are
    /// standbys.
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

/// The version of the PROXY header that tells an upstream the client's address. The PROXY protocol
/// was defined by HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderVersion {
    /// Version 1, in which the header is a line of text.
    V1,
    /// Version 2, in which the header is binary.
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

/// When the proxy ejects a failing upstream, that is, stops using it for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejection {
    /// How many failures in a row eject an upstream. Default 3. With zero, no upstream is ejected.
    pub failures: u32,
    /// How long an upstream stays ejected. Default 10 s. While all upstreams are ejected, the proxy
    /// tries them all.
    pub time: Duration,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 3, time: Duration::from_secs(10) }
    }
}

/// A periodic health check of each upstream: the proxy connects and closes the connection at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The time between two health checks of an upstream.
    pub interval: Duration,
    /// How long a health check may take before it counts as failed.
    pub timeout: Duration,
}

impl Check {
    /// Returns the settings for a health check at this interval, with a timeout of 2 s.
    #[must_use]
    pub const fn every(interval: Duration) -> Self {
        Self { interval, timeout: Duration::from_secs(2) }
    }
}

/// A set of clients: the clients in one network, or the clients of Unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(Members);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Members {
    /// The clients whose address has this prefix.
    Prefix(ipnet::IpNet),
    /// All clients of Unix sockets, which have no address.
    Unix,
}

impl Network {
    /// Returns whether `address` is in the network. An IPv4-mapped IPv6 address
    /// (`::ffff:192.0.2.1`) counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match self.0 {
            Members::Prefix(network) => network.contains(&address.to_canonical()),
            Members::Unix => false,
        }
    }

    /// Returns whether this value stands for the clients of Unix sockets, which have no address.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.0 == Members::Unix
    }
}

impl FromStr for Network {
    type Err = Error;

    /// Parses a network such as `192.0.2.0/24` or `2001:db8::/32`, a single address, or `unix`.
    fn from_str(text: &str) -> Result<Self, Error> {
        // Accept `unix:` too, because nginx writes the value this way.
        if matches!(text, "unix" | "unix:") {
            return Ok(Self(Members::Unix));
        }
        let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(Into::into));
        let why = "expected a network, as in 192.0.2.0/24 or 2001:db8::/32, or unix";
        let network = network.ok_or_else(|| Error::Address { text: text.to_owned(), why })?;
        Ok(Self(Members::Prefix(canonical(network))))
    }
}

/// Converts a network of IPv4-mapped addresses (`::ffff:192.0.2.0/120`) to the IPv4 network
/// (`192.0.2.0/24`).
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
    fn a_network_contains_ipv4_mapped_addresses() {
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
