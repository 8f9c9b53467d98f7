//! This module sets the mode and owner of a Unix listener's socket file.
//!
//! Any process that can write to the directory may replace the file at any time. So this module
//! first opens the file and checks that this service created it. Only then does it change the file,
//! through the open descriptor.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::libc;
use nix::unistd::{Gid, Group, Uid, User, fchownat};

use super::origin::FileId;
use crate::address::Address;
use crate::config::{SocketAccess, SocketMode};
use crate::sys;

/// The configured mode, user and group of a socket file. The names in [`SocketAccess`] have been
/// resolved to numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileAccess {
    mode: Option<u32>,
    user: Option<Uid>,
    group: Option<Gid>,
}

impl FileAccess {
    /// Resolves the user and group names in `access` for a listener at `address`.
    ///
    /// # Errors
    /// Fails if the system does not know a name, or if `access` is configured for an address that
    /// is not a path. Also fails for the number 4294967295 (-1), which chown(2) would ignore.
    pub(crate) fn resolve(access: &SocketAccess, address: &Address) -> io::Result<Self> {
        if address.path().is_none() && !access.is_default() {
            return Err(io::Error::other(
                "mode, user and group need an address with a path, as in /run/web.sock",
            ));
        }
        let user = access.user.as_deref().map(|user| match user.parse() {
            Ok(u32::MAX) => Err(unknown("user", user)),
            Ok(number) => Ok(Uid::from_raw(number)),
            Err(_) => {
                User::from_name(user)?.map(|found| found.uid).ok_or_else(|| unknown("user", user))
            }
        });
        let group = access.group.as_deref().map(|group| match group.parse() {
            Ok(u32::MAX) => Err(unknown("group", group)),
            Ok(number) => Ok(Gid::from_raw(number)),
            Err(_) => Group::from_name(group)?
                .map(|found| found.gid)
                .ok_or_else(|| unknown("group", group)),
        });
        Ok(Self {
            mode: access.mode.map(SocketMode::bits),
            user: user.transpose()?,
            group: group.transpose()?,
        })
    }

    /// Returns whether no mode, user or group is configured.
    pub(super) const fn is_empty(self) -> bool {
        self.mode.is_none() && self.user.is_none() && self.group.is_none()
    }

    /// Sets the configured mode and owner of the file at `path`, if it is still the file
    /// `expected`.
    ///
    /// # Errors
    /// Returns the kernel's error and names the setting that the kernel refused. Also returns an
    /// error if another file is at `path`.
    pub(super) fn set(self, path: &Path, expected: FileId) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(path)?;
        if FileId::from(&file.metadata()?) != expected {
            return Err(io::Error::other("another file has taken its place"));
        }
        // Change the owner before the mode. Otherwise the new mode would let the old owner or group
        // connect for a moment.
        if self.user.is_some() || self.group.is_some() {
            fchownat(&file, "", self.user, self.group, AtFlags::AT_EMPTY_PATH)
                .map_err(|error| refused("user and group", error.into()))?;
        }
        match self.mode {
            Some(mode) => chmod(&file, mode).map_err(|error| refused("mode", error)),
            None => Ok(()),
        }
    }
}

/// Changes the mode of a file through its path in /proc, because fchmod(2) does not accept an
/// `O_PATH` descriptor.
fn chmod(file: &File, mode: u32) -> io::Result<()> {
    fs::set_permissions(sys::fd::path_to(file), Permissions::from_mode(mode))
}

fn refused(setting: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot set its {setting}: {error}"))
}

fn unknown(kind: &str, name: &str) -> io::Error {
    io::Error::other(format!("the system has no {kind} {name:?}"))
}
