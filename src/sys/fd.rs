//! This module takes ownership of file descriptors, keeps descriptors from leaking to child
//! processes, and reserves low descriptor numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::dup3;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket::retry;

/// The flag of close_range(2) that sets close-on-exec on the descriptors instead of closing them
/// (`CLOSE_RANGE_CLOEXEC`).
pub(super) const CLOSE_ON_EXEC: libc::c_int = 1 << 2;

/// The flag of close_range(2) that first copies a shared descriptor table, so that other processes
/// keep their descriptors (`CLOSE_RANGE_UNSHARE`).
pub(super) const CLOSE_IN_A_COPY: libc::c_int = 1 << 1;

/// The number of the first passed descriptor (see sd_listen_fds(3)).
pub(crate) const FIRST_PASSED: RawFd = 3;

/// Marks every descriptor from 3 up close-on-exec, including those that other code has opened. A
/// successor then receives only the descriptors that are passed on purpose.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC, close_range(2) closes nothing. It only marks the
    // descriptors.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, CLOSE_ON_EXEC) };
    Errno::result(done).map(drop).map_err(Into::into)
}

/// Returns whether the descriptor with this number is open.
pub(crate) fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: fcntl(2) with F_GETFD only reads the descriptor table, and returns an error for a
    // closed descriptor.
    unsafe { libc::fcntl(descriptor, libc::F_GETFD) >= 0 }
}

/// The descriptors from 3 up that a parent or a predecessor passed to this process (see
/// sd_listen_fds(3)).
#[derive(Debug)]
pub(crate) struct PassedDescriptors {
    /// The numbers of the passed descriptors, by index. `None` if [`PassedDescriptors::take`] has
    /// already returned the descriptor.
    left: Vec<Option<RawFd>>,
}

impl PassedDescriptors {
    /// Creates the list of passed descriptors. The caller must have checked that `count`
    /// descriptors are open and are meant for this process.
    pub(super) fn new(count: usize) -> Self {
        Self { left: (FIRST_PASSED..).take(count).map(Some).collect() }
    }

    /// Returns how many descriptors were passed, including those that [`PassedDescriptors::take`]
    /// has already returned.
    pub(crate) fn len(&self) -> usize {
        self.left.len()
    }

    /// Takes ownership of the passed descriptor at `index`. Returns `None` if the descriptor has
    /// already been taken or if the index is out of range.
    pub(crate) fn take(&mut self, index: usize) -> Option<OwnedFd> {
        let raw = self.left.get_mut(index)?.take()?;
        // SAFETY: the descriptor is open, each descriptor is returned only once, and nothing else
        // in this process owns it.
        Some(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}

/// Takes ownership of the descriptor with the number `raw`. The predecessor has passed this
/// descriptor and named its number in a message.
///
/// # Errors
/// `EBADF` when the descriptor is not open, and `EINVAL` when it is one of the standard streams.
pub(crate) fn take_named(raw: RawFd) -> io::Result<OwnedFd> {
    if raw < FIRST_PASSED {
        return Err(Errno::EINVAL.into());
    }
    if !is_open(raw) {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: the descriptor is open and nothing else owns it. The predecessor created it for this
    // process and names each descriptor only once.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Returns the kind of file that a descriptor refers to, for use in error messages.
pub(crate) fn describe(descriptor: impl AsFd) -> &'static str {
    let Ok(status) = fstat(descriptor) else { return "unreadable" };
    let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
    match kind {
        SFlag::S_IFREG => "a file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFBLK => "a block device",
        SFlag::S_IFSOCK => "a socket",
        _ => "an anonymous kernel object",
    }
}

/// Returns the path in /proc through which the descriptor's file can be opened.
pub(crate) fn path_to(descriptor: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

/// Returns the device and the inode of a descriptor as `DEVICE:INODE`. The environment variable
/// `JOURNAL_STREAM` has this form (see systemd.exec(5)).
pub(crate) fn device_and_inode(descriptor: impl AsFd) -> Option<String> {
    fstat(descriptor).ok().map(|status| format!("{}:{}", status.st_dev, status.st_ino))
}

/// A low descriptor number, reserved for a descriptor that this process will pass to a successor.
///
/// The launch of a successor copies all descriptors up to the highest passed one, so a high number
/// would make the launch slow. Without a reserved number, a new descriptor gets the lowest free
/// number, which is high in a process with thousands of connections.
#[derive(Debug)]
pub(crate) struct ReservedFd {
    slot: OwnedFd,
    /// The descriptor of an unused socket. While the reserved number is not needed, a copy of this
    /// descriptor keeps it occupied.
    blank: OwnedFd,
}

impl ReservedFd {
    /// Reserves the lowest descriptor number that is free now. Call this early in the life of the
    /// process.
    pub(crate) fn reserve() -> io::Result<Self> {
        // Use a socket as the placeholder, because creating a socket needs no path and works even
        // where /dev does not exist.
        let blank = OwnedFd::from(UnixDatagram::unbound()?);
        Ok(Self { slot: blank.try_clone()?, blank })
    }

    /// Gives a copy of `descriptor` the reserved number, until [`ReservedFd::clear`] is called.
    pub(crate) fn fill(&mut self, descriptor: impl AsFd) -> io::Result<BorrowedFd<'_>> {
        dup3(descriptor, &mut self.slot, OFlag::O_CLOEXEC)?;
        Ok(self.slot.as_fd())
    }

    /// Closes the copy that has the reserved number, and keeps the number reserved.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        dup3(&self.blank, &mut self.slot, OFlag::O_CLOEXEC).map_err(Into::into)
    }
}

/// A value that owns a descriptor. The descriptor stays open and keeps its number as long as the
/// value lives.
///
/// # Safety
/// An implementing type must own its descriptor and must not offer a way to replace it.
pub(crate) unsafe trait StableFd: AsRawFd {}

// SAFETY: an `OwnedFd` owns the same descriptor for its whole life.
unsafe impl StableFd for OwnedFd {}

// SAFETY: an `OwnedFd` keeps its descriptor, and a value in an `Arc` cannot be replaced.
unsafe impl StableFd for Arc<OwnedFd> {}

// SAFETY: a socket owns the same descriptor for its whole life, and a socket in an `Arc` cannot be
// replaced.
unsafe impl StableFd for Arc<Socket> {}

/// Registers a descriptor with the tokio runtime until the returned value is dropped. Must be
/// called within a tokio runtime. Retries while the kernel lacks memory.
pub(crate) fn watch<T: StableFd>(watched: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    let mut left = Some(watched);
    retry(|| {
        let watched = left.take().ok_or(Errno::EBADF)?;
        // SAFETY: a `StableFd` value keeps its descriptor open and unchanged, and the returned
        // `AsyncFd` owns that value.
        let watch = unsafe { AsyncFd::register_with_interest(watched, interest) };
        watch.map_err(|failed| {
            let (watched, error) = failed.into_parts();
            left = Some(watched);
            error
        })
    })
}

/// Returns a descriptor's number, for comparison with a number that a predecessor has sent.
pub(crate) fn number(descriptor: &impl AsRawFd) -> RawFd {
    descriptor.as_raw_fd()
}
