//! Keeps a file that always names the process to signal.
//!
//! It is replaced by rename, so that a reader finds the old process or the new one and never half a number. Which
//! process that is, and when it changes, is decided in `machine`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The file.
#[derive(Clone, Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    /// Where it is written before it is renamed: in the same folder, and no other process uses the name.
    draft: PathBuf,
}

impl PidFile {
    /// Checks that the file can be written, without touching it.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let file = Self { path: path.to_owned(), draft: draft.into() };
        let check = || {
            if path.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            // To rename over /dev/null would take it from the whole system.
            if path.exists() && !path.is_file() {
                return Err(io::Error::other("what lies there is no file"));
            }
            fs::write(&file.draft, "")?;
            fs::remove_file(&file.draft)
        };
        check().map_err(|source| Error::PidFile { path: path.to_owned(), source })?;
        Ok(file)
    }

    /// Names `pid`.
    pub(super) fn write(&self, pid: u32) -> Result<(), Error> {
        let written = fs::write(&self.draft, format!("{pid}\n")).and_then(|()| fs::rename(&self.draft, &self.path));
        written.map_err(|source| Error::PidFile { path: self.path.clone(), source })
    }

    /// Removes the file if it names this process, or the successor with which the line ends.
    pub(super) fn remove(&self, successor: Option<u32>) {
        let Ok(text) = fs::read_to_string(&self.path) else { return };
        let named = text.trim().parse().ok();
        if named.is_some_and(|named| named == std::process::id() || Some(named) == successor) {
            match fs::remove_file(&self.path) {
                // A successor that is told to stop removes it too.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %self.path.display(), reason = %error, "cannot remove the pid file: {error}");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}
