//! This module finds proxies that would connect to themselves, directly or through other listeners.
//!
//! Without this check, such a proxy would start, but its first client would use up all file
//! descriptors. This module resolves no host names. It recognizes only the name `localhost`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::upstream::UpstreamTarget;
use crate::address::Address;

/// An upstream that leads back to its own listener, directly or through other listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The index of the listener whose proxy has the upstream.
    pub listener: usize,
    /// The index of the upstream in its listener's list.
    pub upstream: usize,
    /// The index of the listener that the upstream's address belongs to. Connections to the
    /// upstream arrive there.
    pub leads_to: usize,
}

/// Returns the first loop among these listeners and their upstreams. This function resolves no host
/// names. It recognizes only the name `localhost`.
pub fn find_loop(listeners: &[(&Address, &[UpstreamTarget])]) -> Option<Loop> {
    let at: Places = Places::of(listeners.iter().map(|(address, _)| *address));
    let target = |upstream: &UpstreamTarget| match upstream {
        UpstreamTarget::Address(address) => at.reached_from(address),
        UpstreamTarget::Host(host) if host.is_localhost() => {
            let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            local
                .iter()
                .find_map(|ip| at.reached_from(&Address::Tcp(SocketAddr::new(*ip, host.port()))))
        }
        UpstreamTarget::Host(_) => None,
    };
    let mut state = vec![Visit::Never; listeners.len()];
    for first in 0..listeners.len() {
        // The path from the first listener to the current listener. Each entry has a listener's
        // index, and the index of that listener's next upstream to visit.
        let mut way = vec![(first, 0)];
        while let Some((listener, upstream)) = way.last().copied() {
            if upstream == 0 {
                if state[listener] == Visit::Done {
                    way.pop();
                    continue;
                }
                state[listener] = Visit::UnderWay;
            }
            let Some(address) = listeners[listener].1.get(upstream) else {
                state[listener] = Visit::Done;
                way.pop();
                continue;
            };
            if let Some((_, next)) = way.last_mut() {
                *next += 1;
            }
            match target(address) {
                Some(leads_to) if state[leads_to] == Visit::UnderWay => {
                    return Some(Loop { listener, upstream, leads_to });
                }
                Some(leads_to) => way.push((leads_to, 0)),
                None => {}
            }
        }
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    Never,
    UnderWay,
    Done,
}

/// The indexes of listeners, by the address on which they listen. If several listeners have the
/// same address, the first one counts.
#[derive(Default)]
struct Places {
    unix: HashMap<Address, usize>,
    tcp: HashMap<(u16, IpAddr), usize>,
    /// The listeners that listen on all addresses of the machine, by port. This field is for
    /// `0.0.0.0`, `all_v6` for IPv6-only `[::]`, and `all` for `[::]` with IPv4.
    all_v4: HashMap<u16, usize>,
    all_v6: HashMap<u16, usize>,
    all: HashMap<u16, usize>,
}

impl Places {
    fn of<'a>(listeners: impl Iterator<Item = &'a Address>) -> Self {
        let mut places = Self::default();
        for (place, address) in listeners.enumerate() {
            let (at, takes_v4) = match address {
                Address::Tcp(at) => (*at, true),
                Address::Tcp6Only(at) => (SocketAddr::V6(*at), false),
                Address::UnixPath(_) | Address::UnixAbstract(_) => {
                    places.unix.entry(address.clone()).or_insert(place);
                    continue;
                }
            };
            match at.ip().to_canonical() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
                    places.all_v4.entry(at.port()).or_insert(place)
                }
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) if takes_v4 => {
                    places.all.entry(at.port()).or_insert(place)
                }
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                    places.all_v6.entry(at.port()).or_insert(place)
                }
                ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => {
                    places.tcp.entry((at.port(), ip)).or_insert(place)
                }
            };
        }
        places
    }

    /// Returns the first listener that a connection to `upstream` reaches, judging by the addresses
    /// only.
    fn reached_from(&self, upstream: &Address) -> Option<usize> {
        let to = match upstream {
            Address::Tcp(to) => *to,
            Address::Tcp6Only(_) | Address::UnixPath(_) | Address::UnixAbstract(_) => {
                return self.unix.get(upstream).copied();
            }
        };
        // A connection to an unspecified address, such as `0.0.0.0`, reaches this machine.
        let ip = match to.ip().to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        };
        let mut reached = vec![self.tcp.get(&(to.port(), ip))];
        if ip.is_loopback() {
            let one_family = if ip.is_ipv4() { &self.all_v4 } else { &self.all_v6 };
            reached.extend([one_family.get(&to.port()), self.all.get(&to.port())]);
        }
        reached.into_iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn found(listeners: &[(&str, &[&str])]) -> Option<Loop> {
        let upstreams = |to: &[&str]| to.iter().map(|text| text.parse().unwrap()).collect();
        let parsed: Vec<(Address, Vec<UpstreamTarget>)> =
            listeners.iter().map(|(at, to)| (address(at), upstreams(to))).collect();
        find_loop(&parsed.iter().map(|(at, to)| (at, to.as_slice())).collect::<Vec<_>>())
    }

    #[test]
    fn a_listener_that_is_its_own_upstream_is_a_loop() {
        for (listener, upstream) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("0.0.0.0:80", "127.1.2.3:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("tcp6:[::]:80", "[::1]:80"),
            ("[::1]:80", "[::]:80"),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80"),
            ("127.0.0.1:80", "localhost:80"),
            ("[::1]:80", "a.localhost:80"),
            ("/run/a", "/run/a"),
            ("@a", "@a"),
        ] {
            let expected = Loop { listener: 0, upstream: 1, leads_to: 0 };
            assert_eq!(
                found(&[(listener, &["@other", upstream])]),
                Some(expected),
                "{listener} {upstream}"
            );
        }
        for (listener, upstream) in [
            ("0.0.0.0:80", "127.0.0.1:81"),
            ("0.0.0.0:80", "[::1]:80"),
            ("tcp6:[::]:80", "127.0.0.1:80"),
            ("192.0.2.1:80", "localhost:80"),
            ("0.0.0.0:80", "backend.example:80"),
            ("@a", "/a"),
        ] {
            assert_eq!(found(&[(listener, &[upstream])]), None, "{listener} {upstream}");
        }
    }

    /// Listeners that forward to each other in a chain are accepted, unless the chain is a loop.
    #[test]
    fn a_loop_through_several_listeners_is_found() {
        let chain: &[(&str, &[&str])] = &[("@a", &["@b", "@c"]), ("@b", &["@c"]), ("@c", &["@d"])];
        assert_eq!(found(chain), None);
        let mut looped = chain.to_vec();
        looped[2].1 = &["@d", "@a"];
        assert_eq!(found(&looped), Some(Loop { listener: 2, upstream: 1, leads_to: 0 }));
    }
}
