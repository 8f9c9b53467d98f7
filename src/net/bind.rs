//! This module binds a socket to a configured address and listens on it.
//!
//! The difficult case is a Unix socket path. The socket file outlives the process that created it,
//! and blocks the next bind. This module replaces such a file if no process holds its socket. It
//! also records which file the bind created, so that this service later unlinks only this file.
//! [`super::passed`] handles sockets that are already bound when this process receives them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use super::listener::Listener;
use super::origin::{Binding, FileId, Origin};
use super::socket_address::{TryFromAddress, local_address};
use super::socket_file::FileAccess;
use super::stale;
use crate::address::Address;
use crate::error::Error;

/// The maximum length of the backlog. The kernel reduces it to `net.core.somaxconn` (see
/// listen(2)).
pub(crate) const BACKLOG: i32 = 65_535;

/// Which users may connect to the path of a Unix socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// The configured mode and owner of the socket file decide which users may connect. If no mode
    /// is configured, the umask decides.
    Configured(FileAccess),
    /// Only the user of this process may connect.
    Owner,
}

impl Listener {
    /// Binds `address` and listens.
    ///
    /// If the address is a path, a process that died may have left a socket file there. This
    /// function replaces such a file.
    ///
    /// # Errors
    /// [`Error::Bind`], which names the listener and the address. If binding fails, this function
    /// leaves no socket file of its own behind.
    pub(crate) fn bind(name: &str, address: &Address, access: Access) -> Result<Self, Error> {
        let bound = match address {
            Address::UnixPath(path) => {
                bind_path(path, address, access).map(|(socket, file)| (socket, Some(file)))
            }
            Address::Tcp(_) | Address::Tcp6Only(_) | Address::UnixAbstract(_) => {
                bind_socket(address, access)
                    .and_then(|socket| socket.listen(BACKLOG).map(|()| (socket, None)))
            }
        };
        let (socket, file) = bound.map_err(|source| Error::Bind {
            name: name.to_owned(),
            address: address.to_string(),
            source,
        })?;
        Ok(Self::bound(name, address, socket, file))
    }

    /// Creates the listener for `socket`, which is already bound to `address`.
    pub(super) fn bound(
        name: &str,
        address: &Address,
        socket: Socket,
        file: Option<FileId>,
    ) -> Self {
        Self {
            name: name.into(),
            address: local_address(&socket).into(),
            origin: Arc::new(Origin::Bound(Binding { address: address.clone(), file })),
            socket: Arc::new(socket),
            shortage: Arc::default(),
            is_replaced: Arc::default(),
        }
    }
}

/// Binds a socket to `address`, but does not listen yet.
fn bind_socket(address: &Address, access: Access) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    if matches!(access, Access::Owner) {
        // Restrict the mode of the socket before the bind, because bind(2) creates the file with
        // this mode minus the umask. So other users cannot connect, not even for a moment.
        nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    socket.bind(&SockAddr::try_from_address(address)?)?;
    Ok(socket)
}

/// Creates a socket with the right family and options for `address`.
pub(super) fn new_socket(address: &Address) -> io::Result<Socket> {
    let domain = match address {
        Address::Tcp(std::net::SocketAddr::V4(_)) => Domain::IPV4,
        Address::Tcp(std::net::SocketAddr::V6(_)) | Address::Tcp6Only(_) => Domain::IPV6,
        Address::UnixPath(_) | Address::UnixAbstract(_) => Domain::UNIX,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if domain != Domain::UNIX {
        // Allow the bind even if old connections on the port are in TIME_WAIT. The kernel still
        // refuses a port on which another socket listens.
        socket.set_reuse_address(true)?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(matches!(address, Address::Tcp6Only(_)))?;
    }
    Ok(socket)
}

/// Binds a Unix socket path and listens. Replaces an old socket file if no process holds its
/// socket.
fn bind_path(path: &Path, address: &Address, access: Access) -> io::Result<(Socket, FileId)> {
    let bound = match bind_socket(address, access) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            stale::replace(path, error, || bind_socket(address, access))
        }
        other => other,
    };
    let socket = bound?;
    let file = FileId::of(path)?;
    let listening = match access {
        // Set the mode and the owner before listening. Otherwise clients that the configuration
        // excludes could connect for a moment.
        Access::Configured(access) => access.set(path, file).and_then(|()| socket.listen(BACKLOG)),
        Access::Owner => socket.listen(BACKLOG),
    };
    if listening.is_err() && file.is_at(path) {
        let _ = std::fs::remove_file(path);
    }
    listening.map(|()| (socket, file))
}
