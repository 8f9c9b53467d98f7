//! Starts a program as nobody's child, with chosen descriptors from 3 up and nothing else open.
//!
//! Forked twice, so that the process in the middle ends at once and whoever watches over orphans
//! (systemd, a subreaper, init) becomes the parent: it sees the program die and reaps it. What goes
//! wrong after the first fork is told on a channel that the program inherits anyway, so nothing
//! here waits for an exec that may hang.
//!
//! Between fork and exec only async-signal-safe calls are allowed (signal-safety(7)): everything
//! that needs memory is made ready before. A signal that arrives there must not run a handler of
//! ours, which would write into a pipe that the parent reads; so all signals are blocked meanwhile.
//! The signals that ask for a handoff stay blocked across the exec: one that comes before the new
//! program has its handler waits for it instead of killing it. Every other signal that would kill
//! it by accident is ignored across the exec.
//!
//! What it costs must not grow with the number of connections. A fork copies every descriptor, and
//! an exec closes every one; so the process in the middle shares ours at first and then takes a
//! table of its own that holds only the low ones (close_range(2), `CLOSE_RANGE_UNSHARE`). What is
//! passed is low, if [`super::fd::LowSlot`] saw to it.

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

/// What is to be started, and what it is to have.
pub(crate) struct Launch<'a> {
    /// Its path; links in it are followed now.
    pub(crate) program: &'a CString,
    /// All its arguments, `argv[0]` included.
    pub(crate) arguments: &'a [CString],
    /// Its whole environment.
    pub(crate) environment: &'a [CString],
    /// What becomes descriptors 3, 4, ... of it. No others stay open but the standard streams.
    pub(crate) passed: &'a [BorrowedFd<'a>],
    /// Which of `passed` is the channel on which to tell how it went.
    pub(crate) channel: usize,
    /// The words in which to tell it.
    pub(crate) words: Words,
}

/// Beginnings of packets; a number in decimal completes each.
pub(crate) struct Words {
    /// The program is about to be executed, under this process id.
    pub(crate) born: &'static [u8],
    /// The second fork failed with this errno.
    pub(crate) fork_failed: &'static [u8],
    /// The exec failed with this errno.
    pub(crate) exec_failed: &'static [u8],
}

/// Forks twice and executes. Returns when the process in the middle has ended; what came of the
/// program, the channel tells. Blocks for as long as two forks take.
///
/// # Errors
/// For the first fork alone.
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
    // SAFETY: both children call only what is async-signal-safe until they exec or _exit: see
    // `middle` and `exec`. The one in the middle opens and closes nothing before it has descriptors
    // of its own, so that it may share ours.
    let forked = unsafe { fork(Descriptors::Shared) };
    if let Ok(Forked::Child) = forked {
        middle(&mut prepared);
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let Forked::Parent { child } = forked? else { return Err(Errno::ECHILD.into()) };
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            // ECHILD: the host program ignores SIGCHLD, and the kernel has reaped it for us.
            Ok(_) | Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What a new process does with our descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptors {
    Shared,
    Copied,
}

/// Which of two we are.
enum Forked {
    Parent { child: Pid },
    Child,
}

/// fork(2) as a bare system call.
///
/// # Safety
/// The child may call only what is async-signal-safe. One that shares descriptors may not open or
/// close any before it has stopped sharing them.
unsafe fn fork(descriptors: Descriptors) -> Result<Forked, Errno> {
    let flags = match descriptors {
        Descriptors::Shared => libc::CLONE_FILES | libc::SIGCHLD,
        Descriptors::Copied => libc::SIGCHLD,
    };
    // The other arguments come in an order that differs between machines, and are all zero.
    let flags = libc::c_long::from(flags);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child runs on a copy of this stack; nothing is written for zero
    // pointers.
    let pid =
        Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) })?;
    match libc::pid_t::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) => Ok(Forked::Parent { child: Pid::from_raw(pid) }),
        Err(_) => Err(Errno::ERANGE),
    }
}

/// All that the children need, in memory that the parent allocated.
struct Prepared<'a> {
    program: *const libc::c_char,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// Overwritten with where they have been moved to, in the memory of the child alone.
    passed: &'a mut [RawFd],
    /// For each target, which of `passed` lies at that number: see [`wanted_at`].
    wanted_at: &'a [Option<usize>],
    /// The first descriptor above all that are passed.
    above_the_passed: RawFd,
    /// The first descriptor above all that the program will have.
    first_free: RawFd,
    channel: usize,
    words: &'a Words,
    /// The signals that the program is born with blocked, and those that it is born with ignored.
    blocked: SigSet,
    ignored: Vec<libc::c_int>,
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// For each number that something is to be passed at, which of `passed` lies there now. What is put
/// there must not overwrite it before it is in its own place. No descriptor is passed twice.
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

/// The process in the middle: forks again and ends. Async-signal-safe.
fn middle(prepared: &mut Prepared<'_>) -> ! {
    // SAFETY: a child of a fork may fork; the system call runs no handler of pthread_atfork(3),
    // whose locks another thread of the parent may have held.
    let forked = own_descriptors(prepared.above_the_passed)
        .and_then(|()| unsafe { fork(Descriptors::Copied) });
    match forked {
        Ok(Forked::Child) => exec(prepared),
        Ok(Forked::Parent { .. }) => {}
        Err(errno) => {
            tell(prepared.passed[prepared.channel], prepared.words.fork_failed, errno as i32)
        }
    }
    // SAFETY: _exit(2) is async-signal-safe and runs no destructor of the parent's.
    unsafe { libc::_exit(0) }
}

/// Stops sharing the parent's descriptors, and keeps only those below `end`. Async-signal-safe.
fn own_descriptors(end: RawFd) -> Result<(), Errno> {
    // SAFETY: with CLOSE_RANGE_UNSHARE the table is copied before anything is closed: the parent
    // keeps all of its own.
    let done = unsafe { libc::close_range(end.unsigned_abs(), libc::c_uint::MAX, CLOSE_IN_A_COPY) };
    Errno::result(done).map(drop)
}

/// Puts what is passed in its place, from 3 up. Async-signal-safe.
///
/// Most lie in their place already, or above it. Only one that lies where another goes is lifted
/// out of the way first, so that a process may pass on nearly as many descriptors as it may have.
fn place(prepared: &mut Prepared<'_>) -> Result<(), Errno> {
    for (index, target) in (0..prepared.passed.len()).zip(FIRST_PASSED..) {
        let source = prepared.passed[index];
        if source == target {
            // dup2(x, x) would keep close-on-exec. SAFETY: fcntl(2) sets a flag of a descriptor
            // that is open, in the table of this process alone.
            Errno::result(unsafe { libc::fcntl(source, libc::F_SETFD, 0) })?;
            continue;
        }
        if let Some(other) = prepared.wanted_at[index].filter(|other| *other > index) {
            lift(prepared, other, target)?;
        }
        // SAFETY: dup2(2) onto a number at which nothing lies that is still to be placed.
        Errno::result(unsafe { libc::dup2(source, target) })?;
    }
    Ok(())
}

/// Moves the one at `index` above all that the program will have. Async-signal-safe.
fn lift(prepared: &mut Prepared<'_>, index: usize, from: RawFd) -> Result<(), Errno> {
    // SAFETY: fcntl(2) makes a copy of a descriptor that is open, for this process alone.
    let lifted =
        Errno::result(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, prepared.first_free) })?;
    prepared.passed[index] = lifted;
    Ok(())
}

/// The process that becomes the program. Async-signal-safe.
fn exec(prepared: &mut Prepared<'_>) -> ! {
    let placed = place(prepared);
    // Where it was lifted to or, if it was not, where it is.
    let channel = prepared.passed[prepared.channel];
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag. It is a second guard: every
    // descriptor of ours is close-on-exec already, but not every one of the host program's need be.
    unsafe {
        libc::close_range(prepared.first_free.unsigned_abs(), libc::c_uint::MAX, CLOSE_ON_EXEC)
    };
    // SAFETY: getpid(2) cannot fail.
    tell(channel, prepared.words.born, unsafe { libc::getpid() });
    // Before they are let in. One that the C library knows and the kernel does not is no reason not
    // to start.
    for signal in &prepared.ignored {
        let _ = signals::ignore(*signal);
    }
    // Not what the parent had blocked: nothing grows from one generation to the next.
    let ready = placed
        .and_then(|()| pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&prepared.blocked), None));
    match ready {
        // The program was not tried, so the failure is not the program's.
        Err(errno) => tell(channel, prepared.words.fork_failed, errno as i32),
        Ok(()) => {
            // SAFETY: the path and both arrays end in zero, and live in memory that the fork has
            // copied.
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

/// Sends `words` and a number as one packet. Async-signal-safe: no memory but the stack's.
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
    // SAFETY: send(2) reads as many bytes as the array holds. Whether anybody is left to hear it is
    // no concern of ours.
    unsafe {
        libc::send(
            channel,
            packet.as_ptr().cast(),
            end + 1,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
}
