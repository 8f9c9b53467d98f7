//! File descriptors: who owns them, how they are kept from leaking, and how their numbers stay low.

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

/// `CLOSE_RANGE_CLOEXEC`: makes close_range(2) set close-on-exec instead of closing.
pub(super) const CLOSE_ON_EXEC: libc::c_int = 1 << 2;

/// `CLOSE_RANGE_UNSHARE`: makes close_range(2) copy a shared descriptor table before it closes
/// anything.
pub(super) const CLOSE_IN_A_COPY: libc::c_int = 1 << 1;

/// The first descriptor number used for passing, sd_listen_fds(3).
pub(crate) const FIRST_PASSED: RawFd = 3;

/// Marks every descriptor from 3 up close-on-exec, whichever code opened it. A successor then
/// receives only the descriptors that are passed on purpose.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing; it only sets a flag on each
    // descriptor.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, CLOSE_ON_EXEC) };
    Errno::result(done).map(drop).map_err(Into::into)
}

/// Returns whether `descriptor` is open.
pub(crate) fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: fcntl(2) with F_GETFD only reads the descriptor table, even if the descriptor is
    // closed.
    unsafe { libc::fcntl(descriptor, libc::F_GETFD) >= 0 }
}

/// The descriptors from 3 up that a parent or a predecessor passed, sd_listen_fds(3).
#[derive(Debug)]
pub(crate) struct PassedDescriptors {
    /// The number of each passed descriptor, by index. `None` once it has been taken.
    left: Vec<Option<RawFd>>,
}

impl PassedDescriptors {
    /// Creates the list of passed descriptors. The caller has checked that `count` descriptors are
    /// open and meant for this process.
    pub(super) fn new(count: usize) -> Self {
        Self { left: (FIRST_PASSED..).take(count).map(Some).collect() }
    }

    /// Returns how many descriptors were passed, including those already taken.
    pub(crate) fn len(&self) -> usize {
        self.left.len()
    }

    /// Takes the descriptor at `index`, of whatever kind. Returns `None` if it has already been
    /// taken or if the index is out of range.
    pub(crate) fn take(&mut self, index: usize) -> Option<OwnedFd> {
        let raw = self.left.get_mut(index)?.take()?;
        // SAFETY: the descriptor is open, each one is returned only once, and nothing else in this
        // process owns it.
        Some(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}

/// Takes the descriptor `raw`, which the predecessor says it passed.
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
    // SAFETY: the descriptor is open and owned by nothing else: the predecessor created it for this
    // process and names each descriptor only once.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Returns what kind of file a descriptor refers to, for error messages.
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

/// Returns the path in /proc that leads to the file behind a descriptor.
pub(crate) fn path_to(descriptor: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

/// Returns `DEVICE:INODE` of a descriptor, the form in which `JOURNAL_STREAM` identifies a stream.
pub(crate) fn device_and_inode(descriptor: impl AsFd) -> Option<String> {
    fstat(descriptor).ok().map(|status| format!("{}:{}", status.st_dev, status.st_ino))
}

/// A low descriptor number, reserved for a descriptor that a successor will be passed.
///
/// A new descriptor gets the lowest free number, which is high in a process with thousands of
/// connections. The launch copies all descriptors up to the highest one that is passed, so high
/// numbers make it slow.
#[derive(Debug)]
pub(crate) struct ReservedFd {
    slot: OwnedFd,
    /// The placeholder that occupies the slot while it is empty.
    blank: OwnedFd,
}

impl ReservedFd {
    /// Reserves the lowest number that is free now. Call it early in the life of the process.
    pub(crate) fn reserve() -> io::Result<Self> {
        // A socket needs no path, so this works even where /dev does not exist.
        let blank = OwnedFd::from(UnixDatagram::unbound()?);
        Ok(Self { slot: blank.try_clone()?, blank })
    }

    /// Puts a copy of `descriptor` into the slot, where it stays until [`ReservedFd::clear`].
    pub(crate) fn fill(&mut self, descriptor: impl AsFd) -> io::Result<BorrowedFd<'_>> {
        dup3(descriptor, &mut self.slot, OFlag::O_CLOEXEC)?;
        Ok(self.slot.as_fd())
    }

    /// Closes the descriptor in the slot but keeps the number reserved.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        dup3(&self.blank, &mut self.slot, OFlag::O_CLOEXEC).map_err(Into::into)
    }
}

/// A value whose descriptor stays open and unchanged for as long as the value lives.
///
/// # Safety
/// An implementor must own its descriptor and must not offer a way to replace it.
pub(crate) unsafe trait StableFd: AsRawFd {}

// SAFETY: an OwnedFd owns one descriptor for its whole life.
unsafe impl StableFd for OwnedFd {}

// SAFETY: the socket owns one descriptor for its whole life, and a shared socket cannot be
// replaced.
unsafe impl StableFd for Arc<Socket> {}

/// Registers a descriptor with the tokio runtime until the returned watch is dropped. Must be
/// called within a tokio runtime.
pub(crate) fn watch<T: StableFd>(watched: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a `StableFd` value keeps its descriptor open and unchanged, and the watch owns the
    // value.
    unsafe { AsyncFd::register_with_interest(watched, interest) }.map_err(Into::into)
}

/// Returns the number of a descriptor, to compare it with one that a predecessor names.
pub(crate) fn number(descriptor: &impl AsRawFd) -> RawFd {
    descriptor.as_raw_fd()
}
