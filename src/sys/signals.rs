//! The signals that must not end a process by accident, and what holds them off while no handler
//! stands.
//!
//! A signal without a handler ends the process, and exec resets every handler (signal(7)). So two
//! kinds of signal are held off from before an exec until the lifecycle has installed its handlers.
//! A request for a handoff is blocked: it waits. Every other signal is ignored: a blocked one would
//! stay blocked in the threads of a program that uses it for a purpose of its own.

use std::io;
use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// The signals that ask for a handoff.
pub(crate) const HANDOFF: [Signal; 2] = [Signal::SIGHUP, Signal::SIGUSR2];

/// The signals that a system call of this very process causes. The call itself returns the error,
/// and a record of it may be the write that fails; so these are ignored for good and never logged.
const OF_A_WRITE: [Signal; 2] = [Signal::SIGPIPE, Signal::SIGXFSZ];

/// The size of the kernel's signal set in bytes, which is not that of the C library's.
const SET_SIZE: usize = 8;

/// Every signal that ends a process without a handler, and that means nothing to handoffd.
pub(crate) fn stray() -> impl Iterator<Item = c_int> {
    let named = Signal::iterator().filter(|signal| is_stray(*signal)).map(|signal| signal as c_int);
    named.chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

const fn is_stray(signal: Signal) -> bool {
    use Signal as S;
    let asks = matches!(signal, S::SIGHUP | S::SIGUSR2 | S::SIGTERM | S::SIGINT | S::SIGQUIT);
    let cannot_be_held_off = matches!(signal, S::SIGKILL | S::SIGSTOP);
    // The process is broken, and must not go on.
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

/// Every signal that is ignored while no handler stands.
pub(super) fn ignored() -> Vec<c_int> {
    // The C library keeps the numbers below SIGRTMIN for itself, and installs its handlers when it
    // needs them.
    let reserved = 32..libc::SIGRTMIN();
    stray().chain(reserved).chain(OF_A_WRITE.map(|signal| signal as c_int)).collect()
}

/// Holds the signals off in a process that has one thread: threads that it starts later do as this
/// one does.
pub(crate) fn hold_off() -> io::Result<()> {
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&handoff()), None)?;
    for signal in ignored() {
        if !has_handler(signal)? {
            ignore(signal)?;
        }
    }
    Ok(())
}

/// The signals that ask for a handoff, as a set.
pub(super) fn handoff() -> SigSet {
    HANDOFF.into_iter().collect()
}

/// Whether the program has a handler of its own for a signal.
pub(crate) fn has_handler(signal: c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<KernelAction>::zeroed();
    // SAFETY: rt_sigaction(2) writes one action of the kernel's to a place that has room for it,
    // and changes nothing.
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
    // SAFETY: zeros are an action, and so is what the kernel has written over them.
    let handler = unsafe { action.assume_init() }.handler;
    Ok(handler != libc::SIG_DFL && handler != libc::SIG_IGN)
}

/// Ignores a signal. Async-signal-safe.
///
/// The kernel is asked directly, because the C library refuses the signals that it keeps for
/// itself.
pub(super) fn ignore(signal: c_int) -> Result<(), Errno> {
    let action = KernelAction { handler: libc::SIG_IGN, rest: [0; 3] };
    // SAFETY: rt_sigaction(2) reads an action that lives until the call returns. No handler is
    // installed, so none of the flags that say how a handler is run matters.
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

/// What rt_sigaction(2) reads and writes: the handler comes first on every machine that Rust and
/// tokio both know but MIPS.
#[repr(C)]
struct KernelAction {
    handler: libc::sighandler_t,
    /// Flags, the way back from a handler where there is one, and the mask. The order differs
    /// between machines.
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
        // Of the signals that the test process may get, nobody uses these.
        for signal in [libc::SIGRTMAX() - 1, 32] {
            ignore(signal).unwrap();
            assert!(!has_handler(signal).unwrap());
            let (process, thread) = (std::process::id(), nix::unistd::gettid().as_raw());
            // SAFETY: tgkill(2) takes three numbers; the signal is ignored.
            Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) })
                .unwrap();
        }
        // Rust installs one for the overflow of a stack.
        assert!(has_handler(libc::SIGSEGV).unwrap());
    }
}
