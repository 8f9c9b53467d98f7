//! One direction of a relay: it moves bytes from a source to a sink, and then passes on the end of
//! the source.
//!
//! It reads more only after everything is written, so it holds at most one buffer or one pipe. It
//! starts with copying. If several reads in a row fill the buffer, it splices instead, until a
//! splice moves little.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Broken;
use crate::net::{Pipe, Stream};

/// The largest number of bytes per read.
const BUFFER: usize = 32 * 1024;
/// How many reads in a row must fill the buffer before splicing begins. A splice has a higher fixed
/// cost than copying a few bytes.
const LONG: u8 = 4;
/// A splice of fewer bytes than this switches back to copying.
const SHORT: usize = 8 * 1024;
/// How many moves a connection makes before it lets the thread's other connections run.
const TURN: usize = 16;

thread_local! {
    static SHARED: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(BUFFER));
}

/// The state of one direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) held: Held,
    /// How many reads in a row have filled the buffer. From [`LONG`] on, the direction splices.
    pub(super) streak: u8,
}

/// What to do at the end of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Half-close the sink.
    Tell,
    /// Nothing, because the sink is about to be closed.
    Keep,
}

/// What has been read but not written yet.
#[derive(Debug, Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    /// The rest of one read.
    Bytes(Box<Rest>),
    /// Bytes in a pipe.
    Piped(Pipe),
    /// The end of the source.
    End,
    /// Nothing: the end of the source has been passed on.
    Over,
}

#[derive(Debug)]
pub(super) struct Rest {
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
}

impl Direction {
    /// Moves as many bytes as possible. Ready when the end of the source has been passed on, or
    /// reached if `end` is [`End::Keep`].
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
        // There may be more to move, but other tasks get the thread first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Performs the next step: one read, one write, or passing on the end.
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

    /// Moves the remaining bytes without passing on the end of the source. Ready when nothing is
    /// left, or when the source or the sink is broken.
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

    /// Returns whether it waits for the source to send.
    pub(super) const fn is_reading(&self) -> bool {
        matches!(self.held, Held::Nothing)
    }

    /// Returns whether the end of the source has been passed on.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.held, Held::Over)
    }

    /// Returns whether it holds bytes that the sink has not accepted yet.
    pub(super) const fn owes(&self) -> bool {
        matches!(self.held, Held::Bytes(_) | Held::Piped(_))
    }

    /// Reads once into the thread's shared buffer and writes at once.
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

    /// Fills a pipe from the source.
    fn splice(&mut self, cx: &mut Context<'_>, source: &mut Stream) -> Poll<Result<(), Broken>> {
        let Ok(mut pipe) = Pipe::take() else {
            // No descriptors are left, or the user has too many pipes: copy instead.
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
