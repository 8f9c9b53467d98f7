//! Moves bytes between a socket and a pipe within the kernel, splice(2): no copy to this process
//! and back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};
use nix::libc::c_int;

/// Makes a pipe that holds `capacity` bytes: the end to read from, the end to write to. Neither
/// ever blocks.
///
/// # Errors
/// `EPERM` when the user has as many pages in pipes as there may be, pipe(7): what the kernel makes
/// then holds next to nothing.
pub(crate) fn pipe(capacity: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(c_int::try_from(capacity).map_err(io::Error::other)?))?;
    Ok((read, write))
}

/// Moves at most `most` bytes: how many it were, none at the end of `from`.
///
/// `WouldBlock` when `from` has nothing, and when `to` takes nothing: who calls has to know which.
pub(crate) fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    nix::fcntl::splice(from, None, to, None, most, flags).map_err(Into::into)
}
