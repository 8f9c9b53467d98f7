//! Binds an address and listens there.
//!
//! A path is the hard case: it stays when its owner dies, and then nobody else can bind it. So a
//! socket that no process holds is taken over, and which file came of it is noted, for whoever
//! unlinks it one day. Sockets that were bound before and passed in are no matter of this file: see
//! [`super::passed`].

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

/// As long as the kernel allows: it cuts this down to `net.core.somaxconn`, listen(2).
pub(crate) const BACKLOG: i32 = 65_535;

/// Who may connect to a path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// As the configuration says, and where it says nothing as the umask does.
    Configured(FileAccess),
    /// The user of this process alone.
    Owner,
}

impl Listener {
    /// Binds `address` and listens.
    ///
    /// A path at which a socket lies that no process holds is taken over: its owner died without
    /// unlinking it.
    ///
    /// # Errors
    /// [`Error::Bind`], which names it; nothing was changed then.
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

    /// The listener that `socket` is, which was bound to `address`.
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

/// Binds, and does not listen yet.
fn bind_socket(address: &Address, access: Access) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    if matches!(access, Access::Owner) {
        // The file that bind(2) makes has the socket's own mode, less the umask: it is never open
        // to others.
        nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    socket.bind(&SockAddr::try_from_address(address)?)?;
    Ok(socket)
}

/// Makes a socket that can be bound to `address`.
pub(super) fn new_socket(address: &Address) -> io::Result<Socket> {
    let domain = match address {
        Address::Tcp(std::net::SocketAddr::V4(_)) => Domain::IPV4,
        Address::Tcp(std::net::SocketAddr::V6(_)) | Address::Tcp6Only(_) => Domain::IPV6,
        Address::UnixPath(_) | Address::UnixAbstract(_) => Domain::UNIX,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if domain != Domain::UNIX {
        // A port whose old connections are in TIME_WAIT can be bound; a port on which somebody
        // listens cannot.
        socket.set_reuse_address(true)?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(matches!(address, Address::Tcp6Only(_)))?;
    }
    Ok(socket)
}

/// Binds a path and listens, taking the place of a socket there that no process holds.
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
        // Before anybody can connect, so that the umask decides for no client.
        Access::Configured(access) => access.set(path, file).and_then(|()| socket.listen(BACKLOG)),
        Access::Owner => socket.listen(BACKLOG),
    };
    if listening.is_err() && file.is_at(path) {
        let _ = std::fs::remove_file(path);
    }
    listening.map(|()| (socket, file))
}
