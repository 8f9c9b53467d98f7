//! Checks a descriptor that was passed in, before it is taken for a listener.
//!
//! Whoever passes one in may have erred, and what does not listen is found out here and named, not
//! at the first accept. Which of the listeners that are configured it is, is decided in
//! [`super::ListenerSet`].

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
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

/// A descriptor that was passed in and is a listener, before it is known which.
#[derive(Debug)]
pub(crate) struct Passed {
    /// Its name; none when nobody gave it one.
    pub(crate) name: Option<String>,
    /// Its number when it was passed, for the log.
    pub(crate) descriptor: RawFd,
    /// Where it comes from.
    pub(crate) origin: Origin,
    socket: Socket,
}

impl Passed {
    /// Checks what was passed in: a socket, of a family we serve, a stream, and really listening.
    ///
    /// # Errors
    /// [`Error::NotAListener`], which names it.
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
                return refuse(name, "a stream socket of a family that is not served");
            }
            _ => return refuse(name, "a socket of another type"),
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

    /// Its address, as the kernel has it.
    pub(crate) fn address(&self) -> String {
        local_address(&self.socket)
    }

    /// Whether its path has been removed, so that nobody can come to it any more.
    pub(crate) fn has_lost_its_path(&self) -> bool {
        match &self.origin {
            Origin::Bound(Binding { address: Address::UnixPath(path), file: Some(_) }) => {
                FileId::of(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            }
            Origin::Bound(_) | Origin::Inherited => false,
        }
    }

    /// The file of a path that the line bound.
    pub(crate) fn file(&self) -> Option<FileId> {
        match &self.origin {
            Origin::Bound(binding) => binding.file,
            Origin::Inherited => None,
        }
    }

    /// Where clients arrive at it: the file of a path that the line bound, and otherwise where it
    /// listens.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match &self.origin {
            Origin::Bound(Binding { file: Some(file), .. }) => Some(Endpoint::File(*file)),
            Origin::Bound(Binding { file: None, .. }) | Origin::Inherited => {
                Endpoint::of_socket(&self.socket)
            }
        }
    }

    /// The TCP port on which it listens.
    pub(super) fn port(&self) -> Option<u16> {
        self.socket.local_addr().ok()?.as_socket().map(|address| address.port())
    }

    /// Whether another socket of this user can be bound to the same port.
    pub(super) fn share_port(&self, is_shared: bool) -> io::Result<()> {
        self.socket.set_reuse_port(is_shared)
    }

    /// Whether it keeps the kernel from binding `wanted`.
    pub(super) fn is_in_the_way_of(&self, wanted: &Address) -> bool {
        let Some(found) = endpoint::address_of(&self.socket) else { return false };
        let mut taken = TakenAddresses::new();
        let is_same =
            self.endpoint().is_some_and(|endpoint| Endpoint::of(wanted) == Some(endpoint));
        is_same || (taken.take(&found, ()).is_ok() && taken.take(wanted, ()).is_err())
    }

    /// The listener that it is, under the name that it goes by from now on.
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

/// For an error: its name, its number and where it listens.
impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, address) = (self.name.as_deref().unwrap_or("unnamed"), self.address());
        write!(
            f,
            "the passed socket {name:?} (descriptor {}) listens on {address}",
            self.descriptor
        )
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
