//! A dry run of a configuration: this module checks whether a process could serve with it, and
//! changes nothing.
//!
//! An operator runs this check before a start or a reload of the daemon. It checks the paths where
//! the daemon would create files, and the files that already exist. It cannot check whether an
//! address is free, because only a bind shows this, and the running daemon uses its addresses.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::pid_file;
use crate::address::Address;
use crate::config::{CONTROL, Config, Listeners};
use crate::error::Error;
use crate::net::{FileAccess, check_is_socket};

impl Config {
    /// Checks whether a process could serve with this configuration, without changing anything.
    ///
    /// # Errors
    /// Returns [`Error::Bind`] or [`Error::PidFile`] for the first path that cannot be used. This
    /// is the case, for example, if no file can be created there or two sockets have the same path.
    pub fn check(&self) -> Result<(), Error> {
        check(self)
    }
}

fn check(config: &Config) -> Result<(), Error> {
    let named = match &config.listeners {
        Listeners::Named(named) => named.as_slice(),
        Listeners::Inherited => &[],
    };
    for (index, listener) in named.iter().enumerate() {
        FileAccess::resolve(&listener.access, &listener.address).map_err(|source| {
            let (name, address) = (listener.name_at(index), listener.address.to_string());
            Error::Bind { name, address, source }
        })?;
    }
    let named = named.iter().enumerate();
    let paths = named
        .filter_map(|(index, listener)| Some((listener.name_at(index), listener.address.path()?)));
    let mut taken: HashMap<PathBuf, String> = HashMap::new();
    for (name, path) in
        paths.chain(config.control.as_deref().map(|path| (CONTROL.to_owned(), path)))
    {
        can_be_bound(path).map_err(|source| refuse(name.clone(), path, source))?;
        if let Some(other) = taken.insert(resolved(path), name.clone()) {
            let why = format!("the listener {other} has the same path");
            return Err(refuse(name, path, io::Error::other(why)));
        }
    }
    pid_file::check(config)?;
    if let Some(path) = &config.pid_file {
        can_be_made(path).map_err(|source| Error::PidFile { path: path.clone(), source })?;
    }
    Ok(())
}

/// Returns the path with symbolic links in its directory resolved, so that two different spellings
/// of one path compare equal.
fn resolved(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn refuse(name: String, path: &Path, source: io::Error) -> Error {
    Error::Bind { name, address: Address::UnixPath(path.to_owned()).to_string(), source }
}

/// Checks whether this process may bind a socket at `path`, which may replace an old socket file. A
/// symbolic link to a socket is accepted, because a parent such as systemd may pass that socket.
fn can_be_bound(path: &Path) -> io::Result<()> {
    can_be_made(path)?;
    if fs::metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return Ok(());
    }
    match check_is_socket(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Checks whether this process may create a file at `path`.
fn can_be_made(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    eaccess(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(Into::into)
}
