//! This module protects a process from signals that could kill it by accident. It blocks or ignores
//! them while the process has no signal handlers.
//!
//! A signal without a handler can kill the process, and exec resets all handlers (see signal(7)).
//! So this module holds off these signals from before an exec until the new program has installed
//! its handlers. It blocks the signals that request a handoff, so that they stay pending. It
//! ignores all others and does not block them, because the threads of the new program would inherit
//! the block.

use std::io;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// The signals with which an operator requests a handoff.
pub(crate) const HANDOFF: [Signal; 2] = [Signal::SIGHUP, Signal::SIGUSR2];

/// The signals that the kernel sends to a process when one of its writes fails. This process always
/// ignores them, because the write also returns an error. The process never logs these signals,
/// because the failed write may be a write to the log.
const OF_A_WRITE: [Signal; 2] = [Signal::SIGPIPE, Signal::SIGXFSZ];

/// The size of the kernel's signal set in bytes. The C library's signal set is larger.
const SET_SIZE: usize = 8;

/// Returns all signals that handoffd does not use and that kill a process without a handler for
/// them.
pub(crate) fn stray() -> impl Iterator<Item = c_int> {
    let named = Signal::iterator().filter(|signal| is_stray(*signal)).map(|signal| signal as c_int);
    named.chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

const fn is_stray(signal: Signal) -> bool {
    use Signal as S;
    let asks = matches!(signal, S::SIGHUP | S::SIGUSR2 | S::SIGTERM | S::SIGINT | S::SIGQUIT);
    let cannot_be_held_off = matches!(signal, S::SIGKILL | S::SIGSTOP);
    // These signals report a fault, after which the process is broken and must not continue.
    let is_a_fault = matches!(
        signal,
        S::SIGILL | S::SIGTRAP | S::SIGABRT | S::SIGBUS | S::SIGFPE | S::SIGSEGV | S::SIGSYS
    );
    let ends_nothing = matches!(
        signal,
        S::SIGCHLD | S::SIGCONT | S::SIGTSTP | S::SIGTTIN | S::SIGTTOU | S::SIGURG | S::SIGWINCH
    );
    let is_of_a_write = matches!(signal, S::SIGPIPE | S::SIGXFSZ);
    !(asks || cannot_be_held_off || is_a_fault || ends_nothing || is_of_a_write)
}

/// Returns all signals to ignore while the process has no signal handlers.
pub(super) fn ignored() -> Vec<c_int> {
    // Also ignore the signals below SIGRTMIN that the C library reserves for itself. The C library
    // installs its handlers only when it needs them.
    let reserved = 32..libc::SIGRTMIN();
    stray().chain(reserved).chain(OF_A_WRITE.map(|signal| signal as c_int)).collect()
}

/// Blocks or ignores the signals that could kill this process. Call this function while the process
/// has a single thread, because later threads inherit the signal mask.
pub(crate) fn hold_off() -> io::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&handoff()), None)?;
    for signal in ignored() {
        if !has_handler(signal)? {
            ignore(signal)?;
        }
    }
    Ok(())
}

/// Returns the signals that request a handoff, as a signal set.
pub(super) fn handoff() -> SigSet {
    HANDOFF.into_iter().collect()
}

/// Makes the kernel keep the exit status of each child until this process reads it. If `SIGCHLD` is
/// ignored, the kernel discards the status (see wait(2)). A parent may have ignored the signal, and
/// execve(2) keeps that setting.
pub(crate) fn keep_exit_statuses() -> Result<(), Errno> {
    if action(libc::SIGCHLD)? == libc::SIG_IGN { set(libc::SIGCHLD, libc::SIG_DFL) } else { Ok(()) }
}

/// Returns whether the program has installed its own handler for a signal.
pub(crate) fn has_handler(signal: c_int) -> io::Result<bool> {
    let handler = action(signal)?;
    Ok(handler != libc::SIG_DFL && handler != libc::SIG_IGN)
}

/// Returns the action of a signal: a handler, `SIG_DFL` or `SIG_IGN`.
fn action(signal: c_int) -> Result<libc::sighandler_t, Errno> {
    let mut action = MaybeUninit::<KernelAction>::zeroed();
    // SAFETY: rt_sigaction(2) writes one kernel action into a buffer that is large enough, and
    // changes nothing else.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            c_long::from(signal),
            0_usize,
            action.as_mut_ptr(),
            SET_SIZE,
        )
    };
    Errno::result(done)?;
    // SAFETY: an action of all zeros is valid, and so is any action that the kernel writes.
    Ok(unsafe { action.assume_init() }.handler)
}

/// Makes this process ignore a signal. Async-signal-safe.
pub(super) fn ignore(signal: c_int) -> Result<(), Errno> {
    set(signal, libc::SIG_IGN)
}

/// Resets a signal to its default action. Async-signal-safe.
#[cfg(feature = "program")]
pub(super) fn reset(signal: c_int) -> Result<(), Errno> {
    set(signal, libc::SIG_DFL)
}

/// Sets the action of a signal to `SIG_IGN` or `SIG_DFL`. Async-signal-safe.
///
/// This function calls the kernel directly, because the C library refuses to change the signals
/// that it reserves.
fn set(signal: c_int, handler: libc::sighandler_t) -> Result<(), Errno> {
    let action = KernelAction { handler, rest: [0; 3] };
    // SAFETY: rt_sigaction(2) reads an action that lives until the call returns. No handler is
    // installed, so the flags for handlers do not matter.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            c_long::from(signal),
            &raw const action,
            0_usize,
            SET_SIZE,
        )
    };
    Errno::result(done).map(drop)
}

/// The kernel's `struct sigaction`, as rt_sigaction(2) expects it. The handler is the first field
/// on every machine that both Rust and tokio support, except MIPS.
#[repr(C)]
struct KernelAction {
    handler: libc::sighandler_t,
    /// The flags, the signal mask and, on some machines, the restorer. Their order depends on the
    /// machine.
    rest: [u64; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stray_signal_is_one_that_ends_a_process() {
        let stray: Vec<c_int> = stray().collect();
        for signal in [
            libc::SIGUSR1,
            libc::SIGALRM,
            libc::SIGIO,
            libc::SIGPROF,
            libc::SIGVTALRM,
            libc::SIGPWR,
            libc::SIGXCPU,
        ] {
            assert!(stray.contains(&signal), "{signal}");
        }
        assert!(stray.contains(&libc::SIGRTMIN()) && stray.contains(&libc::SIGRTMAX()));
        for signal in [libc::SIGCHLD, libc::SIGSEGV, libc::SIGUSR2, libc::SIGWINCH, libc::SIGPIPE] {
            assert!(!stray.contains(&signal), "{signal}");
        }
    }

    #[test]
    fn an_ignored_signal_ends_nothing_and_has_no_handler() {
        // Use two signals that no other code in the test process uses.
        for signal in [libc::SIGRTMAX() - 1, 32] {
            ignore(signal).unwrap();
            assert!(!has_handler(signal).unwrap());
            let (process, thread) = (std::process::id(), nix::unistd::gettid().as_raw());
            // SAFETY: tgkill(2) takes three numbers, and the signal that it sends is ignored.
            Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) })
                .unwrap();
        }
        // SIGSEGV has a handler, because Rust installs one to report stack overflows.
        assert!(has_handler(libc::SIGSEGV).unwrap());
    }
}
