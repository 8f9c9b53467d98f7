//! A fork of this process into a small init process and the process that does the work.
//!
//! It happens at startup, while the process has a single thread.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid, dup2_raw, fork};

use super::fd::FIRST_PASSED;

/// Which of the two processes this one is after the fork.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The process that stays as init. All signals are blocked.
    Init {
        /// The process that does the work.
        child: Pid,
    },
    /// The process that does the work. It continues as if it had not been forked.
    Line,
}

/// Forks this process. The parent becomes the reaper of all orphans below it, as process 1 always
/// is.
///
/// The caller has checked that this process has a single thread
/// ([`super::process::require_one_thread`]). So the child may do anything that this process could
/// have done (fork(2)).
pub(crate) fn fork_off() -> io::Result<Fork> {
    set_child_subreaper(true)?;
    // The kernel discards a signal for process 1 that has no handler. Blocking all signals keeps an
    // early signal pending until the init process waits for it.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: no other thread runs, so no other thread can hold a lock that the child would wait
    // for.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Fork::Init { child }),
        forked => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            forked.map(|_| Fork::Line).map_err(Into::into)
        }
    }
}

/// Closes every descriptor from 3 up except `kept`. The returned descriptor may have another
/// number.
pub(crate) fn keep_only(kept: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let kept = if kept.as_raw_fd() == FIRST_PASSED {
        kept
    } else {
        // SAFETY: only the child uses the descriptors that were open before the fork. Nothing in
        // this process uses the overwritten one or closes it again on drop.
        let moved = unsafe { dup2_raw(&kept, FIRST_PASSED) }?;
        // close_range(2) below closes it.
        std::mem::forget(kept);
        moved
    };
    let first = (FIRST_PASSED + 1).unsigned_abs();
    // SAFETY: as above: nothing in this process uses the descriptors that close_range(2) closes.
    let done = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(done)?;
    Ok(kept)
}

/// Exits at once without running destructors, because everything that this process holds belongs to
/// the other one.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: _exit(2) runs no code of this process.
    unsafe { libc::_exit(code) }
}
