//! Conversions between an [`Address`] and the kernel's form of an address.
//!
//! All code that binds, connects or recognizes a socket uses these conversions, so that addresses
//! are treated the same everywhere. [`crate::address`] defines the addresses and their text form.

use std::io;

use socket2::{SockAddr, Socket};

use crate::address::Address;

/// A conversion from an [`Address`] to the kernel's form of an address.
pub(super) trait TryFromAddress: Sized {
    fn try_from_address(address: &Address) -> io::Result<Self>;
}

impl TryFromAddress for SockAddr {
    fn try_from_address(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok((*address).into()),
            Address::Tcp6Only(address) => Ok((*address).into()),
            Address::UnixPath(path) => Self::unix(path),
            // A leading zero byte marks the name of an abstract socket (see unix(7)).
            Address::UnixAbstract(name) => Self::unix(format!("\0{name}")),
        }
    }
}

/// Returns the address on which a socket listens, as the kernel reports it.
pub(super) fn local_address(socket: &Socket) -> String {
    let Ok(address) = socket.local_addr() else { return "unknown".to_owned() };
    if let Some(address) = address.as_socket() {
        return address.to_string();
    }
    match (address.as_pathname(), address.as_abstract_namespace()) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("@{}", String::from_utf8_lossy(name)),
        (None, None) => "unnamed".to_owned(),
    }
}
