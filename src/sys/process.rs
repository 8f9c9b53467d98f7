//! This module identifies processes by pidfds instead of pids. A pidfd is a descriptor that refers
//! to a process. A signal through a pidfd never reaches an unrelated process that has reused the
//! pid (see pidfd_open(2) and pidfd_send_signal(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpgrp};

use super::fd::StableFd;
use crate::error::Error;

/// The type of the file system that contains pidfds (`PIDFS_MAGIC`). The inode of a pidfd in it
/// identifies a process. This file system exists since Linux 6.9.
const PIDFS_MAGIC: libc::c_long = 0x5049_4446;

/// The first version of `struct pidfd_info` from <linux/pidfd.h>, which describes a process.
#[derive(Debug)]
#[repr(C)]
struct PidFdInfo {
    mask: u64,
    /// The ids of the control group, the process, its parent, its user and its groups, in this
    /// order.
    ids: [u32; 13],
    exit_code: i32,
}

/// The flag that requests the exit status (`PIDFD_INFO_EXIT`). If the exit status is available, the
/// kernel sets this flag in its answer.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The ioctl that returns information about the process of a pidfd: `_IOWR(PIDFS_IOCTL_MAGIC, 11,
/// struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl =
    nix::request_code_readwrite!(0xFF, 11, size_of::<PidFdInfo>()) as libc::Ioctl;

/// A descriptor that refers to a process, even if the pid of that process is reused.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens a pidfd of the process that has the given pid now. The caller must check that the
    /// pidfd refers to the intended process, because the pid may have been reused.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers. It returns a descriptor that is always
        // close-on-exec.
        let raw = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let raw = i32::try_from(raw).map_err(io::Error::other)?;
        // SAFETY: the kernel has just created this descriptor for this process.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Sends `signal` to the process of this pidfd.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) gets a descriptor that we own, a signal number, and a null
        // pointer instead of signal information.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                none,
                0,
            )
        };
        Errno::result(done).map(drop).map_err(Into::into)
    }

    /// Returns whether the process has exited. The pidfd becomes readable when the process exits
    /// (see pidfd_open(2)).
    pub(crate) fn has_ended(&self) -> bool {
        let mut poll = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Returns the exit status of the process. Returns `None` if the process has not exited or the
    /// kernel no longer has the status. `pid` must be the pid of the process.
    ///
    /// Until the parent reaps the process, the status is in /proc. After that, the pidfd provides
    /// the status (since Linux 6.15).
    pub(crate) fn exit_status(&self, pid: u32) -> Option<ExitStatus> {
        let status = self.status_of_zombie(pid).or_else(|| self.status_of_reaped())?;
        Some(ExitStatus::from_raw(status))
    }

    /// Returns the wait status of a process that has exited but has not been reaped. The status
    /// comes from /proc, which shows 0 to a reader without permission.
    fn status_of_zombie(&self, pid: u32) -> Option<libc::c_int> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Skip the program name, which may contain spaces and parentheses. The process state
        // follows the name, and the wait status is the last field.
        let (_, fields) = text.rsplit_once(") ")?;
        let status = fields.trim_end().rsplit(' ').next()?.parse().ok()?;
        // Check that the process has not been reaped. Then its pid cannot have been reused, so the
        // text from /proc describes the right process.
        (fields.starts_with('Z') && status != 0 && self.is_not_reaped()).then_some(status)
    }

    fn is_not_reaped(&self) -> bool {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) with signal 0 sends nothing. It only checks whether the
        // process exists.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), 0, none, 0) == 0 }
    }

    /// Returns the wait status of a process that has been reaped. The status comes from the pidfd.
    fn status_of_reaped(&self) -> Option<libc::c_int> {
        let mut info = PidFdInfo { mask: PIDFD_INFO_EXIT, ids: [0; 13], exit_code: 0 };
        // SAFETY: PIDFD_GET_INFO contains the size of the struct, and the kernel writes at most
        // that many bytes.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
    }

    /// Returns the inode of the pidfd. The environment variable `LISTEN_PIDFDID` identifies a
    /// process by this number. Returns `None` if the kernel is too old for such inodes.
    pub(crate) fn inode(&self) -> Option<u64> {
        let file_system = nix::sys::statfs::fstatfs(self.as_fd()).ok()?.filesystem_type();
        if file_system.0 != PIDFS_MAGIC {
            return None;
        }
        nix::sys::stat::fstat(self.as_fd()).ok().map(|status| status.st_ino)
    }
}

impl From<OwnedFd> for PidFd {
    /// Wraps a pidfd descriptor that the kernel has created.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

// SAFETY: a `PidFd` owns the same descriptor for its whole life.
unsafe impl StableFd for PidFd {}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Checks that this process has only a single thread.
///
/// # Errors
/// [`Error::ThreadsRunning`], which lists the names of all threads.
pub(crate) fn require_one_thread() -> Result<(), Error> {
    let names = thread_names().map_err(Error::system("list the threads in /proc"))?;
    if names.len() == 1 {
        return Ok(());
    }
    // Include the preloaded libraries in the error, because the threads that they start often have
    // no distinct names.
    let preloaded = std::env::var_os("LD_PRELOAD").filter(|libraries| !libraries.is_empty());
    Err(Error::ThreadsRunning { threads: names.len(), names: names.join(", "), preloaded })
}

/// Returns the names of all threads of this process.
fn thread_names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        match std::fs::read(thread?.path().join("comm")) {
            Ok(name) => names.push(String::from_utf8_lossy(&name).trim_end().to_owned()),
            // Skip this thread, because it has exited since the directory of threads was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Returns the effective user id of this process.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Returns whether a process is in the same process group as this process. Generations normally
/// share one group, because a new process starts in the group of the process that forks it.
pub(crate) fn is_in_our_group(pid: u32) -> bool {
    let group = i32::try_from(pid).ok().and_then(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
    group == Some(getpgrp())
}

/// Returns whether the process that has had the given pid has ended. Returns `false` if this is
/// unknown, or if another process has the pid now.
#[cfg(feature = "program")]
pub(crate) fn has_ended(pid: u32) -> bool {
    match PidFd::open(pid) {
        Ok(process) => process.has_ended(),
        Err(error) => error.raw_os_error() == Some(Errno::ESRCH as i32),
    }
}

/// Returns whether a process is in the process group that `leader` leads.
#[cfg(feature = "program")]
pub(crate) fn is_in_group(pid: u32, leader: u32) -> bool {
    let group = i32::try_from(pid).ok().and_then(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
    group.is_some_and(|group| group.as_raw().unsigned_abs() == leader)
}

/// Returns the process group of a process. Returns `None` for a group that the process does not
/// lead and that is in the session of this process, because the group may contain unrelated
/// processes.
#[cfg(feature = "program")]
pub(crate) fn own_group(pid: u32) -> Option<u32> {
    let process = Pid::from_raw(i32::try_from(pid).ok()?);
    let group = getpgid(Some(process)).ok()?;
    let session = |process| nix::unistd::getsid(process).ok();
    let is_elsewhere = || session(Some(process)) != session(None);
    (group == process || is_elsewhere()).then(|| group.as_raw().unsigned_abs())
}

/// Returns whether a process was started with the environment variable `name` set to `value`.
/// Returns `false` if the environment cannot be read, or if the process has overwritten it.
#[cfg(feature = "program")]
pub(crate) fn has_variable(pid: u32, name: &str, value: &std::ffi::OsStr) -> bool {
    let expected = [name.as_bytes(), b"=", value.as_encoded_bytes()].concat();
    let environment = std::fs::read(format!("/proc/{pid}/environ"));
    environment.is_ok_and(|all| all.split(|byte| *byte == 0).any(|variable| variable == expected))
}

/// Sends a signal to every process of the group that `leader` leads, even if the leader has ended.
#[cfg(feature = "program")]
pub(crate) fn signal_group(leader: u32, signal: Signal) {
    if let Ok(leader) = i32::try_from(leader) {
        let _ = nix::sys::signal::killpg(Pid::from_raw(leader), signal);
    }
}

/// Returns whether any process of the group that `leader` leads still exists.
#[cfg(feature = "program")]
pub(crate) fn has_group(leader: u32) -> bool {
    let leader = i32::try_from(leader).map(Pid::from_raw);
    leader.is_ok_and(|leader| nix::sys::signal::killpg(leader, None).is_ok())
}

/// Returns whether a process is `ancestor` itself or one of its descendants.
#[cfg(feature = "program")]
pub(crate) fn is_below(pid: u32, ancestor: u32) -> bool {
    let parent = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = text.rsplit_once(") ")?;
        fields.split(' ').nth(1)?.parse::<u32>().ok()
    };
    // Limit the depth, so that the search ends even if pids are reused meanwhile and form a cycle.
    std::iter::successors(Some(pid), |pid| parent(*pid)).take(64).any(|pid| pid == ancestor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_status_is_known_before_and_after_the_reaping() {
        for (script, expected) in
            [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9 (SIGKILL)")]
        {
            let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
            let process = PidFd::open(child.id()).unwrap();
            let mut poll = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut poll, PollTimeout::from(60_000_u16)).unwrap(), 1);
            assert_eq!(process.exit_status(child.id()).unwrap().to_string(), expected);
            child.wait().unwrap();
            // Accept a missing status, because kernels before 6.15 forget the exit status when the
            // process is reaped.
            let after = process.exit_status(child.id()).map(|status| status.to_string());
            assert!(after.is_none_or(|status| status == expected));
        }
    }
}
