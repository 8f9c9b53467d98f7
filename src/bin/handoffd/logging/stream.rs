//! The stream to which the process writes log records: standard error or the journal's socket. A
//! write never waits for the reader.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::stat::{SFlag, fstat};
use rustix::io::ReadWriteFlags;
use rustix::net::SendFlags;

/// The path of the socket on which the systemd journal receives log records.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// How many bytes a pipe accepts without blocking after poll(2) has reported it as writable. The
/// value is `PIPE_BUF` (see pipe(7)).
const AT_ONCE: usize = 4096;

/// The stream to which the process writes all log records.
#[derive(Debug)]
pub(super) enum LogStream {
    /// The socket of the journal. Each record is one datagram.
    Journal(UnixDatagram),
    /// Standard error, opened a second time in non-blocking mode. The original stays in blocking
    /// mode, because `O_NONBLOCK` would affect other processes that share it, such as the shell.
    Opened(File),
    /// Standard error, if it is a socket.
    Socket,
    /// Standard error, if it is a pipe of another user, which this process may not open a second
    /// time.
    Pipe,
    /// Standard error, if it is a regular file or a terminal of another user, or if it is closed.
    Plain,
}

impl LogStream {
    /// Connects to the socket of the journal.
    pub(super) fn journal() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(JOURNAL)?;
        Ok(Self::Journal(socket))
    }

    /// Opens standard error in the non-blocking way that its file type allows.
    pub(super) fn standard_error() -> Self {
        let stderr = io::stderr();
        let mode = fstat(&stderr)
            .map_or(SFlag::empty(), |status| SFlag::from_bits_truncate(status.st_mode));
        match mode & SFlag::S_IFMT {
            SFlag::S_IFSOCK => Self::Socket,
            // Do not open a regular file a second time, because the new file descriptor would write
            // at the beginning of the file.
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
                let opened = OpenOptions::new()
                    .write(true)
                    .custom_flags(flags.bits())
                    .open("/proc/self/fd/2");
                let shared = if mode.contains(SFlag::S_IFIFO) { Self::Pipe } else { Self::Plain };
                opened.map_or(shared, Self::Opened)
            }
            _ => Self::Plain,
        }
    }

    /// Writes `bytes`, and returns how many bytes were written. A write may be partial, except to
    /// the journal.
    ///
    /// # Errors
    /// Returns `WouldBlock` if the stream has no room.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room(PollTimeout::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self {
            Self::Journal(socket) => match socket.send(bytes) {
                // Connect to the journal again, because it may have been restarted.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    socket.connect(JOURNAL)?;
                    socket.send(bytes)
                }
                sent => sent,
            },
            Self::Opened(file) => (&*file).write(bytes),
            Self::Socket => {
                rustix::net::send(io::stderr(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                    .map_err(Into::into)
            }
            Self::Pipe => {
                let bytes = &bytes[..bytes.len().min(AT_ONCE)];
                match rustix::io::pwritev2(
                    io::stderr(),
                    &[IoSlice::new(bytes)],
                    u64::MAX,
                    ReadWriteFlags::NOWAIT,
                ) {
                    // The kernel is older than Linux 6.4 and has no non-blocking write to a pipe,
                    // so write normally. The write blocks only if another process has filled the
                    // pipe since poll(2) reported room.
                    Err(rustix::io::Errno::OPNOTSUPP) => io::stderr().write(bytes),
                    written => written.map_err(Into::into),
                }
            }
            // The stream still has the room that poll(2) has reported, because the caller holds a
            // lock that keeps other threads from writing.
            Self::Plain => io::stderr().write(&bytes[..bytes.len().min(AT_ONCE)]),
        }
    }

    /// Waits until the stream may have room for a record, but at most for `patience`. Returns
    /// whether the stream may have room.
    pub(super) fn has_room(&self, patience: PollTimeout) -> bool {
        let stderr = io::stderr();
        let descriptor: BorrowedFd<'_> = match self {
            Self::Journal(socket) => socket.as_fd(),
            Self::Opened(file) => file.as_fd(),
            Self::Socket | Self::Pipe | Self::Plain => stderr.as_fd(),
        };
        let mut poll = [PollFd::new(descriptor, PollFlags::POLLOUT)];
        // Assume room if poll(2) has failed, because the next write then reports the error. Assume
        // no room if a signal has interrupted poll(2) (`EINTR`).
        !matches!(nix::poll::poll(&mut poll, patience), Ok(0) | Err(Errno::EINTR))
    }
}
