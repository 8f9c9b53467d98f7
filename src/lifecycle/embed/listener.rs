//! The addresses of the listeners, and listeners of the standard library for servers that accept
//! connections themselves, such as actix-web.
//!
//! The library does not see the connections of such a server. The server itself waits for them, and
//! drops them at a cut.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use socket2::{Domain, SockRef};

use crate::error::Error;
use crate::lifecycle::life::Life;

impl Life {
    /// Returns the address on which the listener called `name` listens. If port 0 is configured,
    /// the address contains the port that the kernel chose.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown.
    pub fn address(&self, name: &str) -> Result<String, Error> {
        self.served(name).map(|served| served.address.to_string())
    }

    /// Returns a new descriptor of the TCP listener called `name`. It is non-blocking, and stays so
    /// because other generations share the socket. Stop accepting on it when [`Life::retired`]
    /// resolves.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if no TCP listener has this name, or the kernel's error if
    /// no descriptor is free.
    pub fn tcp_listener(&self, name: &str) -> Result<TcpListener, Error> {
        self.copy_of(name, |domain| domain != Domain::UNIX).map(Into::into)
    }

    /// Returns a new descriptor of the Unix listener called `name`, as [`Life::tcp_listener`] does.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if no Unix listener has this name, or the kernel's error
    /// if no descriptor is free.
    pub fn unix_listener(&self, name: &str) -> Result<UnixListener, Error> {
        self.copy_of(name, |domain| domain == Domain::UNIX).map(Into::into)
    }

    fn copy_of(&self, name: &str, is_wanted: impl Fn(Domain) -> bool) -> Result<OwnedFd, Error> {
        let served = self.served(name)?;
        let failed = Error::system("duplicate the file descriptor of a listener");
        let unknown = || Error::NoSuchListener { name: name.to_owned() };
        let copy = served.socket().ok_or_else(unknown)?.try_clone().map_err(failed)?;
        let domain = SockRef::from(&copy).domain();
        if domain.is_ok_and(is_wanted) {
            served.set_copied();
            Ok(copy)
        } else {
            Err(unknown())
        }
    }
}
