//! Moves bytes one way: from a source to a sink, and the source's end after them.
//!
//! Whatever was read is written before more is read, so what is held is at most one buffer, or one
//! pipe. How it is moved is found out on the way: reads that fill the buffer again and again are a
//! long transfer, and are spliced until they are short.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Broken;
use crate::net::{Pipe, Stream};

/// Bytes taken in one read.
const BUFFER: usize = 32 * 1024;
/// After so many reads in a row that fill the buffer a transfer is long. Splicing has a price for
/// each call, which is above that of copying a little.
const LONG: u8 = 4;
/// A splice that moves less than this ends a long transfer.
const SHORT: usize = 8 * 1024;
/// Moves in one turn; then the thread's other connections have theirs.
const TURN: usize = 16;

thread_local! {
    static SHARED: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(BUFFER));
}

/// One way of a connection.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) held: Held,
    /// How many reads in a row have filled the buffer; [`LONG`] is a long transfer.
    pub(super) streak: u8,
}

/// What is done with the source's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The sink is told.
    Tell,
    /// Nothing: the sink is about to be closed.
    Keep,
}

/// What was read and is not written yet.
#[derive(Debug, Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    /// The rest of what one read brought.
    Bytes(Box<Rest>),
    /// What is in a pipe.
    Piped(Pipe),
    /// The source's end.
    End,
    /// Not even that: it has been passed on.
    Over,
}

#[derive(Debug)]
pub(super) struct Rest {
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
}

impl Direction {
    /// Moves what can be moved: ready when the source's end has been passed on, or reached if it is
    /// to be kept.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
        end: End,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..TURN {
            match (&self.held, end) {
                (Held::Over, _) | (Held::End, End::Keep) => return Poll::Ready(Ok(())),
                _ => {}
            }
            ready!(self.step(cx, source, sink))?;
        }
        // There is more, and it is somebody else's turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does the next thing that is to be done.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
    ) -> Poll<Result<(), Broken>> {
        match &mut self.held {
            Held::Nothing if self.streak >= LONG => return self.splice(cx, source),
            Held::Nothing => return self.copy(cx, source, sink),
            Held::Bytes(rest) => {
                let write = Pin::new(&mut *sink).poll_write(cx, &rest.bytes[rest.written..]);
                rest.written += ready!(write).map_err(Broken::Sink)?;
                if rest.written == rest.bytes.len() {
                    self.held = Held::Nothing;
                }
            }
            Held::Piped(pipe) => {
                ready!(sink.poll_drain(cx, pipe)).map_err(Broken::Sink)?;
                if pipe.held() == 0 {
                    self.held = Held::Nothing;
                }
            }
            Held::End => {
                ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Broken::Sink)?;
                self.held = Held::Over;
            }
            Held::Over => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what is left to be moved, and keeps the source's end to itself: ready when there is no
    /// more, or nobody to take it.
    pub(super) fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
    ) -> Poll<()> {
        while !matches!(self.held, Held::End | Held::Over) {
            if ready!(self.step(cx, source, sink)).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Whether it waits for the source to say something.
    pub(super) const fn is_reading(&self) -> bool {
        matches!(self.held, Held::Nothing)
    }

    /// Whether the source's end has been passed on.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.held, Held::Over)
    }

    /// Whether something was read that the sink has not taken.
    pub(super) const fn owes(&self) -> bool {
        matches!(self.held, Held::Bytes(_) | Held::Piped(_))
    }

    /// Reads once into the thread's buffer and writes at once.
    fn copy(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
    ) -> Poll<Result<(), Broken>> {
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::uninit(shared);
            ready!(Pin::new(source).poll_read(cx, &mut buffer)).map_err(Broken::Source)?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.held = Held::End;
                return Poll::Ready(Ok(()));
            }
            self.streak = if bytes.len() == BUFFER { self.streak + 1 } else { 0 };
            let written = match Pin::new(sink).poll_write(cx, bytes) {
                Poll::Ready(written) => written.map_err(Broken::Sink)?,
                Poll::Pending => 0,
            };
            if written < bytes.len() {
                self.held =
                    Held::Bytes(Box::new(Rest { bytes: bytes[written..].to_vec(), written: 0 }));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Fills a pipe.
    fn splice(&mut self, cx: &mut Context<'_>, source: &mut Stream) -> Poll<Result<(), Broken>> {
        let Ok(mut pipe) = Pipe::take() else {
            // No descriptors, or too many pipes of this user: it goes without.
            self.streak = 0;
            return Poll::Ready(Ok(()));
        };
        let count = match ready!(source.poll_fill(cx, &mut pipe)) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.streak = 0;
                return Poll::Ready(Ok(()));
            }
            Err(error) => return Poll::Ready(Err(Broken::Source(error))),
        };
        if count < SHORT {
            self.streak = 0;
        }
        self.held = if count == 0 { Held::End } else { Held::Piped(pipe) };
        Poll::Ready(Ok(()))
    }
}
