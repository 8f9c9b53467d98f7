//! A configured listener before it has a socket, and what its path is to get.

use std::io;
use std::path::PathBuf;

use super::origin::{FileId, Origin};
use super::passed::Passed;
use super::socket_file::FileAccess;
use crate::address::Address;
use crate::config::ListenerConfig;
use crate::error::Error;

/// One listener to be: its name, and where to bind it if no socket was passed in for it.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) access: FileAccess,
    pub(super) found: Vec<Passed>,
}

impl Wanted {
    /// # Errors
    /// [`Error::Bind`] when the system does not know a user or a group that the configuration
    /// names.
    pub(super) fn new(name: String, config: &ListenerConfig) -> Result<Self, Error> {
        let address = config.address.clone();
        match FileAccess::resolve(&config.access, &config.address) {
            Ok(access) => Ok(Self { name, address, access, found: Vec::new() }),
            Err(source) => Err(Error::Bind { name, address: address.to_string(), source }),
        }
    }

    /// What the file of a socket that was found for it is to get.
    pub(super) fn grant(&self) -> Option<Grant> {
        let file = self.found.iter().find_map(Passed::file).filter(|_| !self.access.is_empty())?;
        let path = self.address.path()?.to_owned();
        Some(Grant { listener: self.name.clone(), path, file, access: self.access })
    }
}

/// The mode and the owner that the configuration gives to the path of an adopted socket.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    listener: String,
    path: PathBuf,
    file: FileId,
    access: FileAccess,
}

impl Grant {
    /// Sets them. The listener serves in any case: a failure is said.
    pub(super) fn perform(self) {
        let Self { listener, path, file, access } = self;
        if let Err(error) = access.set(&path, file) {
            let path = path.display();
            tracing::error!(
                event = "socket.access_unchanged", listener, %path, reason = %error,
                "cannot change who may connect to {path}: {error}"
            );
        }
    }
}

/// The error for `want`, which cannot be bound: it names the passed socket that is in the way, if
/// one is.
pub(super) fn name_obstacle(error: Error, want: &Address, unclaimed: &[Passed]) -> Error {
    let Error::Bind { name, address, source } = error else { return error };
    let in_the_way =
        |socket: &&Passed| socket.origin == Origin::Inherited && socket.is_in_the_way_of(want);
    let source = match unclaimed.iter().find(in_the_way) {
        // Without an error number: it passes only when the configuration changes.
        Some(socket) if source.kind() == io::ErrorKind::AddrInUse => {
            io::Error::other(format!("{source}: {socket}, and no listener claims it"))
        }
        _ => source,
    };
    Error::Bind { name, address, source }
}
