//! Transfers between a socket and a pipe inside the kernel (see splice(2)). The bytes are not
//! copied through this process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};
use nix::libc::c_int;

/// Creates a pipe that holds `capacity` bytes. Returns the read end and the write end, both
/// non-blocking.
///
/// # Errors
/// `EPERM` when the user has reached the limit on pages in pipes (see pipe(7)). The kernel would
/// then create only tiny pipes.
pub(crate) fn pipe(capacity: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(c_int::try_from(capacity).map_err(io::Error::other)?))?;
    Ok((read, write))
}

/// Moves at most `most` bytes from `from` to `to`. Returns the number of bytes; 0 means that `from`
/// is at its end.
///
/// # Errors
/// `WouldBlock` when `from` is empty or `to` is full. The error does not say which.
pub(crate) fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    nix::fcntl::splice(from, None, to, None, most, flags).map_err(Into::into)
}
