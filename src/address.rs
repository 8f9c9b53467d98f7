//! The addresses that a listener can listen on, and their text form.
//!
//! The command line, the log and the messages between generations use the same text form. Parsing a
//! printed address gives an equal value. Host names are rejected: after a DNS change, a listener
//! with a host name would get a different address at the next handoff. This module opens no
//! sockets.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;

/// The maximum length in bytes of the path or the abstract name of a Unix socket. The kernel's
/// `sun_path` field has 108 bytes, including a leading or trailing zero byte (see unix(7)).
const UNIX_NAME_MAX: usize = 107;

/// The address on which a listener accepts connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A TCP address, such as `192.0.2.1:80` or `[2001:db8::1]:80`. `[::]:80` also accepts IPv4
    /// (dual stack), regardless of the system default.
    Tcp(SocketAddr),
    /// A TCP address that accepts IPv6 only, such as `tcp6:[::]:80`. Another listener can use
    /// `0.0.0.0:80` at the same time.
    Tcp6Only(SocketAddrV6),
    /// The path of a Unix socket in the file system: `/run/web.sock` or `unix:/run/web.sock`.
    UnixPath(PathBuf),
    /// The name of a Unix socket in the abstract namespace, such as `@web`. The kernel frees the
    /// name when the last process closes the socket.
    UnixAbstract(String),
}

impl Address {
    /// Returns whether this is the address of a Unix socket.
    #[must_use]
    pub const fn is_unix(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Tcp6Only(_) => false,
            Self::UnixPath(_) | Self::UnixAbstract(_) => true,
        }
    }

    /// Returns whether the port is 0, which means that the kernel chooses a port. Several listeners
    /// may use port 0, because the kernel gives each of them a different port.
    pub(crate) const fn is_any_port(&self) -> bool {
        match self {
            Self::Tcp(address) => address.port() == 0,
            Self::Tcp6Only(address) => address.port() == 0,
            Self::UnixPath(_) | Self::UnixAbstract(_) => false,
        }
    }

    /// Returns the path if this is the address of a Unix socket in the file system. Otherwise
    /// returns `None`.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::UnixPath(path) => Some(path),
            Self::Tcp(_) | Self::Tcp6Only(_) | Self::UnixAbstract(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Tcp6Only(address) => write!(f, "tcp6:{address}"),
            Self::UnixPath(path) => path.display().fmt(f),
            Self::UnixAbstract(name) => write!(f, "@{name}"),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why| Error::Address { text: text.to_owned(), why };
        let unix = text.strip_prefix("unix:").unwrap_or(text);
        if unix.starts_with('/') || unix.starts_with('@') {
            if unix.chars().any(char::is_control) {
                return Err(refuse("a Unix socket's name may not contain control characters"));
            }
            if unix.len() == 1 {
                return Err(refuse("a Unix socket needs a name"));
            }
            let abstract_name = unix.strip_prefix('@');
            if abstract_name.unwrap_or(unix).len() > UNIX_NAME_MAX {
                return Err(refuse("a Unix socket's name has at most 107 bytes"));
            }
            return Ok(match abstract_name {
                Some(name) => Self::UnixAbstract(name.to_owned()),
                None if unix.ends_with('/') => {
                    return Err(refuse("a Unix socket's path may not end with a slash"));
                }
                None => Self::UnixPath(PathBuf::from(unix)),
            });
        }
        if text.starts_with("unix:") {
            return Err(refuse(
                "a Unix socket is an absolute path or an abstract name, as in unix:/run/web.sock",
            ));
        }
        if let Some(six) = text.strip_prefix("tcp6:") {
            return six
                .parse()
                .map(Self::Tcp6Only)
                .map_err(|_| refuse("tcp6: needs an IPv6 address, as in tcp6:[::]:80"));
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            refuse(
                "expected IP:PORT, [IPV6]:PORT, tcp6:[IPV6]:PORT, /PATH or @NAME (host names \
                are not resolved)",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_back_to_the_same_address() {
        for text in [
            "127.0.0.1:80",
            "[::1]:0",
            "[::]:65535",
            "tcp6:[::]:80",
            "/run/a.sock",
            "@name",
            "@with space",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
        assert_eq!("unix:/a".parse::<Address>().unwrap(), "/a".parse().unwrap());
        assert_eq!("unix:@a".parse::<Address>().unwrap(), "@a".parse().unwrap());
    }

    #[test]
    fn what_cannot_be_an_address_is_refused_and_named() {
        let long = format!("/{}", "x".repeat(UNIX_NAME_MAX));
        for text in [
            "",
            "80",
            ":80",
            "localhost:80",
            "127.0.0.1",
            "127.0.0.1:65536",
            "::1:80",
            "tcp6:1.2.3.4:5",
            "/",
            "@",
            "unix:",
            "unix:relative",
            "/ends/",
            "/a\nb",
            &long,
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
