//! This module splits the process into two: a small init process that reaps orphans, and a child
//! process that does the work.
//!
//! The split is a fork(2) at startup, while the process has a single thread.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid, dup2_raw, fork};

use super::fd::FIRST_PASSED;

/// Whether this process is the parent or the child after the fork.
#[derive(Debug)]
pub(crate) enum Fork {
    /// This is the parent, which stays as the init process. All signals are blocked in it.
    Init {
        /// The child process, which does the work.
        child: Pid,
    },
    /// This is the child, which does the work. It continues as if the fork had not happened.
    Child,
}

/// Forks this process. The parent becomes the reaper of its orphaned descendants, as process 1
/// always is (see PR_SET_CHILD_SUBREAPER in prctl(2)).
///
/// The caller must have checked that this process has a single thread (see
/// [`super::process::require_one_thread`]). Only then may the child run arbitrary code (see
/// fork(2)).
pub(crate) fn fork_off() -> io::Result<Fork> {
    set_child_subreaper(true)?;
    // Block all signals, so that an early signal stays pending until the init process reads it.
    // Otherwise, if this is process 1, the kernel would discard the signal for lack of a handler.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: no other thread runs, so no other thread can hold a lock that the child would wait
    // for.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Fork::Init { child }),
        forked => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            forked.map(|_| Fork::Child).map_err(Into::into)
        }
    }
}

/// Closes every descriptor from 3 up except `kept`. The number of the returned descriptor may
/// differ from that of `kept`.
pub(crate) fn keep_only(kept: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let kept = if kept.as_raw_fd() == FIRST_PASSED {
        kept
    } else {
        // SAFETY: nothing in this process uses the overwritten descriptor or closes it again on
        // drop. Only the child uses the descriptors that were open before the fork.
        let moved = unsafe { dup2_raw(&kept, FIRST_PASSED) }?;
        // Do not close `kept` here, because close_range(2) closes it below.
        std::mem::forget(kept);
        moved
    };
    let first = (FIRST_PASSED + 1).unsigned_abs();
    // SAFETY: nothing in this process uses the descriptors that close_range(2) closes. Only the
    // child uses the descriptors that were open before the fork.
    let done = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(done)?;
    Ok(kept)
}

/// Exits at once without running destructors, because the child process now owns everything that
/// they would clean up.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: _exit(2) ends the process and runs none of its code.
    unsafe { libc::_exit(code) }
}
