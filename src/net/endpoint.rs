//! This module decides whether a passed socket and a configured listener have the same address.
//!
//! Comparing the text is not enough, because the same endpoint can be written in several ways. For
//! example, `/var/run/web.sock` is often the same as `/run/web.sock`, and `[::ffff:192.0.2.1]:80`
//! is the same as `192.0.2.1:80`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use socket2::Socket;

use super::origin::FileId;
use crate::address::Address;

/// The TCP address or Unix socket that clients connect to, regardless of how the address is
/// written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    /// A TCP endpoint. `is_dual` is true for the address `[::]` if it also accepts IPv4. `scope`
    /// distinguishes link-local addresses on different interfaces.
    Tcp {
        ip: IpAddr,
        port: u16,
        scope: u32,
        is_dual: bool,
    },
    /// A Unix socket path, identified by the file that the path resolves to.
    File(FileId),
    /// A Unix socket path at which no file exists.
    Path(PathBuf),
    Abstract(String),
}

impl Endpoint {
    /// Returns the endpoint of a configured address. Returns `None` for port 0, because each
    /// listener with port 0 gets a different port.
    pub(super) fn of(address: &Address) -> Option<Self> {
        match address {
            Address::Tcp(socket) => Self::tcp(*socket, true),
            Address::Tcp6Only(socket) => Self::tcp(SocketAddr::V6(*socket), false),
            Address::UnixPath(path) => {
                let file = std::fs::metadata(path).map(|status| Self::File(FileId::from(&status)));
                Some(file.unwrap_or_else(|_| Self::Path(path.clone())))
            }
            Address::UnixAbstract(name) => Some(Self::Abstract(name.clone())),
        }
    }

    /// Returns the endpoint on which a passed socket listens.
    pub(super) fn of_socket(socket: &Socket) -> Option<Self> {
        Self::of(&address_of(socket)?)
    }

    fn tcp(socket: SocketAddr, takes_v4: bool) -> Option<Self> {
        let scope = match socket {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(socket) => socket.scope_id(),
        };
        let ip = socket.ip().to_canonical();
        let is_dual = takes_v4 && ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        (socket.port() != 0).then_some(Self::Tcp { ip, port: socket.port(), scope, is_dual })
    }

    /// Returns the dual-stack endpoint `[::]` with the port of this endpoint. Returns `None` unless
    /// this endpoint is the wildcard address of a single address family.
    pub(super) fn of_both_families(&self) -> Option<Self> {
        match self {
            Self::Tcp { ip, port, scope: 0, is_dual: false } if ip.is_unspecified() => {
                let ip = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
                Some(Self::Tcp { ip, port: *port, scope: 0, is_dual: true })
            }
            Self::Tcp { .. } | Self::File(_) | Self::Path(_) | Self::Abstract(_) => None,
        }
    }
}

/// Returns the address on which a socket listens. Returns `None` if the address has a form that the
/// configuration does not allow.
pub(super) fn address_of(socket: &Socket) -> Option<Address> {
    let local = socket.local_addr().ok()?;
    match local.as_socket() {
        Some(SocketAddr::V6(address)) if socket.only_v6().ok()? => {
            return Some(Address::Tcp6Only(address));
        }
        Some(address) => return Some(Address::Tcp(address)),
        None => {}
    }
    let name = || std::str::from_utf8(local.as_abstract_namespace()?).ok();
    let path = local.as_pathname().map(|path| Address::UnixPath(path.to_owned()));
    path.or_else(|| name().map(|name| Address::UnixAbstract(name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Option<Endpoint> {
        Endpoint::of(&text.parse().unwrap())
    }

    #[test]
    fn an_endpoint_is_the_same_in_other_words() {
        for (one, other) in [
            ("192.0.2.1:80", "[::ffff:192.0.2.1]:80"),
            ("0.0.0.0:80", "[::ffff:0.0.0.0]:80"),
            ("tcp6:[::1]:80", "[::1]:80"),
            ("/nowhere//web", "/nowhere/web"),
        ] {
            assert_eq!(endpoint(one), endpoint(other));
        }
        for (one, other) in [
            ("192.0.2.1:80", "192.0.2.1:81"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "tcp6:[::]:80"),
            ("[::]:80", "0.0.0.0:80"),
            ("[fe80::1%1]:80", "[fe80::1%2]:80"),
            ("@nowhere/web", "/nowhere/web"),
        ] {
            assert_ne!(endpoint(one), endpoint(other));
        }
        assert_eq!(endpoint("127.0.0.1:0"), None);
    }

    #[test]
    fn both_families_hold_all_of_one() {
        for (one, both) in
            [("0.0.0.0:80", Some("[::]:80")), ("tcp6:[::]:80", Some("[::]:80")), ("[::]:80", None)]
        {
            assert_eq!(endpoint(one).unwrap().of_both_families(), both.and_then(endpoint), "{one}");
        }
        for one in ["127.0.0.1:80", "[::1]:80", "/nowhere/web", "@web"] {
            assert_eq!(endpoint(one).unwrap().of_both_families(), None, "{one}");
        }
    }

    #[test]
    fn a_file_is_the_same_by_whatever_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Endpoint::of(&Address::UnixPath(folder.path().join(name))).unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        std::os::unix::fs::symlink("run", folder.path().join("var-run")).unwrap();
        let _web = std::os::unix::net::UnixListener::bind(folder.path().join("run/web")).unwrap();
        std::os::unix::fs::symlink("run/web", folder.path().join("link")).unwrap();
        assert_eq!(at("var-run/web"), at("run/web"));
        assert_eq!(at("link"), at("run/web"));
        assert_ne!(at("run/api"), at("run/web"));
    }
}
