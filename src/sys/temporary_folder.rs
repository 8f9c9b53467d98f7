//! A temporary folder for the private sockets of this process.

use std::fs::{self, DirEntry};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{geteuid, mkdtemp};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// The name of a folder, without the six random letters and digits at its end.
const PREFIX: &str = "handoffd-";

/// A folder that only this process's user can enter. Dropping this value removes the folder.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    path: PathBuf,
    /// The folder with a lock, which shows that this process is alive. `None` if the file system
    /// has no locks.
    _lock: Option<OwnedFd>,
}

impl TemporaryFolder {
    /// Creates a folder with a unique name in `parent`, which only this service uses. Removes the
    /// folders that killed processes have left there. If `parent` is `None`, creates the folder in
    /// the system's directory for temporary files.
    pub(crate) fn create(parent: Option<&Path>) -> io::Result<Self> {
        let entries = parent.and_then(|parent| fs::read_dir(parent).ok());
        entries.into_iter().flatten().flatten().for_each(|entry| remove_abandoned(&entry));
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        // The folder gets its final name only when it is locked. Otherwise another process could
        // take it for an abandoned one.
        let draft = mkdtemp(&parent.join(format!(".{PREFIX}XXXXXX")))?;
        let lock = match lock(&draft) {
            Ok(lock) => Some(lock),
            Err(error) if has_no_locks(&error) => None,
            Err(error) => {
                let _ = fs::remove_dir(&draft);
                return Err(error);
            }
        };
        let name = draft.file_name().unwrap_or_default().to_string_lossy();
        let path = parent.join(name.trim_start_matches('.'));
        fs::rename(&draft, &path).inspect_err(|_| {
            let _ = fs::remove_dir(&draft);
        })?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Ignore errors, because at worst the folder is left behind.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Returns whether the file system does not support locks.
fn has_no_locks(error: &io::Error) -> bool {
    let unsupported = [Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::ENOLCK];
    error.raw_os_error().is_some_and(|code| unsupported.contains(&Errno::from_raw(code)))
}

/// Locks a folder. The lock ends with the process.
///
/// # Errors
/// Fails if another process has locked the folder, or if this is not a folder.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = open(path, flags, Mode::empty())?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

/// Removes an entry if it is the folder of a process that was killed. Removes nothing but sockets
/// and the empty folder. Ignores errors, because at worst the folder is left behind.
fn remove_abandoned(entry: &DirEntry) {
    let name = entry.file_name();
    let random = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    let is_random = |text: &str| text.len() == 6 && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_private = |entry: &DirEntry| {
        entry.metadata().is_ok_and(|of| of.uid() == geteuid().as_raw() && of.mode() & 0o77 == 0)
    };
    if !random.is_some_and(is_random) || !is_private(entry) {
        return;
    }
    let Ok(_lock) = lock(&entry.path()) else { return };
    for file in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
        if file.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _ = fs::remove_file(file.path());
        }
    }
    let _ = fs::remove_dir(entry.path());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_folder_is_removed_with_what_is_in_it() {
        let folder = TemporaryFolder::create(None).unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("socket"), "").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn only_folders_of_killed_processes_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let alive = TemporaryFolder::create(Some(parent.path())).unwrap();
        let [killed, other] = ["handoffd-abc123", "handoffd-def456"].map(|name| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            path
        });
        UnixListener::bind(killed.join("notify-0")).unwrap();
        fs::write(other.join("file"), "precious").unwrap();
        let new = TemporaryFolder::create(Some(parent.path())).unwrap();
        assert!(alive.path().exists() && new.path().exists());
        assert!(!killed.exists(), "the folder of a killed process is left");
        assert!(other.join("file").exists());
        drop((alive, new));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
