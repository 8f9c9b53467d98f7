//! Binds a listening socket, or checks one that was passed in.
//!
//! A listener may be shared with other processes at any time: with a predecessor, a successor, the service manager.
//! What lives in the shared description acts on all of them. So nothing here shuts a listener down, shrinks its
//! backlog or sets it blocking; and because somebody else may set it blocking, the flag is looked at before every
//! accept. Which listener goes with which name is decided in [`super::ListenerSet`].

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::stat::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::peer::Peer;
use super::stream::Stream;
use crate::address::Address;
use crate::error::Error;
use crate::sys;

/// As long as the kernel allows: it cuts this down to `net.core.somaxconn`, listen(2).
pub(crate) const BACKLOG: i32 = 65_535;

/// A bound, listening, non-blocking socket with a name. Clones share it.
#[derive(Clone, Debug)]
pub struct Listener {
    name: Arc<str>,
    address: Arc<str>,
    origin: Arc<Origin>,
    socket: Arc<Socket>,
    /// Whether it was said that nobody can be accepted: of all that accept here, one says so.
    shortage: Arc<AtomicBool>,
}

/// Where a listener comes from, which decides who may unlink its path and what it is matched by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A parent made it (systemd, say), for this process or for one before it in the line.
    Inherited,
    /// This process or one before it in the line bound it.
    Bound(Binding),
}

/// Whether nobody can be accepted, for want of descriptors or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    Begun,
    Over,
}

/// Who may connect to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Whom the umask lets.
    Umask,
    /// The user of this process alone.
    Owner,
}

/// What the line needs to remember of a socket that it bound itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The address that was asked for, port 0 included.
    pub(crate) address: Address,
    /// Which file a Unix path was then, so that nobody else's is ever unlinked.
    pub(crate) file: Option<FileId>,
}

/// A file, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let status = std::fs::symlink_metadata(path)?;
        Ok(Self { device: status.dev(), inode: status.ino() })
    }
}

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

/// A connection that was accepted, before a runtime watches it.
#[derive(Debug)]
pub(crate) struct Accepted {
    socket: Socket,
    peer: Peer,
}

impl Accepted {
    /// Has the runtime watch it that this is called in. None when the kernel has no memory for that: then it is closed.
    pub(crate) fn into_stream(self, listener: &Listener) -> Option<(Stream, Peer)> {
        match Stream::new(self.socket, self.peer) {
            Ok(stream) => Some((stream, self.peer)),
            Err(error) => {
                let listener = listener.name();
                tracing::error!(%listener, reason = %error, "cannot watch a connection on {listener}, it is lost: {error}");
                None
            }
        }
    }
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
            (Ok(_), Ok(Type::STREAM)) => return refuse(name, "a stream socket of a family that is not served"),
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

    /// Whether it listens where `address` says.
    pub(crate) fn listens_on(&self, address: &Address) -> bool {
        let same = SockAddr::try_from_address(address).ok().zip(self.socket.local_addr().ok());
        same.is_some_and(|(wanted, found)| wanted == found)
    }

    /// The listener that it is, under the name that it goes by from now on.
    pub(crate) fn adopt(self, name: &str) -> Listener {
        Listener {
            name: name.into(),
            address: self.address().into(),
            origin: Arc::new(self.origin),
            socket: Arc::new(self.socket),
            shortage: Arc::default(),
        }
    }
}

impl Listener {
    /// Binds `address` and listens.
    ///
    /// A path at which a socket lies that nobody listens on is taken over: its owner died without unlinking it.
    ///
    /// # Errors
    /// [`Error::Bind`], which names it; nothing was changed then.
    pub(crate) fn bind(name: &str, address: &Address, access: Access) -> Result<Self, Error> {
        let bound = match address {
            Address::UnixPath(path) => bind_path(path, address, access).map(|(socket, file)| (socket, Some(file))),
            Address::Tcp(_) | Address::Tcp6Only(_) | Address::UnixAbstract(_) => {
                bind_socket(address, access).map(|socket| (socket, None))
            }
        };
        let (socket, file) =
            bound.map_err(|source| Error::Bind { name: name.to_owned(), address: address.to_string(), source })?;
        Ok(Self {
            name: name.into(),
            address: local_address(&socket).into(),
            origin: Arc::new(Origin::Bound(Binding { address: address.clone(), file })),
            socket: Arc::new(socket),
            shortage: Arc::default(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it really listens: the port that the kernel chose for port 0.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where it comes from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Another descriptor of the same socket, for a server of your own. Never `shutdown` it: that acts on every
    /// process that holds it, shutdown(2).
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone().map(Into::into)
    }

    /// Has the runtime tell when there is something to accept. Must be called in a tokio runtime.
    pub(crate) fn watch(&self) -> io::Result<AsyncFd<Arc<Socket>>> {
        sys::fd::watch(Arc::clone(&self.socket), Interest::READABLE)
    }

    /// Accepts one connection without waiting: `WouldBlock` when there is none.
    ///
    /// Another holder may have set the socket blocking (systemd does, for a unit without `NonBlocking=`); then accept
    /// would hang the thread. It is set back, and what remains is the instant between the look and the accept.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        if !self.socket.nonblocking()? {
            self.socket.set_nonblocking(true)?;
            tracing::warn!(listener = %self.name, "another process set the listener blocking; set back");
        }
        let (socket, address) = self.socket.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)?;
        Ok(Accepted { socket, peer: Peer::new(&address) })
    }

    /// Nobody can be accepted, or somebody can again: whether that is news.
    pub(super) fn note_shortage(&self, shortage: Shortage) -> bool {
        let is_short = shortage == Shortage::Begun;
        self.shortage.swap(is_short, Ordering::Relaxed) != is_short
    }

    /// Removes the path of a Unix socket that the line bound, if it is still the same file.
    pub(crate) fn unlink(&self) {
        let Origin::Bound(Binding { address, file: Some(file) }) = self.origin() else { return };
        let Some(path) = address.path() else { return };
        if FileId::of(path).is_ok_and(|found| found == *file) {
            match std::fs::remove_file(path) {
                // When the line stops, all its generations do this at once: another one was faster.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(listener = %self.name, path = %path.display(), reason = %error, "cannot unlink the socket: {error}");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What [`Binding`] looks like in a message: `ADDRESS`, or `DEVICE:INODE ADDRESS` for a Unix path.
impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(FileId { device, inode }) = self.file {
            write!(f, "{device}:{inode} ")?;
        }
        self.address.fmt(f)
    }
}

impl FromStr for Binding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let file = text.split_once(' ').and_then(|(file, address)| {
            let (device, inode) = file.split_once(':')?;
            Some((FileId { device: device.parse().ok()?, inode: inode.parse().ok()? }, address))
        });
        Ok(match file {
            Some((file, address)) => Self { address: address.parse()?, file: Some(file) },
            None => Self { address: text.parse()?, file: None },
        })
    }
}

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

fn bind_socket(address: &Address, access: Access) -> io::Result<Socket> {
    let domain = match address {
        Address::Tcp(std::net::SocketAddr::V4(_)) => Domain::IPV4,
        Address::Tcp(std::net::SocketAddr::V6(_)) | Address::Tcp6Only(_) => Domain::IPV6,
        Address::UnixPath(_) | Address::UnixAbstract(_) => Domain::UNIX,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if domain != Domain::UNIX {
        // A port whose old connections are in TIME_WAIT can be bound; a port on which somebody listens cannot.
        socket.set_reuse_address(true)?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(matches!(address, Address::Tcp6Only(_)))?;
    }
    if access == Access::Owner {
        // The file that bind(2) makes has the socket's own mode, less the umask: it is never open to others.
        nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    socket.bind(&SockAddr::try_from_address(address)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Binds a path, taking the place of a socket there that nobody listens on.
fn bind_path(path: &Path, address: &Address, access: Access) -> io::Result<(Socket, FileId)> {
    let bound = match bind_socket(address, access) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path)? => {
            std::fs::remove_file(path)?;
            bind_socket(address, access)
        }
        other => other,
    };
    Ok((bound?, FileId::of(path)?))
}

/// Whether a socket lies at `path` to which nobody listens any more, connect(2): `ECONNREFUSED`.
fn is_stale(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    Ok(probe.connect(&SockAddr::unix(path)?).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

fn local_address(socket: &Socket) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_reads_back_what_it_prints() {
        for text in ["127.0.0.1:0", "8:42 /run/a b.sock", "@name with 1:2 in it"] {
            let binding: Binding = text.parse().unwrap();
            assert_eq!(binding.to_string(), text);
        }
    }

    #[test]
    fn what_does_not_listen_is_refused_and_named() {
        let idle = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let error = Passed::check(idle.into(), Some("web".to_owned()), Origin::Inherited).unwrap_err().to_string();
        assert!(error.contains("web") && error.contains("does not listen"), "{error}");
    }
}
