//! This module checks that a file descriptor that was passed to this process is a listening socket.
//!
//! The process that passed the descriptor may have made a mistake. This check reports the mistake
//! at startup, with the name of the descriptor. Without the check, only the first accept would
//! fail. [`super::ListenerSet`] decides which configured listener the socket belongs to.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, Socket, Type};

use super::endpoint::{self, Endpoint};
use super::listener::Listener;
use super::origin::{Binding, FileId, Origin};
use super::socket_address::local_address;
use crate::address::Address;
use crate::config::TakenAddresses;
use crate::error::Error;
use crate::sys;

/// A listening socket that this process has received, but not yet matched to a configured listener.
#[derive(Debug)]
pub(crate) struct Passed {
    /// The name under which the socket was passed. `None` if it has no name.
    pub(crate) name: Option<String>,
    /// The number that the descriptor had when this process received it. Log records and messages
    /// use this number.
    pub(crate) descriptor: RawFd,
    /// Whether this service or a parent such as systemd created the socket.
    pub(crate) origin: Origin,
    socket: Socket,
}

impl Passed {
    /// Checks that a passed descriptor is a listening stream socket of a supported address family.
    ///
    /// # Errors
    /// [`Error::NotAListener`], which names the descriptor and says what it is instead.
    pub(crate) fn check(fd: OwnedFd, name: Option<String>, origin: Origin) -> Result<Self, Error> {
        let descriptor = fd.as_raw_fd();
        let refuse = |name: Option<String>, found: &str| {
            Err(Error::NotAListener {
                descriptor,
                name: name.unwrap_or_else(|| "unnamed".to_owned()),
                found: found.to_owned(),
            })
        };
        let what = sys::fd::describe(&fd);
        if what != "a socket" {
            return refuse(name, what);
        }
        let socket = Socket::from(fd);
        match (socket.domain(), socket.r#type()) {
            (Ok(Domain::IPV4 | Domain::IPV6 | Domain::UNIX), Ok(Type::STREAM)) => {}
            (Ok(Domain::IPV4 | Domain::IPV6 | Domain::UNIX), Ok(Type::DGRAM)) => {
                return refuse(name, "a datagram socket");
            }
            (Ok(_), Ok(Type::STREAM)) => {
                return refuse(name, "a stream socket of an unsupported address family");
            }
            _ => return refuse(name, "a socket of an unsupported type"),
        }
        match socket.is_listener() {
            Ok(true) => {}
            _ if socket.peer_addr().is_ok() => return refuse(name, "a connected socket"),
            _ => return refuse(name, "a socket that does not listen"),
        }
        if let Err(error) = socket.set_nonblocking(true) {
            return refuse(name, &format!("a socket that cannot be made non-blocking ({error})"));
        }
        Ok(Self { name, descriptor, origin, socket })
    }

    /// Returns the address on which the socket listens, as the kernel reports it.
    pub(crate) fn address(&self) -> String {
        local_address(&self.socket)
    }

    /// Returns whether the path of this socket no longer exists, so that no client can connect.
    pub(crate) fn has_lost_its_path(&self) -> bool {
        match &self.origin {
            Origin::Bound(Binding { address: Address::UnixPath(path), file: Some(_) }) => {
                FileId::of(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            }
            Origin::Bound(_) | Origin::Inherited => false,
        }
    }

    /// If another file has taken the place of this socket's file, returns the path and a
    /// description of that file. Clients cannot reach this socket then.
    pub(super) fn obstacle(&self) -> Option<(&Path, &'static str)> {
        let Origin::Bound(Binding { address, file: Some(file) }) = &self.origin else {
            return None;
        };
        let path = address.path()?;
        let found = std::fs::symlink_metadata(path).ok()?;
        if FileId::from(&found) == *file {
            return None;
        }
        let kind = found.file_type();
        let what = if kind.is_socket() {
            "another socket"
        } else if kind.is_dir() {
            "a directory"
        } else {
            "another file"
        };
        Some((path, what))
    }

    /// Returns the file that the bind created for this socket. Returns `None` if this service did
    /// not bind the socket or if the socket has no path.
    pub(crate) fn file(&self) -> Option<FileId> {
        match &self.origin {
            Origin::Bound(binding) => binding.file,
            Origin::Inherited => None,
        }
    }

    /// Returns the endpoint that clients connect to. For a path that this service bound, the
    /// endpoint is the file. Otherwise it is the address on which the socket listens.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match &self.origin {
            Origin::Bound(Binding { file: Some(file), .. }) => Some(Endpoint::File(*file)),
            Origin::Bound(Binding { file: None, .. }) | Origin::Inherited => {
                Endpoint::of_socket(&self.socket)
            }
        }
    }

    /// Returns the TCP port on which the socket listens. Returns `None` for a Unix socket.
    pub(super) fn port(&self) -> Option<u16> {
        self.socket.local_addr().ok()?.as_socket().map(|address| address.port())
    }

    /// Sets or clears `SO_REUSEPORT`. While the option is set, another socket of this user may bind
    /// the same port.
    pub(super) fn share_port(&self, is_shared: bool) -> io::Result<()> {
        self.socket.set_reuse_port(is_shared)
    }

    /// Returns whether the kernel refuses to bind `wanted` because of this socket.
    pub(super) fn is_in_the_way_of(&self, wanted: &Address) -> bool {
        let Some(found) = endpoint::address_of(&self.socket) else { return false };
        let mut taken = TakenAddresses::default();
        let is_same =
            self.endpoint().is_some_and(|endpoint| Endpoint::of(wanted) == Some(endpoint));
        is_same || (taken.take(&found, ()).is_ok() && taken.take(wanted, ()).is_err())
    }

    /// Turns this passed socket into a listener with the given name.
    pub(crate) fn adopt(self, name: &str) -> Listener {
        Listener {
            name: name.into(),
            address: self.address().into(),
            origin: Arc::new(self.origin),
            socket: Arc::new(self.socket),
            shortage: Arc::default(),
            is_replaced: Arc::default(),
        }
    }
}

#[cfg(test)]
impl Passed {
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone().map(Into::into)
    }
}

/// Formats the name, the descriptor number and the address of the socket for error messages.
impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, address) = (self.name.as_deref().unwrap_or("unnamed"), self.address());
        write!(f, "the passed socket {name:?} on {address} (descriptor {})", self.descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_listen_is_refused_and_named() {
        let idle = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let error = Passed::check(idle.into(), Some("web".to_owned()), Origin::Inherited)
            .unwrap_err()
            .to_string();
        assert!(error.contains("web") && error.contains("does not listen"), "{error}");
    }
}
