//! Reads what a process is born with, once, and takes out of its environment what no other program
//! may see.
//!
//! Changing the environment is sound only while one thread runs (setenv(3)), so that is checked
//! rather than asked for. A program that starts no other programs may keep the variables in its
//! environment, and then other threads may run.
//! What the variables mean is not decided here.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use super::fd::PassedDescriptors;
use super::process;
use crate::error::Error;

/// A process is born once: a second taking would adopt descriptors that have an owner by now.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The environment as it was, in two parts.
#[derive(Debug)]
pub(crate) struct Environment {
    /// What was taken out, of the variables that were asked for.
    taken: Vec<(&'static str, OsString)>,
    /// All the rest, as `NAME=value`, in the form that execve(2) takes.
    pub(crate) rest: Vec<CString>,
}

impl Environment {
    /// Divides `variables` into those that are called as one of `names`, and the rest.
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

    /// What a variable held that was taken out.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.taken.iter().find(|(taken, _)| *taken == name).map(|(_, value)| value.as_os_str())
    }

    /// What a variable holds that was left in.
    pub(crate) fn kept(&self, name: &str) -> Option<&OsStr> {
        let values = self
            .rest
            .iter()
            .filter_map(|text| text.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        values.map(OsStr::from_bytes).next()
    }
}

/// What becomes of the variables that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variables {
    /// They are removed, so that no program that this process starts sees them. One thread may run.
    Removed,
    /// They stay in the environment, which is not changed. Other threads may run.
    Kept,
}

/// Takes what `names` hold, and as many passed descriptors as `count` finds to be ours.
///
/// # Errors
/// [`Error::AlreadyTaken`] and [`Error::ThreadsRunning`]; then nothing was changed.
pub(crate) fn take(
    names: &[&'static str],
    variables: Variables,
    count: impl FnOnce(&Environment) -> usize,
) -> Result<(Environment, PassedDescriptors), Error> {
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

/// What a variable holds, for a program that was started by hand and inherits nothing.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn remove(name: &str) {
    // SAFETY: no other thread reads the environment: `take`, the only caller, has found that there
    // is none.
    unsafe { std::env::remove_var(name) };
}

/// The path by which this process was started, absolute, its links not resolved: what a deploy may
/// put anew.
///
/// The kernel keeps the path that was given to execve(2) as `AT_EXECFN`, getauxval(3). Unlike
/// `argv[0]` nobody can have made it up, and unlike `/proc/self/exe` a link in it is still a link.
pub(crate) fn program() -> io::Result<PathBuf> {
    // SAFETY: getauxval(3) reads a table that the kernel wrote, for any key.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if name.is_null() {
        return std::fs::read_link("/proc/self/exe");
    }
    // SAFETY: AT_EXECFN, when it is there, points to a string that ends in zero and lives as long
    // as the process.
    let name = unsafe { CStr::from_ptr(name) };
    let path = Path::new(OsStr::from_bytes(name.to_bytes()));
    // fexecve(3) goes by a descriptor, which the successor would not have.
    if path.starts_with("/dev/fd") || path.starts_with("/proc") {
        return std::fs::read_link("/proc/self/exe");
    }
    std::path::absolute(path)
}

/// The arguments, `argv[0]` included.
pub(crate) fn arguments() -> Vec<CString> {
    std::env::args_os().filter_map(|argument| CString::new(argument.into_vec()).ok()).collect()
}
