//! A temporary folder for the private sockets of this process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

/// A folder that only this process's user can enter. Dropping this value removes the folder.
#[derive(Debug)]
pub(crate) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Creates a folder with a unique name in `parent`. If `parent` is `None`, creates the folder
    /// in the system's directory for temporary files.
    pub(crate) fn create(parent: Option<&Path>) -> io::Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        Ok(Self(mkdtemp(&parent.join("handoffd-XXXXXX"))?))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Ignore errors, because at worst the folder is left behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_with_what_is_in_it() {
        let folder = TemporaryFolder::create(None).unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("socket"), "").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
