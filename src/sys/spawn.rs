//! This module launches a successor's program. The new process is not a child of this process. Only
//! the standard streams and the passed descriptors, numbered from 3 up, are open in it.
//!
//! The launcher forks twice, and the intermediate process exits at once. So the reaper of orphans
//! (systemd, a subreaper or init) becomes the parent of the program and reaps it when it exits. The
//! new processes report later failures on a channel that the program inherits anyway. So this
//! process never waits for an exec that may hang.
//!
//! Only async-signal-safe calls are allowed between fork and exec (see signal-safety(7)). So all
//! memory is allocated before the fork. All signals are blocked between fork and exec, because our
//! signal handlers would write into a pipe that the parent reads. Signals that request a handoff
//! stay blocked across the exec, so that they remain pending until the new program has installed
//! its handlers. Other signals that could kill the new program by accident are ignored across the
//! exec.
//!
//! The duration of a launch must not grow with the number of connections. Normally a fork copies
//! every descriptor, and an exec closes most of them. To avoid this, the intermediate process first
//! shares our descriptor table. Then it copies only the low descriptors (`CLOSE_RANGE_UNSHARE`, see
//! close_range(2)). [`super::fd::ReservedFd`] gives the passed descriptors low numbers.

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

/// The program to start, with its arguments, environment and descriptors.
pub(crate) struct Launch<'a> {
    /// The path of the program. The exec resolves symbolic links in it.
    pub(crate) program: &'a CString,
    /// All arguments of the program, including `argv[0]`.
    pub(crate) arguments: &'a [CString],
    /// The complete environment of the program.
    pub(crate) environment: &'a [CString],
    /// The descriptors to pass to the program, where they get the numbers 3, 4, and so on. Of all
    /// other descriptors, only the standard streams stay open.
    pub(crate) passed: &'a [BorrowedFd<'a>],
    /// The index in `passed` of the channel on which the new process reports the outcome of the
    /// launch.
    pub(crate) channel: usize,
    /// The messages with which the new process reports the outcome of the launch.
    pub(crate) words: PreExecMessages,
}

/// The messages that report the outcome of a launch. Each message is one of these prefixes,
/// followed by a decimal number.
pub(crate) struct PreExecMessages {
    /// The start of the message which says that the new process is about to execute the program.
    /// The pid of the new process follows.
    pub(crate) born: &'static [u8],
    /// The start of the message which says that the launch failed before the exec. The errno
    /// follows.
    pub(crate) fork_failed: &'static [u8],
    /// The start of the message which says that the exec failed. The errno follows.
    pub(crate) exec_failed: &'static [u8],
}

/// Forks twice and executes the program. Blocks for the duration of two forks, until the
/// intermediate process has exited. The new process reports the outcome on the channel in `launch`.
///
/// # Errors
/// Fails only when the first fork fails. Later failures are reported on the channel.
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
    // opens and closes nothing before it has its own table.
    let forked = unsafe { fork(Descriptors::Shared) };
    if let Ok(Forked::Child) = forked {
        middle(&mut prepared);
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let Forked::Parent { child } = forked? else { return Err(Errno::ECHILD.into()) };
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            // ECHILD means that the host program ignores SIGCHLD, so the kernel has already reaped
            // the intermediate process.
            Ok(_) | Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a new process shares the descriptor table of its parent or gets a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptors {
    Shared,
    Copied,
}

/// Whether this process is the parent or the child after a fork.
pub(super) enum Forked {
    Parent { child: Pid },
    Child,
}

/// Forks this process with a bare system call.
///
/// # Safety
/// The child may make only async-signal-safe calls. A child that shares our descriptor table must
/// not open or close descriptors before it has stopped sharing the table.
pub(super) unsafe fn fork(descriptors: Descriptors) -> Result<Forked, Errno> {
    let flags = match descriptors {
        Descriptors::Shared => libc::CLONE_FILES | libc::SIGCHLD,
        Descriptors::Copied => libc::SIGCHLD,
    };
    // The order of the other arguments depends on the machine, but does not matter because all of
    // them are zero.
    let flags = libc::c_long::from(flags);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child runs on its own copy of this stack. The kernel writes
    // nothing through null pointers.
    let pid =
        Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) })?;
    match libc::pid_t::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) => Ok(Forked::Parent { child: Pid::from_raw(pid) }),
        Err(_) => Err(Errno::ERANGE),
    }
}

/// Everything that the two child processes need. The parent allocates it before the first fork.
struct Prepared<'a> {
    program: *const libc::c_char,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// The numbers of the passed descriptors. The child updates a number when it moves that
    /// descriptor. The parent does not see the change, because it has its own memory.
    passed: &'a mut [RawFd],
    /// For each target number, the index in `passed` of the descriptor that has that number now
    /// (see [`wanted_at`]).
    wanted_at: &'a [Option<usize>],
    /// The lowest number above those of all passed descriptors.
    above_the_passed: RawFd,
    /// The lowest descriptor number that the new program will not use. All numbers below it may be
    /// in use.
    first_free: RawFd,
    channel: usize,
    words: &'a PreExecMessages,
    /// The signals that are blocked when the program starts.
    blocked: SigSet,
    ignored: Vec<libc::c_int>,
}

pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Each passed descriptor gets a target number: 3, 4, and so on. Returns, for each target number,
/// the index in `passed` of the descriptor that has that number now. The child must move that
/// descriptor before another descriptor takes its number. No descriptor may be passed twice.
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

/// Forks again and exits. The intermediate process runs this function. Async-signal-safe.
fn middle(prepared: &mut Prepared<'_>) -> ! {
    // SAFETY: the child of a fork may fork again. The bare system call runs no pthread_atfork(3)
    // handlers, which could wait for a lock that another thread of the parent holds.
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
/// Most passed descriptors already have their target number or a higher one. This function moves a
/// descriptor to a temporary number only if another descriptor needs its number. So a process can
/// pass nearly as many descriptors as its limit allows it to open.
fn place(prepared: &mut Prepared<'_>) -> Result<(), Errno> {
    for (index, target) in (0..prepared.passed.len()).zip(FIRST_PASSED..) {
        let source = prepared.passed[index];
        if source == target {
            // Only clear the close-on-exec flag, because the descriptor already has its target
            // number. dup2(2) would leave the flag set in this case. SAFETY: fcntl(2) changes the
            // flag of an open descriptor, in the table of this process only.
            Errno::result(unsafe { libc::fcntl(source, libc::F_SETFD, 0) })?;
            continue;
        }
        if let Some(other) = prepared.wanted_at[index].filter(|other| *other > index) {
            lift(prepared, other, target)?;
        }
        // SAFETY: dup2(2) overwrites nothing that is needed, because all descriptors that must
        // still be moved have numbers other than `target`.
        Errno::result(unsafe { libc::dup2(source, target) })?;
    }
    Ok(())
}

/// Moves the passed descriptor at `index` to a number above all descriptors that the program will
/// have. Async-signal-safe.
fn lift(prepared: &mut Prepared<'_>, index: usize, from: RawFd) -> Result<(), Errno> {
    // SAFETY: fcntl(2) duplicates an open descriptor, in the table of this process only.
    let lifted =
        Errno::result(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, prepared.first_free) })?;
    prepared.passed[index] = lifted;
    Ok(())
}

/// Prepares this process and executes the program. The second child process runs this function.
/// Async-signal-safe.
fn exec(prepared: &mut Prepared<'_>) -> ! {
    let placed = place(prepared);
    // Read the channel's number only after `place`, which may have moved the channel to another
    // number.
    let channel = prepared.passed[prepared.channel];
    // SAFETY: with CLOSE_RANGE_CLOEXEC, close_range(2) only sets a flag. The call is a second
    // safeguard: our own descriptors are already close-on-exec, but those of the host program may
    // not be.
    unsafe {
        libc::close_range(prepared.first_free.unsigned_abs(), libc::c_uint::MAX, CLOSE_ON_EXEC)
    };
    // SAFETY: getpid(2) takes no arguments and cannot fail.
    tell(channel, prepared.words.born, unsafe { libc::getpid() });
    // Ignore these signals before any signal is unblocked. Continue after an error, because the
    // kernel may not support a signal that the C library lists.
    for signal in &prepared.ignored {
        let _ = signals::ignore(*signal);
    }
    // Replace the signal mask instead of extending it, so that blocked signals do not accumulate
    // over generations.
    let ready = placed
        .and_then(|()| pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&prepared.blocked), None));
    match ready {
        // Report a failed fork, not a failed exec: the program is not at fault, because the exec
        // was not tried.
        Err(errno) => tell(channel, prepared.words.fork_failed, errno as i32),
        Ok(()) => {
            // SAFETY: the path is null-terminated, and both arrays end in a null pointer. All of
            // them are in memory that the fork copied.
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
    // SAFETY: _exit(2) is async-signal-safe and runs no destructors of the parent.
    unsafe { libc::_exit(127) }
}

/// Sends one packet that consists of the message `words` and a number. Async-signal-safe, because
/// this function uses only memory on the stack.
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
    // SAFETY: send(2) reads `end + 1` bytes, and all of them are within the array. The result is
    // ignored, because nothing can be done if the other end is closed.
    unsafe {
        libc::send(
            channel,
            packet.as_ptr().cast(),
            end + 1,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
}
