//! The pid file, which contains the id of the process that operators signal.
//!
//! The file is replaced by rename, so a reader finds the old pid or the new one, never a partial
//! number. The state machine in `machine` decides when a process writes its pid to the file. A
//! failed write is retried until it succeeds, because a stale pid could make an operator signal an
//! unrelated process.
//!
//! To protect other files, a write replaces only a regular file that is empty or contains a number.

use std::ffi::OsStr;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio::time::Instant;

use crate::config::{Config, Listeners};
use crate::error::{Error, ExitStatus};
use crate::sys::process::PidFd;

/// How long to wait before a failed write of the pid file is retried.
const RETRY: Duration = Duration::from_secs(1);

/// The maximum size of a pid file in bytes. It leaves room for white space around the pid, which
/// other programs may write.
const LONGEST: u64 = 64;

/// The pid file that this process writes, and the failed write to retry, if any.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    /// The failed write to retry. `None` if the last write succeeded.
    owed: Option<FailedWrite>,
}

/// A failed write of the pid file, which is retried until it succeeds.
#[derive(Debug)]
struct FailedWrite {
    pid: u32,
    due: Instant,
    failures: u32,
    /// The reason for the last failure. A repeated failure for the same reason is not logged.
    reason: String,
}

impl PidFile {
    /// Checks that the pid file can be written, without changing it. A full disk is no error,
    /// because the daemon retries a failed write. Also removes the temporary files that dead
    /// processes have left beside the pid file. Returns `None` if no pid file is configured.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, Error> {
        let Some(path) = &config.pid_file else { return Ok(None) };
        check(config)?;
        remove_stale_drafts(path);
        match Draft::create(path) {
            Err(source) if ExitStatus::of_io(&source) != ExitStatus::System => {
                return Err(Error::PidFile { path: path.clone(), source });
            }
            Ok(_) | Err(_) => {}
        }
        Ok(Some(Self { path: path.clone(), owed: None }))
    }

    /// Writes `pid` to the file. If the write fails, call [`PidFile::retry`] at the time that
    /// [`PidFile::due`] returns.
    ///
    /// # Errors
    /// Returns the reason why `pid` could not be written.
    pub(super) fn name(&mut self, pid: u32) -> Result<(), Error> {
        let failures =
            self.owed.take().filter(|owed| owed.pid == pid).map_or(0, |owed| owed.failures);
        self.write(pid).inspect_err(|error| {
            let due = Instant::now() + RETRY;
            self.owed = Some(FailedWrite {
                pid,
                due,
                failures: failures.saturating_add(1),
                reason: error.to_string(),
            });
        })
    }

    /// Writes `pid`, the pid of the successor, to the file. This process does not retry a write
    /// that fails, because the successor writes the file too when it becomes active.
    ///
    /// # Errors
    /// Returns the reason why `pid` could not be written.
    pub(super) fn hand_over(&mut self, pid: u32) -> Result<(), Error> {
        self.owed = None;
        self.write(pid)
    }

    /// Returns when to call [`PidFile::retry`], or `None` if no write has failed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.owed.as_ref().map(|owed| owed.due)
    }

    /// Retries the last write of the pid file if it has failed.
    pub(super) fn retry(&mut self) {
        let Some(FailedWrite { pid, failures, reason, .. }) = self.owed.take() else { return };
        self.owed = Some(FailedWrite { pid, due: Instant::now(), failures, reason: String::new() });
        match self.name(pid) {
            Ok(()) => tracing::info!(
                event = "pid_file.written",
                failures,
                "wrote the pid file after {failures} failed attempts: it now contains {pid}"
            ),
            Err(error) if error.to_string() != reason => log_failure(&error),
            Err(_) => {}
        }
    }

    fn write(&self, pid: u32) -> Result<(), Error> {
        let written = Draft::create(&self.path).and_then(|draft| draft.publish(pid, &self.path));
        written.map_err(|source| Error::PidFile { path: self.path.clone(), source })
    }

    /// Removes the file if it contains the pid of this process or the pid `successor`. Pass a
    /// `successor` only if it ends together with this process.
    pub(super) fn remove(&mut self, successor: Option<u32>) {
        self.owed = None;
        let named = named(&self.path).ok().flatten();
        if named.is_some_and(|named| named == std::process::id() || Some(named) == successor) {
            match fs::remove_file(&self.path) {
                // Ignore a missing file: the successor may already have removed it, because both
                // processes were told to stop.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(
                        event = "pid_file.remove_failed", path = %self.path.display(),
                        reason = %error,
                        "cannot remove the pid file {}: {error}",
                        self.path.display()
                    );
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Logs that the pid file could not be written.
pub(super) fn log_failure(error: &Error) {
    tracing::error!(
        event = "pid_file.failed", reason = %error,
        "the pid file was not updated: {error}"
    );
}

/// Checks that a write of the pid file would replace no other file, and that no socket is
/// configured at the same path. Changes nothing.
///
/// # Errors
/// Returns [`Error::PidFile`] if the pid file cannot be used.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    let Some(path) = &config.pid_file else { return Ok(()) };
    let refuse = |source| Error::PidFile { path: path.clone(), source };
    let named = match &config.listeners {
        Listeners::Named(named) => named.as_slice(),
        Listeners::Inherited => &[],
    };
    for (index, listener) in named.iter().enumerate() {
        if listener.address.path().is_some_and(|other| is_same(path, other)) {
            let name = listener.name_at(index);
            return Err(refuse(io::Error::other(format!("the listener {name} has the same path"))));
        }
    }
    if config.control.as_deref().is_some_and(|other| is_same(path, other)) {
        return Err(refuse(io::Error::other("the control socket has the same path")));
    }
    named_or_none(path).and_then(|()| check_replaceable(path)).map_err(refuse)
}

/// Checks that this process may replace the regular file at `path`, if there is one. In a directory
/// with the sticky bit, such as /tmp, only the owner of a file may replace it.
///
/// This function tries to remove the file as a directory (see rmdir(2)). The kernel first checks
/// the permission, and then refuses because the file is not a directory.
fn check_replaceable(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(io::Error::new(error.kind(), format!("cannot replace the file: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Returns whether two paths name the same file, even if one reaches its directory through symbolic
/// links. The file need not exist.
fn is_same(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::canonicalize(folder),
        _ => fs::canonicalize("."),
    };
    one == other
        || (one.file_name() == other.file_name()
            && matches!((folder(one), folder(other)), (Ok(one), Ok(other)) if one == other))
}

/// Checks that a write may replace the file at `path`. This is allowed if the file does not exist,
/// is empty, or contains a pid.
fn named_or_none(path: &Path) -> io::Result<()> {
    match named(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns the pid in a pid file, or `None` if the file is empty.
///
/// # Errors
/// Fails when the file does not exist, or contains something other than a pid.
fn named(path: &Path) -> io::Result<Option<u32>> {
    // Check the file type before the file is opened, because opening a device or a named pipe may
    // block or have side effects.
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if kind.is_symlink() {
        return Err(io::Error::other(
            "not a regular file but a symbolic link; give the path of the file itself",
        ));
    }
    // Refuse devices and other special files, because a rename over /dev/null would remove it for
    // the whole system.
    if !kind.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    let text = bytes.trim_ascii();
    let is_number = bytes.len() as u64 <= LONGEST && text.iter().all(u8::is_ascii_digit);
    if !is_number {
        return Err(io::Error::other(
            "it contains something other than a pid, so it is not replaced",
        ));
    }
    Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
}

/// Removes temporary files that ended processes have left next to `pid_file`. Such a process was
/// killed before it could rename or remove its file.
fn remove_stale_drafts(pid_file: &Path) {
    let Some(name) = pid_file.file_name() else { return };
    let folder =
        pid_file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && draft_of(&entry.file_name(), name).is_some_and(has_ended) {
            let path = entry.path();
            let removed = fs::remove_file(&path).is_ok();
            tracing::debug!(
                event = "pid_file.draft_removed", path = %path.display(), removed,
                "found a temporary pid file of a process that has ended"
            );
        }
    }
}

/// Returns the id of the process that created the temporary file `draft` for the pid file `name`.
/// Returns `None` if `draft` does not have the form `NAME.PID-RANDOM`.
fn draft_of(draft: &OsStr, name: &OsStr) -> Option<u32> {
    let rest = draft.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b".")?;
    let (pid, random) = std::str::from_utf8(rest).ok()?.split_once('-')?;
    let is_random = random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    pid.parse().ok().filter(|_| is_random)
}

/// Returns whether the process `pid`, which created a temporary file, has ended. A zombie process,
/// whose parent has not waited for it yet, also counts as ended. If `pid` is the pid of this
/// process, an earlier process with the same pid created the file.
fn has_ended(pid: u32) -> bool {
    pid == std::process::id()
        || match PidFd::open(pid) {
            Ok(process) => process.has_ended(),
            Err(error) => error.raw_os_error() == Some(Errno::ESRCH as i32),
        }
}

/// A temporary file that becomes the pid file once it is complete. Dropping it earlier removes it.
///
/// The temporary file is in the directory of the pid file, where other users may be able to create
/// files. Therefore its name is random, and creating it never opens an existing file or link.
struct Draft {
    file: fs::File,
    path: PathBuf,
}

impl Draft {
    /// Creates an empty temporary file next to `pid_file`.
    fn create(pid_file: &Path) -> io::Result<Self> {
        // This number cannot be guessed, because `RandomState` seeds the hasher with random numbers
        // from the kernel.
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

    /// Writes `pid` to the temporary file, and renames the file to `pid_file`.
    fn publish(mut self, pid: u32, pid_file: &Path) -> io::Result<()> {
        self.file.write_all(format!("{pid}\n").as_bytes())?;
        named_or_none(pid_file)?;
        fs::rename(&self.path, pid_file)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Ignore an error: if the temporary file has become the pid file, this path no longer
        // exists.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
