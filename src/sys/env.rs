//! Reads what a process is born with, once, and takes out of its environment what no other program may see.
//!
//! Changing the environment is sound only while one thread runs (setenv(3)), so that is checked rather than asked for.
//! What the variables mean is not decided here.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use listenfd::ListenFd;
use nix::libc;

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
        let value = |name: &str| variables.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
        let taken = names.iter().filter_map(|name| Some((*name, value(name)?))).collect();
        let rest = variables.into_iter().filter(|(name, _)| !names.iter().any(|taken| name == taken));
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
        let values =
            self.rest.iter().filter_map(|text| text.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        values.map(OsStr::from_bytes).next()
    }
}

/// Whether any descriptors were passed to this very process: the caller judges.
pub(crate) enum Judgement {
    Nothing,
    Descriptors,
}

/// Takes `names` out of the environment, and the passed descriptors with them if `judge` finds that they are ours.
///
/// # Errors
/// [`Error::AlreadyTaken`] and [`Error::ThreadsRunning`]; then nothing was changed.
pub(crate) fn take(
    names: &[&'static str],
    judge: impl FnOnce(&Environment) -> Judgement,
) -> Result<(Environment, ListenFd), Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(Error::system("count the threads in /proc"))?.count();
    if threads != 1 {
        return Err(Error::ThreadsRunning { threads });
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(Error::AlreadyTaken);
    }
    let environment = Environment::new(names, std::env::vars_os().collect());
    let passed = judge(&environment);
    // listenfd reads LISTEN_FDS and LISTEN_PID itself, and a first descriptor other than 3 that no protocol knows.
    remove("LISTEN_FDS_FIRST_FD");
    let descriptors = match passed {
        Judgement::Nothing => ListenFd::empty(),
        Judgement::Descriptors => ListenFd::from_env(),
    };
    names.iter().for_each(|name| remove(name));
    Ok((environment, descriptors))
}

/// What a variable holds, for a program that was started by hand and inherits nothing.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn remove(name: &str) {
    // SAFETY: no other thread reads the environment, for there is none: `take`, the only caller, has counted them.
    unsafe { std::env::remove_var(name) };
}

/// The path by which this process was started, absolute, its links not resolved: what a deploy may put anew.
///
/// The kernel keeps the path that was given to execve(2) as `AT_EXECFN`, getauxval(3). Unlike `argv[0]` nobody can
/// have made it up, and unlike `/proc/self/exe` a link in it is still a link.
pub(crate) fn program() -> io::Result<PathBuf> {
    // SAFETY: getauxval(3) reads a table that the kernel wrote, for any key.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if name.is_null() {
        return std::fs::read_link("/proc/self/exe");
    }
    // SAFETY: AT_EXECFN, when it is there, points to a string that ends in zero and lives as long as the process.
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
