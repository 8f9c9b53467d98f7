//! The system calls that read from a socket without the tokio runtime. Their results also say
//! whether more bytes can be read.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags};

/// Whether a read has emptied a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emptied {
    /// The read has emptied the socket if it returned fewer bytes than requested.
    IfShort,
    /// The socket may contain more bytes.
    Unknown,
}

/// Reads bytes from a Unix socket, and closes the file descriptors that come with them. A message
/// with descriptors ends a read early, although more bytes may follow (see unix(7)).
pub(super) fn receive_from_unix(
    socket: &OwnedFd,
    buffer: &mut [u8],
) -> rustix::io::Result<(usize, Emptied)> {
    let mut no_room = RecvAncillaryBuffer::default();
    let parts = &mut [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(socket, parts, &mut no_room, RecvFlags::empty())?;
    // The kernel sets this flag when it drops descriptors, because the call has no room for any.
    let has_dropped = received.flags.contains(ReturnFlags::CTRUNC);
    Ok((received.bytes, if has_dropped { Emptied::Unknown } else { Emptied::IfShort }))
}

/// Checks the result of a splice(2) from a socket. `peek` reads the next byte without removing it.
///
/// # Errors
/// `InvalidInput` if urgent data has arrived. splice(2) stops at such data, and reports end of file
/// or `WouldBlock`.
pub(super) fn check_filled(
    filled: io::Result<usize>,
    peek: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let is_empty = match &filled {
        Ok(count) => *count == 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    };
    match is_empty.then(peek) {
        Some(Ok(1..)) => Err(io::ErrorKind::InvalidInput.into()),
        // The connection has broken since the splice. Return the error, because the kernel reports
        // it only once.
        Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        Some(_) | None => filled,
    }
}

/// Records that the socket is not ready if a system call would have blocked.
pub(super) fn note_blocked<T>(done: io::Result<T>, is_ready: &mut bool) -> io::Result<T> {
    if matches!(&done, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
        *is_ready = false;
    }
    done
}

/// Repeats a system call that a signal has interrupted.
pub(super) fn retry<T>(call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    rustix::io::retry_on_intr(call).map_err(Into::into)
}
