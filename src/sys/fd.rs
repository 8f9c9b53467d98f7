//! Owns descriptors: what one is, how to keep it from leaking, how to keep it low.

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

/// close_range(2) sets the flag instead of closing.
pub(super) const CLOSE_ON_EXEC: libc::c_int = 1 << 2;

/// close_range(2) closes in a copy of the table, if the table is shared.
pub(super) const CLOSE_IN_A_COPY: libc::c_int = 1 << 1;

/// The first descriptor that is passed, sd_listen_fds(3).
pub(crate) const FIRST_PASSED: RawFd = 3;

/// Marks every descriptor from 3 up close-on-exec, whoever left it open: what we pass on is chosen,
/// never leaked.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing; it only sets a flag, on any
    // descriptor.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, CLOSE_ON_EXEC) };
    Errno::result(done).map(drop).map_err(Into::into)
}

/// Whether `descriptor` is open.
pub(crate) fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: F_GETFD on a descriptor that may not be open reads nothing but the table of
    // descriptors.
    unsafe { libc::fcntl(descriptor, libc::F_GETFD) >= 0 }
}

/// The descriptors from 3 up that a parent or a predecessor has passed, sd_listen_fds(3).
#[derive(Debug)]
pub(crate) struct PassedDescriptors {
    /// The numbers of those that were not taken yet, by their place.
    left: Vec<Option<RawFd>>,
}

impl PassedDescriptors {
    /// The caller has found that so many are open and meant for this process.
    pub(super) fn new(count: usize) -> Self {
        Self { left: (FIRST_PASSED..).take(count).map(Some).collect() }
    }

    /// How many were passed.
    pub(crate) fn len(&self) -> usize {
        self.left.len()
    }

    /// Takes the one at `index`, whatever it is. `None` when it was taken before.
    pub(crate) fn take(&mut self, index: usize) -> Option<OwnedFd> {
        let raw = self.left.get_mut(index)?.take()?;
        // SAFETY: it was found open, it is handed out once, and nothing else in this process was
        // born with it.
        Some(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}

/// Takes the descriptor `raw`, which a predecessor names as one that it passed.
///
/// # Errors
/// `EBADF` when it is not open, and `EINVAL` when it is one of the standard streams.
pub(crate) fn take_named(raw: RawFd) -> io::Result<OwnedFd> {
    if raw < FIRST_PASSED {
        return Err(Errno::EINVAL.into());
    }
    if !is_open(raw) {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: it is open, and it is ours alone: the predecessor made it for this process and names
    // each one once.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// What a descriptor is, for an error that names it.
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

/// The path under which the kernel shows what a descriptor refers to.
pub(crate) fn path_to(descriptor: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

/// `DEVICE:INODE`, by which `JOURNAL_STREAM` names a stream.
pub(crate) fn device_and_inode(descriptor: impl AsFd) -> Option<String> {
    fstat(descriptor).ok().map(|status| format!("{}:{}", status.st_dev, status.st_ino))
}

/// A low descriptor number, kept for what a successor is to be passed.
///
/// A new descriptor gets the lowest free number, which is a high one in a process with thousands of
/// connections; and the launch copies all that lies below the highest that is passed.
#[derive(Debug)]
pub(crate) struct LowSlot {
    slot: OwnedFd,
    /// What the slot holds while it holds nothing.
    blank: OwnedFd,
}

impl LowSlot {
    /// Takes the lowest number that is free now: early in the life of a process.
    pub(crate) fn reserve() -> io::Result<Self> {
        // Anything that needs no path: there may be no /dev.
        let blank = OwnedFd::from(UnixDatagram::unbound()?);
        Ok(Self { slot: blank.try_clone()?, blank })
    }

    /// Puts a copy of `descriptor` into the slot, until [`LowSlot::clear`].
    pub(crate) fn fill(&mut self, descriptor: impl AsFd) -> io::Result<BorrowedFd<'_>> {
        dup3(descriptor, &mut self.slot, OFlag::O_CLOEXEC)?;
        Ok(self.slot.as_fd())
    }

    /// Closes what is in the slot, and keeps the number.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        dup3(&self.blank, &mut self.slot, OFlag::O_CLOEXEC).map_err(Into::into)
    }
}

/// Something whose descriptor stays open and the same for as long as it lives.
///
/// # Safety
/// An implementor promises just that: it owns the descriptor, and has no way to exchange it.
pub(crate) unsafe trait Steady: AsRawFd {}

// SAFETY: it owns one descriptor for its whole life.
unsafe impl Steady for OwnedFd {}

// SAFETY: it owns one descriptor for its whole life, and what is shared cannot be exchanged.
unsafe impl Steady for Arc<Socket> {}

/// Has the runtime watch a descriptor, until the watch is dropped. Must be called in a tokio
/// runtime.
pub(crate) fn watch<T: Steady>(watched: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what is `Steady` keeps its descriptor open and the same, and the watch owns it.
    unsafe { AsyncFd::register_with_interest(watched, interest) }.map_err(Into::into)
}

/// The number of a descriptor, to be held against one that a predecessor names.
pub(crate) fn number(descriptor: &impl AsRawFd) -> RawFd {
    descriptor.as_raw_fd()
}
