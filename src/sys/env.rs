//! The environment variables and the file descriptors that this process receives at startup.
//!
//! This module reads the variables once and removes those that child programs must not see. The
//! environment must not change while other threads run (see setenv(3)), so [`take`] checks the
//! number of threads. A program that starts no other programs may leave the variables in place, and
//! may then have other threads. This module does not interpret the variables.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use super::fd::PassedDescriptors;
use super::process;
use crate::error::Error;

/// Whether [`take`] has been called. A second call must fail, because it would take descriptors
/// that already have an owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The environment variables at startup, split into two groups: those that the caller requested by
/// name, and all others.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// The requested variables that were set, with their values.
    taken: Vec<(&'static str, OsString)>,
    /// All other variables as `NAME=value`, ready for execve(2).
    pub(crate) rest: Vec<CString>,
}

impl Environment {
    /// Splits `variables` into the variables listed in `names` and all others.
    pub(crate) fn new(names: &[&'static str], variables: Vec<(OsString, OsString)>) -> Self {
        let value = |name: &str| {
            variables.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
        };
        let taken = names.iter().filter_map(|name| Some((*name, value(name)?))).collect();
        let rest =
            variables.into_iter().filter(|(name, _)| !names.iter().any(|taken| name == taken));
        let rest = rest.filter_map(|(mut text, value)| {
            text.push("=");
            text.push(value);
            CString::new(text.into_vec()).ok()
        });
        Self { taken, rest: rest.collect() }
    }

    /// Returns the value of a variable that was requested by name. Returns `None` if the variable
    /// was not set.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.taken.iter().find(|(taken, _)| *taken == name).map(|(_, value)| value.as_os_str())
    }

    /// Returns the value of a variable that was not requested by name. Such a variable stays in the
    /// environment, so child programs see it too.
    pub(crate) fn kept(&self, name: &str) -> Option<&OsStr> {
        let values = self
            .rest
            .iter()
            .filter_map(|text| text.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        values.map(OsStr::from_bytes).next()
    }
}

/// Whether variables stay in the environment after they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variables {
    /// The variables are removed from the environment, so that child programs do not inherit them.
    /// This requires that the process has a single thread.
    Removed,
    /// The variables stay in the environment. Other threads may run.
    Kept,
}

/// Takes the variables listed in `names` from the environment, and takes the passed descriptors.
/// `count` derives the number of passed descriptors from the variables.
///
/// # Errors
/// [`Error::AlreadyTaken`] on a second call. [`Error::ThreadsRunning`] if other threads run and the
/// caller wants to remove the variables. After either error nothing has changed.
pub(crate) fn take(
    names: &[&'static str],
    variables: Variables,
    count: impl FnOnce(&Environment) -> usize,
) -> Result<(Environment, PassedDescriptors), Error> {
    // Check this first, because the library itself has started threads by the second call.
    if TAKEN.load(Ordering::Relaxed) {
        return Err(Error::AlreadyTaken);
    }
    if variables == Variables::Removed {
        process::require_one_thread()?;
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Error::AlreadyTaken);
    }
    let environment = Environment::new(names, std::env::vars_os().collect());
    let descriptors = PassedDescriptors::new(count(&environment));
    if variables == Variables::Removed {
        names.iter().for_each(|name| remove(name));
    }
    Ok((environment, descriptors))
}

/// Returns the value of an environment variable. This function is for commands that a user runs by
/// hand, such as `handoffd status`. A generation uses [`take`] instead.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Returns the environment of this process.
#[cfg(feature = "program")]
pub(crate) fn all() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// Returns the first directory of a colon-separated list, such as systemd's `RUNTIME_DIRECTORY`.
/// Returns `None` if that directory is not an absolute path.
pub(crate) fn first_folder(folders: &OsStr) -> Option<PathBuf> {
    let first = folders
        .as_bytes()
        .split(|byte| *byte == b':')
        .next()
        .filter(|first| first.starts_with(b"/"))?;
    Some(PathBuf::from(OsStr::from_bytes(first)))
}

fn remove(name: &str) {
    // SAFETY: no other thread reads the environment. `take`, the only caller, has checked that this
    // process has a single thread.
    unsafe { std::env::remove_var(name) };
}

/// Returns the absolute path from which this process was started. Symbolic links are not resolved,
/// because a deployment may point them to a new binary.
///
/// The kernel records the path passed to execve(2) as `AT_EXECFN` (see getauxval(3)). Unlike
/// `argv[0]` this path cannot be forged, and unlike `/proc/self/exe` it keeps symbolic links.
pub(crate) fn program() -> io::Result<PathBuf> {
    // SAFETY: getauxval(3) accepts any key, and only reads a table that the kernel wrote.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if name.is_null() {
        return std::fs::read_link("/proc/self/exe");
    }
    // SAFETY: if `AT_EXECFN` is not null, it points to a null-terminated string that lives as long
    // as the process.
    let name = unsafe { CStr::from_ptr(name) };
    let path = Path::new(OsStr::from_bytes(name.to_bytes()));
    // This process was started through a descriptor (see fexecve(3)), which a successor would not
    // have. Return the path of the running program instead.
    if path.starts_with("/dev/fd") || path.starts_with("/proc") {
        return std::fs::read_link("/proc/self/exe");
    }
    std::path::absolute(path)
}

/// Returns the arguments of this process, including `argv[0]`.
pub(crate) fn arguments() -> Vec<CString> {
    std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect()
}
