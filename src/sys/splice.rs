//! Moves bytes between a socket and a pipe within the kernel, splice(2): no copy to this process and back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, SpliceFFlags};

/// Makes a pipe: the end to read from, the end to write to. Neither ever blocks.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Into::into)
}

/// Moves at most `most` bytes: how many it were, none at the end of `from`.
///
/// `WouldBlock` when `from` has nothing, and when `to` takes nothing: who calls has to know which.
pub(crate) fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    nix::fcntl::splice(from, None, to, None, most, flags).map_err(Into::into)
}
