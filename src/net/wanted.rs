//! This module describes a configured listener before this process has found or bound its socket.
//! It also sets the mode and owner of the socket file.

use std::io;
use std::path::PathBuf;

use super::origin::{FileId, Origin};
use super::passed::Passed;
use super::socket_file::FileAccess;
use crate::address::Address;
use crate::config::ListenerConfig;
use crate::error::Error;

/// A configured listener: its name, the address to bind if no passed socket matches it, and the
/// sockets found for it so far.
pub(super) struct WantedListener {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) access: FileAccess,
    pub(super) found: Vec<Passed>,
}

impl WantedListener {
    /// Creates the listener from its configuration.
    ///
    /// # Errors
    /// [`Error::Bind`] when the system does not know a configured user or group.
    pub(super) fn new(name: String, config: &ListenerConfig) -> Result<Self, Error> {
        let address = config.address.clone();
        match FileAccess::resolve(&config.access, &config.address) {
            Ok(access) => Ok(Self { name, address, access, found: Vec::new() }),
            Err(source) => Err(Error::Bind { name, address: address.to_string(), source }),
        }
    }

    /// Returns the mode and owner to set on the file of a passed socket. Returns `None` if neither
    /// is configured.
    pub(super) fn grant(&self) -> Option<Grant> {
        let file = self.found.iter().find_map(Passed::file).filter(|_| !self.access.is_empty())?;
        let path = self.address.path()?.to_owned();
        Some(Grant { listener: self.name.clone(), path, file, access: self.access })
    }
}

/// The mode and owner to set on the file of a Unix socket that this process has received.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    listener: String,
    path: PathBuf,
    file: FileId,
    access: FileAccess,
}

impl Grant {
    /// Sets the mode and the owner of the socket file. A failure is only logged, because the
    /// listener can serve clients anyway.
    pub(super) fn perform(self) {
        let Self { listener, path, file, access } = self;
        if let Err(error) = access.set(&path, file) {
            let path = path.display();
            tracing::error!(
                event = "socket.access_unchanged", listener, %path, reason = %error,
                "cannot set the mode and owner of {path}: {error}"
            );
        }
    }
}

/// If a passed socket blocks the address `want`, adds the name of that socket to the bind error.
pub(super) fn name_obstacle(error: Error, want: &Address, unclaimed: &[Passed]) -> Error {
    let Error::Bind { name, address, source } = error else { return error };
    let in_the_way =
        |socket: &&Passed| socket.origin == Origin::Inherited && socket.is_in_the_way_of(want);
    let source = match unclaimed.iter().find(in_the_way) {
        // Return an error without an errno, which marks it as a configuration error. Only a change
        // to the configuration can help.
        Some(socket) if source.kind() == io::ErrorKind::AddrInUse => io::Error::other(format!(
            "{source}: {socket} uses it, but no listener is configured for it"
        )),
        _ => source,
    };
    Error::Bind { name, address, source }
}
