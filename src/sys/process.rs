//! Holds a process so that no signal can reach a stranger: pidfd_open(2), pidfd_send_signal(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpgrp};

use super::fd::Steady;
use crate::error::Error;

/// `PIDFS_MAGIC`, of file systems whose inodes are processes (since Linux 6.9).
const PIDFS_MAGIC: libc::c_long = 0x5049_4446;

/// A process, by a descriptor that stays its own even when its number is used again.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has the number `pid` now. Whether that is the one that was meant, the caller must find out.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers and makes a descriptor, which is close-on-exec from the start.
        let raw = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let raw = i32::try_from(raw).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made it, for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Sends `signal` to it.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) takes a descriptor that we own, a number, and no information.
        let done =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as libc::c_int, none, 0) };
        Errno::result(done).map(drop).map_err(Into::into)
    }

    /// Whether the process has ended, pidfd_open(2): then its descriptor is readable.
    pub(crate) fn has_ended(&self) -> bool {
        let mut poll = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// The number by which `LISTEN_PIDFDID` names a process, where this kernel has such numbers.
    pub(crate) fn inode(&self) -> Option<u64> {
        let file_system = nix::sys::statfs::fstatfs(self.as_fd()).ok()?.filesystem_type();
        if file_system.0 != PIDFS_MAGIC {
            return None;
        }
        nix::sys::stat::fstat(self.as_fd()).ok().map(|status| status.st_ino)
    }
}

impl From<OwnedFd> for PidFd {
    /// A descriptor that the kernel has made for a process.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

// SAFETY: it owns one descriptor for its whole life.
unsafe impl Steady for PidFd {}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Checks that this process has one thread.
///
/// # Errors
/// [`Error::ThreadsRunning`], which names all threads.
pub(crate) fn require_one_thread() -> Result<(), Error> {
    let names = thread_names().map_err(Error::system("list the threads in /proc"))?;
    if names.len() == 1 {
        return Ok(());
    }
    // A thread of a library has often no name of its own, so the library is named as well.
    let preloaded = std::env::var_os("LD_PRELOAD").filter(|libraries| !libraries.is_empty());
    Err(Error::ThreadsRunning { threads: names.len(), names: names.join(", "), preloaded })
}

/// The names of all threads of this process.
fn thread_names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        // A thread that ends meanwhile is passed over.
        if let Ok(name) = std::fs::read(thread?.path().join("comm")) {
            names.push(String::from_utf8_lossy(&name).trim_end().to_owned());
        }
    }
    Ok(names)
}

/// The user that this process acts as.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether a process is in the process group of this one, as whatever it has started is unless that asked to leave.
pub(crate) fn is_in_our_group(pid: u32) -> bool {
    let group = i32::try_from(pid).ok().and_then(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
    group == Some(getpgrp())
}
