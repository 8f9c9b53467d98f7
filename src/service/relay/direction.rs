//! One direction of a relay. It moves bytes from one stream, the source, to another, the sink. When
//! the source has half-closed, the direction half-closes the sink.
//!
//! A direction reads only after it has written everything that it holds, so it holds at most one
//! buffer or one pipe. At first it copies bytes. If several reads in a row fill the buffer, it
//! moves bytes with splice(2). It copies again when a splice moves few bytes.

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
/// How many reads in a row must fill the buffer before the direction uses splice(2). Only long
/// transfers use splice(2), because it has a higher fixed cost than copying a few bytes.
const LONG: u8 = 4;
/// If a splice(2) moves fewer bytes than this, the direction copies again.
const SHORT: usize = 8 * 1024;
/// How many steps a direction may take before it lets other connections on the same thread run.
const TURN: usize = 16;

thread_local! {
    static SHARED: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(BUFFER));
}

/// The state of one direction of a relay.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) held: HeldBytes,
    /// How many reads in a row have filled the buffer. At [`LONG`], the direction begins to use
    /// splice(2).
    pub(super) streak: u8,
}

/// Whether a direction half-closes its sink after its source has half-closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The direction half-closes the sink.
    Tell,
    /// The direction does nothing, because the caller is about to close the sink.
    Keep,
}

/// Data that the direction has read from the source but not yet written to the sink.
#[derive(Debug, Default)]
pub(super) enum HeldBytes {
    #[default]
    Nothing,
    /// The unwritten bytes of one read.
    Bytes(Box<Rest>),
    /// Unwritten bytes that the direction has spliced into a pipe.
    Piped(Pipe),
    /// No data. The source has half-closed, but the direction has not half-closed the sink yet.
    End,
    /// No data. The source has half-closed, and the direction has half-closed the sink.
    Over,
}

#[derive(Debug)]
pub(super) struct Rest {
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
}

impl Direction {
    /// Moves as many bytes as possible. Completes when the source and the sink are half-closed.
    /// With [`End::Keep`], it completes as soon as the source has half-closed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
        end: End,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..TURN {
            match (&self.held, end) {
                (HeldBytes::Over, _) | (HeldBytes::End, End::Keep) => return Poll::Ready(Ok(())),
                _ => {}
            }
            ready!(self.step(cx, source, sink))?;
        }
        // More bytes may be available. Let other tasks run first, and then wake this task again.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Performs one step: reads once, writes once, or half-closes the sink because the source has
    /// half-closed.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
    ) -> Poll<Result<(), Broken>> {
        match &mut self.held {
            HeldBytes::Nothing if self.streak >= LONG => return self.splice(cx, source),
            HeldBytes::Nothing => return self.copy(cx, source, sink),
            HeldBytes::Bytes(rest) => {
                let write = Pin::new(&mut *sink).poll_write(cx, &rest.bytes[rest.written..]);
                rest.written += ready!(write).map_err(Broken::Sink)?;
                if rest.written == rest.bytes.len() {
                    self.held = HeldBytes::Nothing;
                }
            }
            HeldBytes::Piped(pipe) => {
                ready!(sink.poll_drain(cx, pipe)).map_err(Broken::Sink)?;
                if pipe.held() == 0 {
                    self.held = HeldBytes::Nothing;
                }
            }
            HeldBytes::End => {
                ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Broken::Sink)?;
                self.held = HeldBytes::Over;
            }
            HeldBytes::Over => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Moves the bytes that the source sent before its end or failure, but does not half-close the
    /// sink. Completes when no bytes are left, or when the source or the sink has failed.
    pub(super) fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &mut Stream,
    ) -> Poll<()> {
        while !matches!(self.held, HeldBytes::End | HeldBytes::Over) {
            if ready!(self.step(cx, source, sink)).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Returns whether the direction is waiting for bytes from the source.
    pub(super) const fn is_reading(&self) -> bool {
        matches!(self.held, HeldBytes::Nothing)
    }

    /// Returns whether the source has half-closed and the direction has half-closed the sink.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.held, HeldBytes::Over)
    }

    /// Returns whether the direction holds bytes that the sink has not accepted yet.
    pub(super) const fn owes(&self) -> bool {
        matches!(self.held, HeldBytes::Bytes(_) | HeldBytes::Piped(_))
    }

    /// Reads once into the buffer that all connections of the thread share, and immediately writes
    /// the bytes.
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
                self.held = HeldBytes::End;
                return Poll::Ready(Ok(()));
            }
            self.streak = if bytes.len() == BUFFER { self.streak + 1 } else { 0 };
            let written = match Pin::new(sink).poll_write(cx, bytes) {
                Poll::Ready(written) => written.map_err(Broken::Sink)?,
                Poll::Pending => 0,
            };
            if written < bytes.len() {
                self.held = HeldBytes::Bytes(Box::new(Rest {
                    bytes: bytes[written..].to_vec(),
                    written: 0,
                }));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Moves bytes from the source into a pipe.
    fn splice(&mut self, cx: &mut Context<'_>, source: &mut Stream) -> Poll<Result<(), Broken>> {
        let Ok(mut pipe) = Pipe::take() else {
            // No pipe could be created: the process has no file descriptors left, or its user has
            // too many pipes. Copy bytes instead.
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
        self.held = if count == 0 { HeldBytes::End } else { HeldBytes::Piped(pipe) };
        Poll::Ready(Ok(()))
    }
}
