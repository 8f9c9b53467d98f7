//! Holds a process so that no signal can reach a stranger: pidfd_open(2), pidfd_send_signal(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpgrp};

use super::fd::Steady;
use crate::error::Error;

/// `PIDFS_MAGIC`, of file systems whose inodes are processes (since Linux 6.9).
const PIDFS_MAGIC: libc::c_long = 0x5049_4446;

/// `struct pidfd_info` of <linux/pidfd.h> in its first version.
#[derive(Debug)]
#[repr(C)]
struct PidFdInfo {
    mask: u64,
    /// A control group and the numbers of the process, its parent, user and groups.
    ids: [u32; 13],
    exit_code: i32,
}

/// Asks for the exit status, and is set in the answer that has one.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl =
    nix::request_code_readwrite!(0xFF, 11, size_of::<PidFdInfo>()) as libc::Ioctl;

/// A process, by a descriptor that stays its own even when its number is used again.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has the number `pid` now. Whether that is the one that was meant, the
    /// caller must find out.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers and makes a descriptor, which is close-on-exec
        // from the start.
        let raw = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let raw = i32::try_from(raw).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made it, for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Sends `signal` to it.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) takes a descriptor that we own, a number, and no
        // information.
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

    /// Whether the process has ended, pidfd_open(2): then its descriptor is readable.
    pub(crate) fn has_ended(&self) -> bool {
        let mut poll = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// How the process with the number `pid` has ended, if it has and the kernel still tells. Until
    /// its parent has reaped it /proc tells; after that its descriptor does, since Linux 6.15.
    pub(crate) fn exit_status(&self, pid: u32) -> Option<ExitStatus> {
        let status = self.status_of_zombie(pid).or_else(|| self.status_of_reaped())?;
        Some(ExitStatus::from_raw(status))
    }

    /// The wait status in /proc. To a process that may not look it is shown as 0.
    fn status_of_zombie(&self, pid: u32) -> Option<libc::c_int> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program may hold spaces and parentheses. The state follows it, and the
        // status is the last field.
        let (_, fields) = text.rsplit_once(") ")?;
        let status = fields.trim_end().rsplit(' ').next()?.parse().ok()?;
        // The number is its own until it is reaped, so it was when this was read.
        (fields.starts_with('Z') && status != 0 && self.is_not_reaped()).then_some(status)
    }

    fn is_not_reaped(&self) -> bool {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal(2) with signal 0 sends nothing, and says whether the process is
        // there.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), 0, none, 0) == 0 }
    }

    /// The wait status by the descriptor.
    fn status_of_reaped(&self) -> Option<libc::c_int> {
        let mut info = PidFdInfo { mask: PIDFD_INFO_EXIT, ids: [0; 13], exit_code: 0 };
        // SAFETY: ioctl(2) with PIDFD_GET_INFO writes at most as many bytes as its number says,
        // which the struct has.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
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
        match std::fs::read(thread?.path().join("comm")) {
            Ok(name) => names.push(String::from_utf8_lossy(&name).trim_end().to_owned()),
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// The user that this process acts as.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether a process is in the process group of this one, as whatever it has started is unless that
/// asked to leave.
pub(crate) fn is_in_our_group(pid: u32) -> bool {
    let group = i32::try_from(pid).ok().and_then(|pid| getpgid(Some(Pid::from_raw(pid))).ok());
    group == Some(getpgrp())
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
            // A kernel before 6.15 has forgotten it.
            let after = process.exit_status(child.id()).map(|status| status.to_string());
            assert!(after.is_none_or(|status| status == expected));
        }
    }
}
