//! Translates addresses into what the kernel takes, and what it says into text.
//!
//! Whoever binds, dials or recognises a socket has to mean the same by an address. What an address
//! is, and how one is written, is in [`crate::address`].

use std::io;

use socket2::{SockAddr, Socket};

use crate::address::Address;

/// The form in which the kernel takes an [`Address`].
pub(super) trait TryFromAddress: Sized {
    fn try_from_address(address: &Address) -> io::Result<Self>;
}

impl TryFromAddress for SockAddr {
    fn try_from_address(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok((*address).into()),
            Address::Tcp6Only(address) => Ok((*address).into()),
            Address::UnixPath(path) => Self::unix(path),
            // A leading zero byte is what makes a name abstract, unix(7).
            Address::UnixAbstract(name) => Self::unix(format!("\0{name}")),
        }
    }
}

/// Where a socket listens, as the kernel has it.
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
