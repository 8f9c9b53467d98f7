//! This module starts a program as a child process in its own process group.
//!
//! The program starts as if a shell had started it. No signal is ignored or blocked, and only the
//! standard streams and the given descriptors are open. When this process dies, the kernel sends
//! the program a signal (`PR_SET_PDEATHSIG`, see prctl(2)), because nothing else would stop it. The
//! kernel forgets the signal when the program changes its user or group, or gains capabilities.
//!
//! Only async-signal-safe calls are allowed between fork and exec (see signal-safety(7)). So all
//! memory is allocated before the fork. The module `spawn` starts successors, which are not
//! children of this process.

#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, pipe2};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fd::{CLOSE_ON_EXEC, FIRST_PASSED, watch};
use super::process::PidFd;
use super::signals;
use super::spawn::{Descriptors, Forked, fork, pointers};

/// The variable that holds the program's own pid (see sd_listen_fds(3)). Only the child knows its
/// pid, so the child fills in the value.
const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// A program to start, with its arguments, environment and descriptors.
pub(crate) struct ChildProgram<'a> {
    /// The absolute path of the program.
    pub(crate) program: &'a CString,
    /// All arguments of the program, including `argv[0]`.
    pub(crate) arguments: &'a [CString],
    /// The complete environment, without `LISTEN_PID`.
    pub(crate) environment: &'a [CString],
    /// Whether to add `LISTEN_PID`, with the pid of the program, to the environment.
    pub(crate) listen_pid: bool,
    /// The descriptors to pass to the program, each with the number that it gets in the program.
    pub(crate) descriptors: &'a [(BorrowedFd<'a>, RawFd)],
    pub(crate) directory: Option<&'a CString>,
    pub(crate) umask: Option<u32>,
    /// The signal that the kernel sends to the program when this process dies.
    pub(crate) on_our_death: Signal,
}

/// A child process and its process group. Dropping this value neither stops nor reaps the child.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pidfd: AsyncFd<PidFd>,
}

impl Child {
    /// Returns the pid of the child, which is also the id of its process group.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Sends a signal only to the child itself. Does nothing if the child has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = nix::sys::signal::kill(self.pid, signal);
    }

    /// Sends a signal to every process of the child's group, even if the child itself has ended.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _ = nix::sys::signal::killpg(self.pid, signal);
    }

    /// Returns whether any process of the child's group still exists.
    pub(crate) fn has_group(&self) -> bool {
        nix::sys::signal::killpg(self.pid, None).is_ok()
    }

    /// Waits until the child has ended, then reaps it. Cancel safe.
    ///
    /// # Errors
    /// Fails when the tokio runtime is shutting down, or when other code has reaped the child.
    pub(crate) async fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            match waitid(
                Id::PIDFd(self.pidfd.get_ref().as_fd()),
                WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
            ) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Ok(ExitStatus::from_raw(signal as i32));
                }
                Ok(_) | Err(Errno::EINTR) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Starts a program, and returns once the program runs. Must be called within a tokio runtime and
/// on the main thread, because the kernel signals the program when the thread that started it ends.
///
/// # Errors
/// Returns the error if the fork, the preparation in the child, or execve(2) fails.
pub(crate) fn start(child: &ChildProgram<'_>) -> io::Result<Child> {
    signals::keep_exit_statuses()?;
    // Duplicate the descriptors to numbers above all numbers that they get in the program.
    // Otherwise dup2(2) in the child could overwrite a descriptor that is still to be moved.
    let above = child.descriptors.iter().map(|(_, target)| target + 1).max().unwrap_or(0);
    let above = above.max(FIRST_PASSED);
    let lift = |descriptor: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(descriptor, above);
    let lifted =
        child.descriptors.iter().map(|(descriptor, target)| Ok((lift(*descriptor)?, *target)));
    let lifted: Vec<(OwnedFd, RawFd)> = lifted.collect::<io::Result<_>>()?;
    let (failures, low) = pipe2(OFlag::O_CLOEXEC)?;
    let failed = lift(low.as_fd())?;
    // Close this copy of the write end, because end of file on the pipe must mean that the exec has
    // succeeded.
    drop(low);
    let mut pid_variable = child.listen_pid.then(|| [LISTEN_PID, &[0; 12]].concat());
    let mut environment = pointers(child.environment);
    if let Some(variable) = &mut pid_variable {
        environment.insert(0, variable.as_mut_ptr().cast_const().cast());
    }
    let prepared = PreparedChild {
        program: child.program.as_ptr(),
        arguments: pointers(child.arguments),
        environment,
        pid_variable: pid_variable.as_mut().map_or(ptr::null_mut(), |text| text.as_mut_ptr()),
        descriptors: lifted.iter().map(|(from, to)| (from.as_raw_fd(), *to)).collect(),
        directory: child.directory.map_or(ptr::null(), |directory| directory.as_ptr()),
        umask: child.umask,
        on_our_death: child.on_our_death,
        parent: nix::unistd::getpid().as_raw(),
        failed: failed.as_raw_fd(),
    };
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: the child makes only async-signal-safe calls until it execs or exits (see `exec`),
    // and has its own descriptor table.
    let forked = unsafe { fork(Descriptors::Copied) };
    if let Ok(Forked::Child) = forked {
        exec(&prepared);
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let Forked::Parent { child: pid } = forked? else { return Err(Errno::ECHILD.into()) };
    drop(failed);
    let watched = executed(File::from(failures))
        .and_then(|()| watch(PidFd::open(pid.as_raw().unsigned_abs())?, Interest::READABLE));
    match watched {
        Ok(pidfd) => Ok(Child { pid, pidfd }),
        Err(error) => {
            kill(pid);
            Err(error)
        }
    }
}

/// Waits until the child has executed its program.
///
/// # Errors
/// Returns the error of the child if it could not execute its program.
fn executed(mut failures: File) -> io::Result<()> {
    let mut errno = Vec::new();
    failures.read_to_end(&mut errno)?;
    let errno = errno.try_into().ok().map(i32::from_ne_bytes);
    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// Kills and reaps a child that this process cannot watch, because it would run unsupervised.
fn kill(pid: Pid) {
    // Signal the child and its group, because the child may not have created its group yet. Ignore
    // errors: they mean that the child has ended.
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
    while nix::sys::wait::waitpid(pid, None) == Err(Errno::EINTR) {}
}

/// The data that the child needs before its exec. The parent allocates the data before the fork.
struct PreparedChild {
    program: *const libc::c_char,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// The variable `LISTEN_PID=` with room for a pid, or null if the program does not get this
    /// variable.
    pid_variable: *mut u8,
    /// The descriptors to pass: the current number of each, and its number in the program. All
    /// current numbers are above all numbers in the program.
    descriptors: Vec<(RawFd, RawFd)>,
    directory: *const libc::c_char,
    umask: Option<u32>,
    on_our_death: Signal,
    parent: libc::pid_t,
    /// The write end of the pipe on which the child reports an error. A successful exec closes it.
    failed: RawFd,
}

/// Prepares this process and executes the program. The child runs this function.
/// Async-signal-safe.
fn exec(prepared: &PreparedChild) -> ! {
    if prepare(prepared).is_ok() {
        // SAFETY: the path is null-terminated, and both arrays end in a null pointer. All of them
        // are in memory that the fork copied.
        unsafe {
            libc::execve(
                prepared.program,
                prepared.arguments.as_ptr(),
                prepared.environment.as_ptr(),
            )
        };
    }
    let errno = Errno::last_raw().to_ne_bytes();
    // SAFETY: write(2) reads four bytes of an array on the stack. The result is ignored, because
    // nothing can be done if the parent is gone.
    unsafe { libc::write(prepared.failed, errno.as_ptr().cast(), errno.len()) };
    // SAFETY: _exit(2) is async-signal-safe and runs no destructors of the parent.
    unsafe { libc::_exit(127) }
}

/// Sets up the process group, the signals, the directory, the umask and the descriptors for the
/// program. Async-signal-safe.
fn prepare(prepared: &PreparedChild) -> Result<(), Errno> {
    // SAFETY: setpgid(2) makes this process the leader of a new group.
    Errno::result(unsafe { libc::setpgid(0, 0) })?;
    for signal in 1..=libc::SIGRTMAX() {
        // Ignore errors, because SIGKILL and SIGSTOP cannot be changed.
        let _ = signals::reset(signal);
    }
    // SAFETY: this option of prctl(2) takes a signal and changes this process only.
    Errno::result(unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, prepared.on_our_death as libc::c_ulong)
    })?;
    // SAFETY: getppid(2) takes no arguments and cannot fail.
    if unsafe { libc::getppid() } != prepared.parent {
        // The parent died before PR_SET_PDEATHSIG took effect, so the kernel will not send the
        // signal.
        Errno::set_raw(libc::ESRCH);
        return Err(Errno::ESRCH);
    }
    if !prepared.directory.is_null() {
        // SAFETY: the path is null-terminated.
        Errno::result(unsafe { libc::chdir(prepared.directory) })?;
    }
    if let Some(umask) = prepared.umask {
        // SAFETY: umask(2) cannot fail, and changes this process only.
        unsafe { libc::umask(umask) };
    }
    // SAFETY: with CLOSE_RANGE_CLOEXEC, close_range(2) only sets a flag.
    Errno::result(unsafe {
        libc::close_range(FIRST_PASSED.unsigned_abs(), libc::c_uint::MAX, CLOSE_ON_EXEC)
    })?;
    for (from, to) in &prepared.descriptors {
        // SAFETY: no descriptor that is still needed has the number `to`, because `start` has moved
        // them all to higher numbers.
        Errno::result(unsafe { libc::dup2(*from, *to) })?;
    }
    if !prepared.pid_variable.is_null() {
        write_pid(prepared.pid_variable);
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Appends the pid of this process and a zero byte to `LISTEN_PID=`. Async-signal-safe.
fn write_pid(variable: *mut u8) {
    // SAFETY: getpid(2) takes no arguments and cannot fail.
    let pid = unsafe { libc::getpid() }.unsigned_abs();
    let mut power = 1_000_000_000_u32;
    while power > pid.max(1) {
        power /= 10;
    }
    let mut place = LISTEN_PID.len();
    while power > 0 {
        let digit = b'0' + u8::try_from(pid / power % 10).unwrap_or(0);
        // SAFETY: a pid has at most ten digits, and the variable has room for twelve bytes.
        let place_of_digit = unsafe { variable.add(place) };
        // SAFETY: the place is within the variable, which nothing else uses.
        unsafe { place_of_digit.write(digit) };
        (place, power) = (place + 1, power / 10);
    }
}
