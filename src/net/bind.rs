//! Binding and listening on a configured address.
//!
//! Unix socket paths are the difficult case: the file outlives its owner and blocks the next bind.
//! So this module takes over a path whose socket no process holds. It also records which file it
//! has created, so that only that file is unlinked later. Sockets that were passed in already bound
//! are handled in [`super::passed`].

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

/// The maximum backlog. The kernel reduces it to `net.core.somaxconn`, listen(2).
pub(crate) const BACKLOG: i32 = 65_535;

/// The users that may connect to a Unix socket path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// As configured. Where the configuration says nothing, the umask decides.
    Configured(FileAccess),
    /// Only the user of this process.
    Owner,
}

impl Listener {
    /// Binds `address` and listens.
    ///
    /// If the address is a path with a socket that no process holds, the path is taken over: its
    /// owner died without unlinking it.
    ///
    /// # Errors
    /// [`Error::Bind`], which names the listener and the address. Nothing was changed in that case.
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

    /// Creates the listener for `socket`, which is bound to `address`.
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

/// Binds a socket without listening yet.
fn bind_socket(address: &Address, access: Access) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    if matches!(access, Access::Owner) {
        // bind(2) gives the file the mode of the socket minus the umask, so no other user can ever
        // connect.
        nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    socket.bind(&SockAddr::try_from_address(address)?)?;
    Ok(socket)
}

/// Creates a socket that can be bound to `address`.
pub(super) fn new_socket(address: &Address) -> io::Result<Socket> {
    let domain = match address {
        Address::Tcp(std::net::SocketAddr::V4(_)) => Domain::IPV4,
        Address::Tcp(std::net::SocketAddr::V6(_)) | Address::Tcp6Only(_) => Domain::IPV6,
        Address::UnixPath(_) | Address::UnixAbstract(_) => Domain::UNIX,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if domain != Domain::UNIX {
        // Allows binding a port whose old connections are in TIME_WAIT, but not a port on which
        // another socket listens.
        socket.set_reuse_address(true)?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(matches!(address, Address::Tcp6Only(_)))?;
    }
    Ok(socket)
}

/// Binds a path and listens, replacing a socket file that no process holds.
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
        // Set the mode and the owner before clients can connect, so that the umask never decides
        // who may connect.
        Access::Configured(access) => access.set(path, file).and_then(|()| socket.listen(BACKLOG)),
        Access::Owner => socket.listen(BACKLOG),
    };
    if listening.is_err() && file.is_at(path) {
        let _ = std::fs::remove_file(path);
    }
    listening.map(|()| (socket, file))
}
