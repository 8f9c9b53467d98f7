//! Keeps a file that always names the process to signal.
//!
//! It is replaced by rename, so that a reader finds the old process or the new one and never half a number. Which
//! process that is, and when it changes, is decided in `machine`.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::error::Error;

/// The file.
#[derive(Clone, Debug)]
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Checks that the file can be written, without touching it.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let check = || {
            if path.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            // To rename over /dev/null would take it from the whole system.
            if path.exists() && !path.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            Draft::create(path).map(drop)
        };
        check().map_err(|source| Error::PidFile { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned() })
    }

    /// Names `pid`.
    pub(super) fn write(&self, pid: u32) -> Result<(), Error> {
        let written = Draft::create(&self.path).and_then(|draft| draft.publish(pid, &self.path));
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

/// A file that becomes the pid file when it is complete. Dropped before that, it is removed.
///
/// It lies in the folder of the pid file, and that folder may be one in which other users make files. So nobody can guess
/// its name, and it is never a file or a link that was there before.
struct Draft {
    file: fs::File,
    path: PathBuf,
}

impl Draft {
    /// Makes an empty one beside `pid_file`.
    fn create(pid_file: &Path) -> io::Result<Self> {
        // The keys of the hasher come from the kernel's random numbers.
        let random = RandomState::new().hash_one(std::time::Instant::now());
        let mut path = pid_file.as_os_str().to_owned();
        path.push(format!(".{}-{random:016x}", std::process::id()));
        Self::create_at(path.into())
    }

    fn create_at(path: PathBuf) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o644).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&path)?;
        Ok(Self { file, path })
    }

    /// Puts it in the place of `pid_file`, with `pid` in it.
    fn publish(mut self, pid: u32, pid_file: &Path) -> io::Result<()> {
        self.file.write_all(format!("{pid}\n").as_bytes())?;
        fs::rename(&self.path, pid_file)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // One that has been published is not here any more.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_never_a_file_or_a_link_of_somebody_else() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("link"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.path().join("dangling")).unwrap();
        for path in ["victim", "link", "dangling"] {
            let made = Draft::create_at(folder.path().join(path));
            assert_eq!(made.err().unwrap().kind(), io::ErrorKind::AlreadyExists, "{path}");
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn no_two_drafts_have_one_name_and_none_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let drafts: Vec<_> = (0..100).map(|_| Draft::create(&path).unwrap()).collect();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), drafts.len());
        drop(drafts);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
