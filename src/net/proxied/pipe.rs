//! Pipes for long transfers. The kernel moves bytes from one socket through a pipe to another
//! socket, without copying them to user space.
//!
//! A pipe costs two file descriptors and kernel memory. So a connection takes a pipe only when
//! there are bytes to move, and returns it as soon as the pipe is empty. Only a transfer with a
//! slow receiver keeps its pipe for longer. Each thread keeps a few empty pipes for reuse.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::sys;

/// The capacity of a pipe in bytes. If the kernel refuses it, the transfer continues without a
/// pipe. The capacity must be large, because each fragment of a packet occupies a whole page of the
/// pipe, however small the fragment is. A larger pipe also needs fewer system calls per gigabyte
/// (see `docs/decisions/0018-long-transfers-are-spliced.md`).
const CAPACITY: usize = 512 * 1024;
/// The maximum number of empty pipes that a thread keeps for reuse.
const KEPT: usize = 8;
/// How many descriptors the process must be allowed for each pipe that a thread keeps. This leaves
/// enough descriptors for connections.
const DESCRIPTORS_FOR_EACH: usize = 1024;

thread_local! {
    static EMPTY: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Ends {
    fn new() -> io::Result<Self> {
        let (read, write) = sys::splice::pipe(CAPACITY)?;
        // Return an error instead of using reserved descriptors for a pipe. The transfer then
        // continues without a pipe.
        if sys::reserve::is_reserved(&read) || sys::reserve::is_reserved(&write) {
            return Err(Errno::EMFILE.into());
        }
        Ok(Self { read, write })
    }
}

/// A pipe, with the number of bytes that it holds.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// Both ends of the pipe. `None` only while the pipe is being dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// Returns an empty pipe that this thread has kept for reuse, or creates a new pipe.
    pub(crate) fn take() -> io::Result<Self> {
        let kept = EMPTY.with_borrow_mut(Vec::pop);
        let ends = match kept {
            Some(ends) => ends,
            None => Ends::new()?,
        };
        Ok(Self { ends: Some(ends), held: 0 })
    }

    /// Returns the read end and the write end of the pipe. Another process needs only these two
    /// ends and the number from [`Pipe::held`] to continue with this pipe.
    pub(crate) fn into_ends(mut self) -> Option<(OwnedFd, OwnedFd)> {
        self.ends.take().map(|Ends { read, write }| (read, write))
    }

    /// Creates a `Pipe` from the two ends of a pipe that another process has passed. The pipe holds
    /// `held` bytes.
    ///
    /// # Errors
    /// `InvalidInput` when the descriptors are not the two ends of a pipe.
    pub(crate) fn taken_up(read: OwnedFd, write: OwnedFd, held: usize) -> io::Result<Self> {
        if [&read, &write].into_iter().all(|end| sys::fd::describe(end) == "a pipe") {
            Ok(Self { ends: Some(Ends { read, write }), held })
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the passed descriptors are not the two ends of a pipe",
            ))
        }
    }

    /// Returns the number of bytes that are in the pipe now.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// Moves received bytes from `socket` into the pipe. The pipe must be empty. Otherwise
    /// `WouldBlock` could mean that the pipe is full, rather than that the socket has nothing to
    /// read.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "a full pipe cannot be told from an empty socket");
        let count = sys::splice::splice(socket, &self.ends()?.write, CAPACITY)?;
        self.held = count;
        Ok(count)
    }

    /// Moves bytes from the pipe into `socket`.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer of the socket is full.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let count = sys::splice::splice(&self.ends()?.read, socket, self.held)?;
        self.held -= count;
        Ok(count)
    }

    fn ends(&self) -> io::Result<&Ends> {
        self.ends.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Pipe {
    /// Keeps the pipe for reuse by this thread. Closes it if it still holds bytes or if the thread
    /// keeps enough pipes already.
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // Ignore an error, which happens only while the thread exits. The pipe is then closed.
        let _ = EMPTY.try_with(|empty| {
            let mut empty = empty.borrow_mut();
            let kept = (sys::reserve::descriptors() / DESCRIPTORS_FOR_EACH).min(KEPT);
            if self.held == 0 && empty.len() < kept {
                empty.push(ends);
            }
        });
    }
}
