//! Lends pipes to long transfers: through one, bytes go from socket to socket without being copied
//! here.
//!
//! A pipe is two descriptors and kernel memory, so it is taken when there is something to move and
//! given back as soon as it is empty: only a transfer whose receiver is slow holds one for longer.
//! Each thread keeps a few empty ones for the next.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::sys;

/// What a pipe shall hold, if the kernel allows it: each piece of a packet takes a page's place in
/// it, however small it is, and the fewer calls, the cheaper a gigabyte
/// (`docs/decisions/0018-long-transfers-are-spliced.md`).
const CAPACITY: usize = 512 * 1024;
/// How many empty ones a thread keeps.
const KEPT: usize = 8;

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
        // The transfer goes on without a pipe.
        if sys::reserve::is_reserved(&read) || sys::reserve::is_reserved(&write) {
            return Err(Errno::EMFILE.into());
        }
        Ok(Self { read, write })
    }
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// None only while it is dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty one: one of those that the thread has kept, or a new one.
    pub(crate) fn take() -> io::Result<Self> {
        let kept = EMPTY.with_borrow_mut(Vec::pop);
        let ends = match kept {
            Some(ends) => ends,
            None => Ends::new()?,
        };
        Ok(Self { ends: Some(ends), held: 0 })
    }

    /// Its end to read from and its end to write to: with [`Pipe::held`] all there is to it.
    pub(crate) fn into_ends(mut self) -> Option<(OwnedFd, OwnedFd)> {
        self.ends.take().map(|Ends { read, write }| (read, write))
    }

    /// One of which another process had the ends, with so many bytes in it.
    ///
    /// # Errors
    /// `InvalidInput` when they are not ends of a pipe.
    pub(crate) fn taken_up(read: OwnedFd, write: OwnedFd, held: usize) -> io::Result<Self> {
        if [&read, &write].into_iter().all(|end| sys::fd::describe(end) == "a pipe") {
            Ok(Self { ends: Some(Ends { read, write }), held })
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "they are not the ends of a pipe"))
        }
    }

    /// Bytes in it.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// Moves what `socket` has into it, which must be empty: so `WouldBlock` means that the socket
    /// has nothing.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "a full pipe cannot be told from an empty socket");
        let count = sys::splice::splice(socket, &self.ends()?.write, CAPACITY)?;
        self.held = count;
        Ok(count)
    }

    /// Moves what is in it into `socket`: `WouldBlock` when that takes nothing.
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
    /// Gives it back, unless something is in it that nobody will read any more.
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // Not while the thread ends.
        let _ = EMPTY.try_with(|empty| {
            let mut empty = empty.borrow_mut();
            if self.held == 0 && empty.len() < KEPT {
                empty.push(ends);
            }
        });
    }
}
