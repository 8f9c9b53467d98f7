//! The upstreams of a proxy: addresses, and host names that the proxy resolves while it runs.
//!
//! This module only parses host names. The module `service::proxy` resolves them.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::address::Address;
use crate::error::Error;

/// The maximum lengths, in bytes, of a host name and of each part between its dots (see RFC 1035).
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// An upstream as the configuration gives it: an address or a host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamTarget {
    /// An upstream with a fixed address.
    Address(Address),
    /// All addresses of a host name, each with the same port.
    Host(HostPort),
}

/// A host name and a port, such as `backend.example:9000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    name: String,
    port: u16,
}

impl HostPort {
    /// Returns the host name in lower case.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the port, which applies to all addresses of the host name.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns whether the host name always refers to this machine, regardless of DNS (see RFC
    /// 6761).
    pub(crate) fn is_localhost(&self) -> bool {
        let name = self.name.strip_suffix('.').unwrap_or(&self.name);
        name == "localhost" || name.ends_with(".localhost")
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl fmt::Display for UpstreamTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

impl From<Address> for UpstreamTarget {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl FromStr for UpstreamTarget {
    type Err = Error;

    /// Parses the address of an upstream, or `HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why| Error::Address { text: text.to_owned(), why };
        let is_address =
            ["/", "@", "unix:", "tcp6:", "["].iter().any(|prefix| text.starts_with(prefix));
        match text.parse() {
            Ok(Address::Tcp(address)) if address.port() == 0 => {
                Err(refuse("an upstream cannot have port 0"))
            }
            Ok(Address::Tcp6Only(_)) => {
                Err(refuse("tcp6: is only for listeners; write an upstream as [IPV6]:PORT"))
            }
            Ok(address) => Ok(Self::Address(address)),
            Err(error) if is_address && !text.starts_with('[') => Err(error),
            Err(_) => host(text).map(Self::Host).map_err(refuse),
        }
    }
}

/// Parses a host name and a port, written as `HOST:PORT`.
fn host(text: &str) -> Result<HostPort, &'static str> {
    const EXPECTED: &str = "expected IP:PORT, [IPV6]:PORT, HOST:PORT, /PATH or @NAME";
    let (name, port) = text.split_once(':').ok_or(EXPECTED)?;
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|_| is_number).ok_or(EXPECTED)?;
    if port == 0 {
        return Err("an upstream cannot have port 0");
    }
    let labels = name.strip_suffix('.').unwrap_or(name);
    if labels.is_empty() || labels.parse::<IpAddr>().is_ok() {
        return Err(EXPECTED);
    }
    if labels.len() > NAME_MAX || labels.split('.').any(|label| label.len() > LABEL_MAX) {
        return Err("a host name has at most 253 bytes, and at most 63 between two dots");
    }
    let is_label = |label: &str| {
        let is_plain =
            label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        is_plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    if !labels.split('.').all(is_label) {
        return Err("a host name has only letters, digits, hyphens and dots (others as xn--)");
    }
    // Refuse numbers such as `127.1` and `0x7f000001`. A resolver would read them as addresses, but
    // they are probably typing mistakes.
    let last = labels.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.to_ascii_lowercase().starts_with("0x")
    {
        return Err("a host name may not end in a number");
    }
    Ok(HostPort { name: name.to_ascii_lowercase(), port })
}

/// The upstreams of a proxy: at least one, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstreams(Vec<UpstreamTarget>);

impl Upstreams {
    /// Creates a list with these upstreams in this order.
    ///
    /// # Errors
    /// Returns [`Error::NoUpstream`] for an empty list, and [`Error::DuplicateUpstream`] for a
    /// duplicate. Returns [`Error::Address`] for an address to which nothing can connect: port 0,
    /// or `tcp6:`, which is only for listeners.
    pub fn new(upstreams: Vec<UpstreamTarget>) -> Result<Self, Error> {
        if upstreams.is_empty() {
            return Err(Error::NoUpstream);
        }
        let mut seen = HashSet::new();
        for one in &upstreams {
            // Check the upstream again, because it may have been created without parsing.
            let _: UpstreamTarget = one.to_string().parse()?;
            if !seen.insert(one) {
                return Err(Error::DuplicateUpstream { address: one.to_string() });
            }
        }
        Ok(Self(upstreams))
    }

    /// Returns an empty list, for use until the addresses are known.
    #[cfg(feature = "program")]
    pub(super) const fn unknown() -> Self {
        Self(Vec::new())
    }

    /// Returns the upstreams in the order in which they were given.
    #[must_use]
    pub fn as_slice(&self) -> &[UpstreamTarget] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(texts: &[&str]) -> Result<Upstreams, Error> {
        Upstreams::new(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }

    /// An empty list, a duplicate, and an address to which nothing can connect are errors.
    #[test]
    fn upstreams_are_reachable_and_unique() {
        assert!(matches!(upstreams(&[]), Err(Error::NoUpstream)));
        assert!(matches!(
            upstreams(&["@a", "127.0.0.1:1", "@a"]),
            Err(Error::DuplicateUpstream { .. })
        ));
        assert!(matches!(upstreams(&["a:1", "A:1"]), Err(Error::DuplicateUpstream { .. })));
        assert!(matches!(upstreams(&["127.0.0.1:0"]), Err(Error::Address { .. })));
        assert!(matches!(upstreams(&["tcp6:[::1]:1"]), Err(Error::Address { .. })));
        let made = Address::Tcp("127.0.0.1:0".parse().unwrap());
        assert!(matches!(Upstreams::new(vec![made.into()]), Err(Error::Address { .. })));
        assert_eq!(upstreams(&["127.0.0.1:1", "/run/a", "@a", "a:1"]).unwrap().as_slice().len(), 4);
    }

    #[test]
    fn a_host_name_with_a_port_is_an_upstream() {
        for text in [
            "localhost:80",
            "backend.example:65535",
            "a-b_c.0x.example.:1",
            "xn--bcher-kva.example:1",
            "1.a:1",
        ] {
            let Ok(UpstreamTarget::Host(host)) = text.parse() else { panic!("{text}") };
            assert_eq!(host.to_string(), text);
        }
        let host = |text: &str| host(text).unwrap();
        assert_eq!((host("Backend:80").name(), host("Backend:80").port()), ("backend", 80));
        assert!(host("localhost:1").is_localhost() && host("a.LOCALHOST.:1").is_localhost());
        assert!(!host("localhost.example:1").is_localhost());
    }

    #[test]
    fn a_malformed_host_name_is_refused() {
        let long = format!("{}:1", "a.".repeat(130));
        let label = format!("{}:1", "a".repeat(64));
        for text in [
            "localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:-1",
            "localhost:+1",
            ":80",
            ".:80",
            "a..b:1",
            "-a:1",
            "a-:1",
            "a b:1",
            "bücher:1",
            "256.0.0.1:80",
            "127.1:80",
            "0x7f000001:80",
            "1:80",
            "::1:80",
            "[::1]",
            "udp:127.0.0.1:80",
            "http://a:80",
            "a:80/path",
            &long,
            &label,
        ] {
            let error = text.parse::<UpstreamTarget>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
