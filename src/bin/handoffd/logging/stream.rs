//! The stream of log records: standard error or the journal's socket. A write never waits for the
//! reader.

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

/// The path of the journal's socket.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// How many bytes can be written without waiting to a pipe that poll(2) reports as writable:
/// `PIPE_BUF`, pipe(7).
const AT_ONCE: usize = 4096;

/// The destination of all records.
#[derive(Debug)]
pub(super) enum Stream {
    /// The journal: one datagram for each record.
    Journal(UnixDatagram),
    /// Standard error, opened again. Setting `O_NONBLOCK` on the original would affect other
    /// processes that share it, such as the shell.
    Opened(File),
    /// Standard error that is a socket.
    Socket,
    /// A pipe that cannot be opened again because it belongs to another user.
    Pipe,
    /// A regular file, a terminal of another user, or a closed standard error.
    Plain,
}

impl Stream {
    /// Connects to the journal.
    pub(super) fn journal() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(JOURNAL)?;
        Ok(Self::Journal(socket))
    }

    /// Opens standard error.
    pub(super) fn standard_error() -> Self {
        let stderr = io::stderr();
        let mode = fstat(&stderr)
            .map_or(SFlag::empty(), |status| SFlag::from_bits_truncate(status.st_mode));
        match mode & SFlag::S_IFMT {
            SFlag::S_IFSOCK => Self::Socket,
            // A regular file is not opened again, because writing would start at its beginning.
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

    /// Writes some of `bytes`, or the whole datagram. Returns how many bytes were written.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room(PollTimeout::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self {
            Self::Journal(socket) => match socket.send(bytes) {
                // The journal may have been restarted.
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
                    // Before Linux 6.4. A plain write may only block if another process takes the
                    // room that poll(2) reported.
                    Err(rustix::io::Errno::OPNOTSUPP) => io::stderr().write(bytes),
                    written => written.map_err(Into::into),
                }
            }
            // The caller holds a lock, so no other thread takes the room that poll(2) reported.
            Self::Plain => io::stderr().write(&bytes[..bytes.len().min(AT_ONCE)]),
        }
    }

    /// Waits until there may be room. Returns whether there is.
    pub(super) fn has_room(&self, patience: PollTimeout) -> bool {
        let stderr = io::stderr();
        let descriptor: BorrowedFd<'_> = match self {
            Self::Journal(socket) => socket.as_fd(),
            Self::Opened(file) => file.as_fd(),
            Self::Socket | Self::Pipe | Self::Plain => stderr.as_fd(),
        };
        let mut poll = [PollFd::new(descriptor, PollFlags::POLLOUT)];
        // If a signal ends the wait, poll(2) does not know of any room. The write reports every
        // other error.
        !matches!(nix::poll::poll(&mut poll, patience), Ok(0) | Err(Errno::EINTR))
    }
}
