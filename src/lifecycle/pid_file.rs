//! Keeps a file that always names the process to signal.
//!
//! It is replaced by rename, so that a reader finds the old process or the new one and never half a
//! number. Which process that is, and when it changes, is decided in `machine`. A write that fails
//! is tried again until it succeeds: whoever signals the process that the file names must not hit
//! one that has ended.
//!
//! Nothing but a pid file is ever replaced: a regular file that holds a number or nothing.

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
use crate::error::Error;
use crate::sys::process::PidFd;

/// How long after a failed write the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// What a pid file may hold, generously: a number, a line feed, and what other programs add.
const LONGEST: u64 = 64;

/// The file.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    /// What the file has to name and does not name yet.
    owed: Option<Owed>,
}

/// A write that has failed and is tried again.
#[derive(Debug)]
struct Owed {
    pid: u32,
    due: Instant,
    failures: u32,
    /// Why it failed the last time: the same reason is logged once.
    reason: String,
}

impl PidFile {
    /// Checks that the file can be written, without touching it, and removes drafts that dead
    /// processes have left behind.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, Error> {
        let Some(path) = &config.pid_file else { return Ok(None) };
        check(config)?;
        remove_stale_drafts(path);
        Draft::create(path).map_err(|source| Error::PidFile { path: path.clone(), source })?;
        Ok(Some(Self { path: path.clone(), owed: None }))
    }

    /// Names `pid`. A write that fails is tried again when [`PidFile::due`] says so.
    ///
    /// # Errors
    /// Why the file does not name it yet.
    pub(super) fn name(&mut self, pid: u32) -> Result<(), Error> {
        let failures =
            self.owed.take().filter(|owed| owed.pid == pid).map_or(0, |owed| owed.failures);
        self.write(pid).inspect_err(|error| {
            let due = Instant::now() + RETRY;
            self.owed = Some(Owed {
                pid,
                due,
                failures: failures.saturating_add(1),
                reason: error.to_string(),
            });
        })
    }

    /// Names `pid`, which keeps the file from now on, and tries again if this fails.
    ///
    /// # Errors
    /// Why the file does not name it yet.
    pub(super) fn hand_over(&mut self, pid: u32) -> Result<(), Error> {
        self.owed = None;
        self.write(pid)
    }

    /// When to call [`PidFile::retry`], if a write has failed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.owed.as_ref().map(|owed| owed.due)
    }

    /// Tries a failed write again.
    pub(super) fn retry(&mut self) {
        let Some(Owed { pid, failures, reason, .. }) = self.owed.take() else { return };
        self.owed = Some(Owed { pid, due: Instant::now(), failures, reason: String::new() });
        match self.name(pid) {
            Ok(()) => tracing::info!(
                event = "pid_file.written",
                failures,
                "the pid file names process {pid} now"
            ),
            Err(error) if error.to_string() != reason => log_failure(&error),
            Err(_) => {}
        }
    }

    fn write(&self, pid: u32) -> Result<(), Error> {
        let written = Draft::create(&self.path).and_then(|draft| draft.publish(pid, &self.path));
        written.map_err(|source| Error::PidFile { path: self.path.clone(), source })
    }

    /// Removes the file if it names this process, or the successor with which the line ends.
    pub(super) fn remove(&mut self, successor: Option<u32>) {
        self.owed = None;
        let named = named(&self.path).ok().flatten();
        if named.is_some_and(|named| named == std::process::id() || Some(named) == successor) {
            match fs::remove_file(&self.path) {
                // A successor that is told to stop removes it too.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(
                        event = "pid_file.remove_failed", path = %self.path.display(),
                        reason = %error,
                        "cannot remove the pid file: {error}"
                    );
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Says that the file does not name the process to signal.
pub(super) fn log_failure(error: &Error) {
    tracing::error!(
        event = "pid_file.failed", reason = %error,
        "nobody can learn from the pid file whom to signal: {error}"
    );
}

/// Checks that the pid file replaces nothing but a pid file, and has a path of its own. Touches
/// nothing.
///
/// # Errors
/// [`Error::PidFile`].
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
    named_or_none(path).map_err(refuse)
}

/// Whether two paths are names of one file, which need not exist: the folders may be written
/// differently.
fn is_same(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::canonicalize(folder),
        _ => fs::canonicalize("."),
    };
    one == other
        || (one.file_name() == other.file_name()
            && matches!((folder(one), folder(other)), (Ok(one), Ok(other)) if one == other))
}

/// Checks that a file at `path` may be replaced: there is none, or it is empty or a pid file.
fn named_or_none(path: &Path) -> io::Result<()> {
    match named(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Reads the process that a pid file names; an empty one names none.
///
/// # Errors
/// When there is no file, and when it is another kind of file.
fn named(path: &Path) -> io::Result<Option<u32>> {
    // Before it is opened: to open a device or a pipe may do something, or wait.
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if kind.is_symlink() {
        return Err(io::Error::other(
            "what lies there is no file, but a symbolic link: name the file itself",
        ));
    }
    // To rename over /dev/null would take it from the whole system.
    if !kind.is_file() {
        return Err(io::Error::other("what lies there is no file"));
    }
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    let text = bytes.trim_ascii();
    let is_number = bytes.len() as u64 <= LONGEST && text.iter().all(u8::is_ascii_digit);
    if !is_number {
        return Err(io::Error::other(
            "it holds something else than a process id, and is not replaced",
        ));
    }
    Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
}

/// Removes drafts beside `pid_file` whose processes have ended: they were killed in the instant
/// between two system calls.
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
                "a draft of the pid file was left behind"
            );
        }
    }
}

/// The process that has made a draft of the pid file with this name, if it is the name of one:
/// `NAME.PID-RANDOM`.
fn draft_of(draft: &OsStr, name: &OsStr) -> Option<u32> {
    let rest = draft.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b".")?;
    let (pid, random) = std::str::from_utf8(rest).ok()?.split_once('-')?;
    let is_random = random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    pid.parse().ok().filter(|_| is_random)
}

/// Whether the process has ended, though its parent may not have reaped it yet. A draft of this
/// process is one of an earlier process with its number.
fn has_ended(pid: u32) -> bool {
    pid == std::process::id()
        || match PidFd::open(pid) {
            Ok(process) => process.has_ended(),
            Err(error) => error.raw_os_error() == Some(Errno::ESRCH as i32),
        }
}

/// A file that becomes the pid file when it is complete. Dropped before that, it is removed.
///
/// It lies in the folder of the pid file, and that folder may be one in which other users make
/// files. So nobody can guess its name, and it is never a file or a link that was there before.
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
        named_or_none(pid_file)?;
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
mod tests;
