//! A launcher that starts a program as an orphan, with chosen descriptors from 3 up and nothing
//! else open.
//!
//! The launcher forks twice, and the intermediate process exits at once. So the reaper of orphans
//! (systemd, a subreaper or init) becomes the parent: it sees the program exit and reaps it.
//! Failures after the first fork are reported on a channel that the program inherits anyway. So
//! this process never waits for an exec that may hang.
//!
//! Between fork and exec only async-signal-safe calls are allowed (signal-safety(7)), so everything
//! that needs memory is allocated before the fork. All signals are blocked in between, because our
//! signal handlers would write into a pipe that the parent reads. Signals that request a handoff
//! stay blocked across the exec: they stay pending until the new program has its handlers, instead
//! of killing it. All other signals that would kill it by accident are ignored across the exec.
//!
//! The cost of a launch must not grow with the number of connections. Normally a fork copies every
//! descriptor, and an exec closes every one of them. So the intermediate process first shares our
//! descriptor table and then gets its own, which holds only the low descriptors (close_range(2),
//! `CLOSE_RANGE_UNSHARE`). [`super::fd::ReservedFd`] gives the passed descriptors low numbers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::fd::{CLOSE_IN_A_COPY, CLOSE_ON_EXEC, FIRST_PASSED};
use super::signals;

/// The program to start, and what it receives.
pub(crate) struct Launch<'a> {
    /// The path of the program. Symbolic links are resolved by the exec.
    pub(crate) program: &'a CString,
    /// All arguments, including `argv[0]`.
    pub(crate) arguments: &'a [CString],
    /// The complete environment.
    pub(crate) environment: &'a [CString],
    /// The descriptors that become 3, 4, ... in the program. Besides these, only the standard
    /// streams stay open.
    pub(crate) passed: &'a [BorrowedFd<'a>],
    /// The index in `passed` of the channel on which the outcome is reported.
    pub(crate) channel: usize,
    /// The messages that report the outcome.
    pub(crate) words: PreExecMessages,
}

/// The messages that report the outcome of a launch. Each is a prefix, completed by a decimal
/// number.
pub(crate) struct PreExecMessages {
    /// The program is about to be executed; the number is its pid.
    pub(crate) born: &'static [u8],
    /// The second fork or the preparation of the exec failed; the number is the errno.
    pub(crate) fork_failed: &'static [u8],
    /// The exec failed; the number is the errno.
    pub(crate) exec_failed: &'static [u8],
}

/// Forks twice and executes the program. Returns when the intermediate process has exited, and
/// blocks for as long as two forks take. The channel reports the outcome.
///
/// # Errors
/// Only when the first fork fails. Later failures are reported on the channel.
pub(crate) fn launch(launch: &Launch<'_>) -> io::Result<()> {
    let count = RawFd::try_from(launch.passed.len()).map_err(io::Error::other)?;
    let mut passed: Vec<RawFd> = launch.passed.iter().map(AsRawFd::as_raw_fd).collect();
    let wanted_at = wanted_at(&passed);
    let mut prepared = Prepared {
        program: launch.program.as_ptr(),
        arguments: pointers(launch.arguments),
        environment: pointers(launch.environment),
        above_the_passed: passed
            .iter()
            .copied()
            .max()
            .map_or(FIRST_PASSED, |highest| highest.max(2) + 1),
        passed: &mut passed,
        wanted_at: &wanted_at,
        first_free: FIRST_PASSED + count,
        channel: launch.channel,
        words: &launch.words,
        blocked: signals::handoff(),
        ignored: signals::ignored(),
    };
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: both children make only async-signal-safe calls until they exec or _exit (see
    // `middle` and `exec`). The intermediate process may share our descriptor table, because it
    // opens and closes nothing before it has its own.
    let forked = unsafe { fork(Descriptors::Shared) };
    if let Ok(Forked::Child) = forked {
        middle(&mut prepared);
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let Forked::Parent { child } = forked? else { return Err(Errno::ECHILD.into()) };
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            // ECHILD: the host program ignores SIGCHLD, so the kernel has already reaped the child.
            Ok(_) | Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a new process shares our descriptor table or gets a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptors {
    Shared,
    Copied,
}

/// Which process this is after a fork.
enum Forked {
    Parent { child: Pid },
    Child,
}

/// Calls fork(2) as a bare system call.
///
/// # Safety
/// The child may make only async-signal-safe calls. A child that shares our descriptor table must
/// not open or close descriptors before it has stopped sharing the table.
unsafe fn fork(descriptors: Descriptors) -> Result<Forked, Errno> {
    let flags = match descriptors {
        Descriptors::Shared => libc::CLONE_FILES | libc::SIGCHLD,
        Descriptors::Copied => libc::SIGCHLD,
    };
    // The order of the other arguments depends on the machine, but all of them are zero.
    let flags = libc::c_long::from(flags);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child runs on a copy of this stack, and the kernel writes
    // nothing through null pointers.
    let pid =
        Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) })?;
    match libc::pid_t::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) => Ok(Forked::Parent { child: Pid::from_raw(pid) }),
        Err(_) => Err(Errno::ERANGE),
    }
}

/// Everything that the children need, allocated by the parent.
struct Prepared<'a> {
    program: *const libc::c_char,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// The passed descriptors. The child replaces a number when it moves that descriptor; the
    /// parent does not see the change.
    passed: &'a mut [RawFd],
    /// For each target number, the index in `passed` of the descriptor that has that number now.
    /// See [`wanted_at`].
    wanted_at: &'a [Option<usize>],
    /// The first number above all passed descriptors.
    above_the_passed: RawFd,
    /// The first number above all descriptors that the program will have.
    first_free: RawFd,
    channel: usize,
    words: &'a PreExecMessages,
    /// The signals that are blocked and those that are ignored when the program starts.
    blocked: SigSet,
    ignored: Vec<libc::c_int>,
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Returns, for each target number, the index in `passed` of the descriptor that has that number
/// now. That descriptor must be moved before another one takes its number. No descriptor is passed
/// twice.
fn wanted_at(passed: &[RawFd]) -> Vec<Option<usize>> {
    let mut wanted = vec![None; passed.len()];
    for (index, descriptor) in passed.iter().enumerate() {
        let target =
            descriptor.checked_sub(FIRST_PASSED).and_then(|target| usize::try_from(target).ok());
        if let Some(place) = target.and_then(|target| wanted.get_mut(target)) {
            *place = Some(index);
        }
    }
    wanted
}

/// Runs the intermediate process: forks again and exits. Async-signal-safe.
fn middle(prepared: &mut Prepared<'_>) -> ! {
    // SAFETY: the child of a fork may fork again. The bare system call runs no pthread_atfork(3)
    // handlers, whose locks another thread of the parent may hold.
    let forked = own_descriptors(prepared.above_the_passed)
        .and_then(|()| unsafe { fork(Descriptors::Copied) });
    match forked {
        Ok(Forked::Child) => exec(prepared),
        Ok(Forked::Parent { .. }) => {}
        Err(errno) => {
            tell(prepared.passed[prepared.channel], prepared.words.fork_failed, errno as i32)
        }
    }
    // SAFETY: _exit(2) is async-signal-safe and runs no destructors of the parent.
    unsafe { libc::_exit(0) }
}

/// Stops sharing the parent's descriptor table and keeps only the descriptors below `end`.
/// Async-signal-safe.
fn own_descriptors(end: RawFd) -> Result<(), Errno> {
    // SAFETY: CLOSE_RANGE_UNSHARE copies the table before anything is closed, so the parent keeps
    // all of its descriptors.
    let done = unsafe { libc::close_range(end.unsigned_abs(), libc::c_uint::MAX, CLOSE_IN_A_COPY) };
    Errno::result(done).map(drop)
}

/// Moves the passed descriptors to their target numbers, from 3 up. Async-signal-safe.
///
/// Most of them already have the right number or a higher one. Only a descriptor whose number is
/// the target of another is moved out of the way first. So a process can pass nearly as many
/// descriptors as it may have.
fn place(prepared: &mut Prepared<'_>) -> Result<(), Errno> {
    for (index, target) in (0..prepared.passed.len()).zip(FIRST_PASSED..) {
        let source = prepared.passed[index];
        if source == target {
            // dup2(x, x) would keep close-on-exec. SAFETY: fcntl(2) clears that flag on an open
            // descriptor, in the table of this process only.
            Errno::result(unsafe { libc::fcntl(source, libc::F_SETFD, 0) })?;
            continue;
        }
        if let Some(other) = prepared.wanted_at[index].filter(|other| *other > index) {
            lift(prepared, other, target)?;
        }
        // SAFETY: no descriptor that is still to be moved has the number `target`, so dup2(2)
        // overwrites nothing that is needed.
        Errno::result(unsafe { libc::dup2(source, target) })?;
    }
    Ok(())
}

/// Moves the descriptor at `index` to a number above all that the program will have.
/// Async-signal-safe.
fn lift(prepared: &mut Prepared<'_>, index: usize, from: RawFd) -> Result<(), Errno> {
    // SAFETY: fcntl(2) duplicates an open descriptor, in the table of this process only.
    let lifted =
        Errno::result(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, prepared.first_free) })?;
    prepared.passed[index] = lifted;
    Ok(())
}

/// Runs the process that becomes the program. Async-signal-safe.
fn exec(prepared: &mut Prepared<'_>) -> ! {
    let placed = place(prepared);
    // `place` updates the number if it has moved the channel.
    let channel = prepared.passed[prepared.channel];
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag. This is a second safeguard:
    // our own descriptors are already close-on-exec, but the host program's may not be.
    unsafe {
        libc::close_range(prepared.first_free.unsigned_abs(), libc::c_uint::MAX, CLOSE_ON_EXEC)
    };
    // SAFETY: getpid(2) cannot fail.
    tell(channel, prepared.words.born, unsafe { libc::getpid() });
    // Ignore these signals before any signal is unblocked. The kernel may not support a signal that
    // the C library lists, and that must not prevent the start.
    for signal in &prepared.ignored {
        let _ = signals::ignore(*signal);
    }
    // Replaces the signal mask instead of extending it, so that blocked signals do not accumulate
    // over generations.
    let ready = placed
        .and_then(|()| pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&prepared.blocked), None));
    match ready {
        // The exec was not tried, so this failure is not reported as the program's.
        Err(errno) => tell(channel, prepared.words.fork_failed, errno as i32),
        Ok(()) => {
            // SAFETY: the path is null-terminated, both arrays end in a null pointer, and all of it
            // lives in memory that the fork copied.
            unsafe {
                libc::execve(
                    prepared.program,
                    prepared.arguments.as_ptr(),
                    prepared.environment.as_ptr(),
                )
            };
            tell(channel, prepared.words.exec_failed, Errno::last_raw());
        }
    }
    // SAFETY: as in `middle`.
    unsafe { libc::_exit(127) }
}

/// Sends `words` and a number as one packet. Async-signal-safe: it uses only memory on the stack.
fn tell(channel: RawFd, words: &[u8], number: i32) {
    let mut packet = [0_u8; 64];
    let mut end = words.len().min(48);
    packet[..end].copy_from_slice(&words[..end]);
    let (mut power, number) = (1_000_000_000_u32, number.unsigned_abs());
    while power > number.max(1) {
        power /= 10;
    }
    while power > 0 {
        packet[end] = b'0' + u8::try_from(number / power % 10).unwrap_or(0);
        (end, power) = (end + 1, power / 10);
    }
    packet[end] = b'\n';
    // SAFETY: send(2) reads `end + 1` bytes, which are within the array. The result is ignored:
    // nothing can be done if the other end is closed.
    unsafe {
        libc::send(
            channel,
            packet.as_ptr().cast(),
            end + 1,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
}
