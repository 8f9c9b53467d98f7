//! This module finds addresses that two listeners cannot use at the same time, such as `[::]:80`
//! and `0.0.0.0:80`.
//!
//! Without this check, the process would fail to start. The kernel would report "address in use"
//! without naming the other listener. This module opens no sockets, and does not know the addresses
//! of the network interfaces.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::Address;

/// The addresses that listeners already use. Each address has an owner, which an error message can
/// name.
#[derive(Debug)]
pub struct TakenAddresses<T> {
    unix: HashMap<Address, T>,
    ports: HashMap<u16, Port<T>>,
}

/// The addresses that listeners already use on one TCP port.
#[derive(Debug)]
struct Port<T> {
    v4: BTreeMap<Ipv4Addr, T>,
    /// The owner of each IPv6 address. The scope id distinguishes equal link-local addresses on
    /// different interfaces.
    v6: BTreeMap<(Ipv6Addr, u32), T>,
    /// The owner of `[::]`, if its socket accepts IPv4 too.
    dual: Option<T>,
}

impl<T> Default for TakenAddresses<T> {
    fn default() -> Self {
        Self { unix: HashMap::new(), ports: HashMap::new() }
    }
}

impl<T: Clone> TakenAddresses<T> {
    /// Reserves an address for a listener, so that a later listener with an overlapping address is
    /// refused.
    ///
    /// # Errors
    /// Returns the owner of an address that overlaps with `address`.
    pub fn take(&mut self, address: &Address, owner: T) -> Result<(), T> {
        if address.is_any_port() {
            return Ok(());
        }
        let (socket, takes_v4) = match address {
            Address::UnixPath(_) | Address::UnixAbstract(_) => {
                return match self.unix.insert(address.clone(), owner) {
                    Some(other) => Err(other),
                    None => Ok(()),
                };
            }
            Address::Tcp(socket) => (*socket, true),
            Address::Tcp6Only(socket) => (SocketAddr::V6(*socket), false),
        };
        let port = self.ports.entry(socket.port()).or_insert_with(Port::new);
        match port.owner_beside(socket, takes_v4) {
            Some(other) => Err(other.clone()),
            None => {
                port.add(socket, takes_v4, owner);
                Ok(())
            }
        }
    }
}

impl<T> Port<T> {
    const fn new() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new(), dual: None }
    }

    fn owner_beside(&self, socket: SocketAddr, takes_v4: bool) -> Option<&T> {
        let unspecified = (Ipv6Addr::UNSPECIFIED, 0);
        match (socket.ip().to_canonical(), scope(socket)) {
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), _) => {
                self.v4.values().next().or(self.dual.as_ref())
            }
            (IpAddr::V4(ip), _) => {
                let v4 = self.v4.get(&ip).or_else(|| self.v4.get(&Ipv4Addr::UNSPECIFIED));
                v4.or(self.dual.as_ref())
            }
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), _) => {
                let v4 = if takes_v4 { self.v4.values().next() } else { None };
                self.v6.values().next().or(v4)
            }
            (IpAddr::V6(ip), scope) => {
                self.v6.get(&(ip, scope)).or_else(|| self.v6.get(&unspecified))
            }
        }
    }

    fn add(&mut self, socket: SocketAddr, takes_v4: bool, owner: T)
    where
        T: Clone,
    {
        match (socket.ip().to_canonical(), scope(socket)) {
            (IpAddr::V4(ip), _) => {
                self.v4.insert(ip, owner);
            }
            (IpAddr::V6(ip), scope) => {
                if ip.is_unspecified() && takes_v4 {
                    self.dual = Some(owner.clone());
                }
                self.v6.insert((ip, scope), owner);
            }
        }
    }
}

const fn scope(socket: SocketAddr) -> u32 {
    match socket {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(socket) => socket.scope_id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    /// Returns whether two listeners can use the two addresses at the same time, in either order.
    fn are_apart(one: &str, other: &str) -> bool {
        let apart = |first: &str, second: &str| {
            let mut taken = TakenAddresses::default();
            taken.take(&address(first), 1).unwrap();
            taken.take(&address(second), 2).is_ok()
        };
        assert_eq!(apart(one, other), apart(other, one), "{one} {other}");
        apart(one, other)
    }

    /// The expected results match bind(2), which was tried with each pair of addresses.
    #[test]
    fn an_address_overlaps_the_addresses_that_it_includes() {
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "0.0.0.0:80"),
            ("[::]:80", "[::1]:80"),
            ("[::]:80", "tcp6:[::]:80"),
            ("tcp6:[::]:80", "[::1]:80"),
            ("tcp6:[::1]:80", "[::1]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "0.0.0.0:80"),
            ("/run/a", "/run//a"),
            ("@a", "@a"),
        ] {
            assert!(!are_apart(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("127.0.0.1:80", "[::1]:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("0.0.0.0:80", "tcp6:[::]:80"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[fe80::1%1]:80", "[fe80::1%2]:80"),
            ("/run/a", "@a"),
            ("/run/a", "/run/b"),
        ] {
            assert!(are_apart(one, other), "{one} {other}");
        }
    }
}
