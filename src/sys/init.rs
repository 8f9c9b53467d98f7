//! Splits a process in two while it has one thread: one half stays as a small init, the other goes
//! on.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid, dup2_raw, fork};

use super::fd::FIRST_PASSED;

/// Which half this process is.
#[derive(Debug)]
pub(crate) enum Half {
    /// The one that stays. All signals are blocked.
    Init {
        /// The other.
        child: Pid,
    },
    /// The one that goes on, as if nothing had been.
    Line,
}

/// Splits this process. The half that stays becomes the parent of all orphans below it, as process
/// 1 is anyway.
///
/// The caller has checked that there is one thread ([`super::process::require_one_thread`]). So the
/// other half may do whatever this process might have done (fork(2)).
pub(crate) fn split() -> io::Result<Half> {
    set_child_subreaper(true)?;
    // Process 1 is not killed by a signal that it has no handler for; it is lost. So it must not
    // come before we wait.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: no other thread runs, so no lock is held that the child would wait for.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Half::Init { child }),
        forked => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            forked.map(|_| Half::Line).map_err(Into::into)
        }
    }
}

/// Closes every descriptor from 3 up but this one, which it may give another number.
pub(crate) fn keep_only(kept: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let kept = if kept.as_raw_fd() == FIRST_PASSED {
        kept
    } else {
        // SAFETY: what is open there belongs to the other half; in this one nobody uses it any
        // more, and nothing is dropped that would close it again.
        let moved = unsafe { dup2_raw(&kept, FIRST_PASSED) }?;
        // Closed below with all others.
        std::mem::forget(kept);
        moved
    };
    let first = (FIRST_PASSED + 1).unsigned_abs();
    // SAFETY: close_range(2) on what the other half owns: as above.
    let done = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(done)?;
    Ok(kept)
}

/// Ends this process at once. What it holds belongs to the other half, so no destructor is to run.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: _exit(2) runs nothing.
    unsafe { libc::_exit(code) }
}
