//! One direction of a relay. It moves bytes from one stream, the source, to another, the sink. When
//! the source has half-closed, the sink is half-closed too.
//!
//! A direction reads only when all earlier bytes are written, so it holds at most one buffer or one
//! pipe. At first it copies bytes. If several reads in a row fill the buffer, it moves bytes with
//! splice(2). It copies again when a splice moves few bytes.

use std::io;

use super::relay::Broken;
use crate::net::{Pipe, RelaySocket};

/// The size of the buffer for bytes that are copied from one socket to another.
pub(super) const BUFFER: usize = 32 * 1024;
/// After this many reads in a row that fill the buffer, splice(2) moves the bytes. This pays only
/// for long transfers, because splice(2) has a higher fixed cost than copying a few bytes.
const LONG: u8 = 4;
/// If a splice(2) call moves fewer bytes than this, the next bytes are copied again.
const SHORT: usize = 8 * 1024;
/// The maximum number of reads and writes in one direction, before other connections on the same
/// thread run.
const TURN: usize = 16;

/// The state of one direction of a relay.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) held: HeldBytes,
}

/// What to do with the sink after the source has half-closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SinkEnd {
    /// Half-close the sink too.
    HalfClose,
    /// Do nothing, because the caller is about to close the sink.
    LeaveOpen,
}

/// The data that has been read from the source, but not yet written to the sink.
#[derive(Debug, Default)]
pub(super) enum HeldBytes {
    #[default]
    Nothing,
    /// The unwritten bytes of one read.
    Bytes(Box<Rest>),
    /// Unwritten bytes that splice(2) has moved into a pipe.
    Piped(Box<Pipe>),
    /// Only the end of the stream, which must still be passed on to the sink.
    End,
    /// Nothing. The end of the stream has been passed on to the sink.
    Over,
}

#[derive(Debug)]
pub(super) struct Rest {
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
}

/// The result of moving bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing more will be moved in this direction.
    Ended,
    /// Nothing can be moved until an event says that the source or the sink is ready.
    Blocked,
    /// More bytes can be moved, but other connections must run first.
    HasMore,
}

impl Direction {
    /// Creates a direction that sends `bytes` to the sink before the bytes of the source.
    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        let held = match bytes.is_empty() {
            true => HeldBytes::Nothing,
            false => HeldBytes::Bytes(Box::new(Rest { bytes, written: 0 })),
        };
        Self { held }
    }

    /// Moves bytes through `buffer` until no more can be moved now, but performs at most [`TURN`]
    /// reads and writes. Returns [`Progress::Ended`] when the end of the stream has been passed on
    /// to the sink. With [`SinkEnd::LeaveOpen`], returns it as soon as the source has half-closed.
    pub(super) fn advance(
        &mut self,
        buffer: &mut [u8],
        source: &mut RelaySocket,
        sink: &mut RelaySocket,
        end: SinkEnd,
    ) -> Result<Progress, Broken> {
        for _ in 0..TURN {
            match (&self.held, end) {
                (HeldBytes::Over, _) | (HeldBytes::End, SinkEnd::LeaveOpen) => {
                    return Ok(Progress::Ended);
                }
                _ => {}
            }
            match self.step(buffer, source, sink) {
                Err(Broken::Source(error) | Broken::Sink(error)) if would_block(&error) => {
                    return Ok(Progress::Blocked);
                }
                step => step?,
            }
        }
        Ok(Progress::HasMore)
    }

    /// Moves the bytes that the source sent before its end or failure, but does not half-close the
    /// sink. Returns `false` if the sink cannot accept more bytes yet. Returns `true` if no bytes
    /// are left, or if the source or the sink has failed.
    pub(super) fn advance_rest(
        &mut self,
        buffer: &mut [u8],
        source: &mut RelaySocket,
        sink: &mut RelaySocket,
    ) -> bool {
        while !matches!(self.held, HeldBytes::End | HeldBytes::Over) {
            match self.step(buffer, source, sink) {
                Err(Broken::Sink(error)) if would_block(&error) => return false,
                Ok(()) => {}
                Err(_) => break,
            }
        }
        true
    }

    /// Performs one step: a read, a write, or the half-close of the sink at the end of the stream.
    /// Fails with `WouldBlock` if the step must wait for the source or the sink.
    fn step(
        &mut self,
        buffer: &mut [u8],
        source: &mut RelaySocket,
        sink: &mut RelaySocket,
    ) -> Result<(), Broken> {
        match &mut self.held {
            HeldBytes::Nothing if source.full_reads >= LONG => return self.splice(source),
            HeldBytes::Nothing => return self.copy(buffer, source, sink),
            HeldBytes::Bytes(rest) => {
                rest.written += sink.write(&rest.bytes[rest.written..]).map_err(Broken::Sink)?;
                if rest.written == rest.bytes.len() {
                    self.held = HeldBytes::Nothing;
                }
            }
            HeldBytes::Piped(pipe) => {
                sink.drain(pipe).map_err(Broken::Sink)?;
                if pipe.held() == 0 {
                    self.held = HeldBytes::Nothing;
                }
            }
            HeldBytes::End => {
                sink.shutdown().map_err(Broken::Sink)?;
                self.held = HeldBytes::Over;
            }
            HeldBytes::Over => {}
        }
        Ok(())
    }

    /// Returns whether this direction is waiting for bytes from the source.
    pub(super) const fn is_reading(&self) -> bool {
        matches!(self.held, HeldBytes::Nothing)
    }

    /// Returns whether the end of the source's stream has been passed on to the sink.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.held, HeldBytes::Over)
    }

    /// Returns whether bytes from the source are still waiting to be written to the sink.
    pub(super) const fn owes(&self) -> bool {
        matches!(self.held, HeldBytes::Bytes(_) | HeldBytes::Piped(_))
    }

    /// Reads once into the buffer that all connections of the thread share, and immediately writes
    /// the bytes.
    fn copy(
        &mut self,
        buffer: &mut [u8],
        source: &mut RelaySocket,
        sink: &mut RelaySocket,
    ) -> Result<(), Broken> {
        let count = source.read(buffer).map_err(Broken::Source)?;
        let bytes = &buffer[..count];
        if bytes.is_empty() {
            self.held = HeldBytes::End;
            return Ok(());
        }
        source.full_reads = if count == BUFFER { source.full_reads.saturating_add(1) } else { 0 };
        let written = match sink.write(bytes) {
            Err(error) if would_block(&error) => 0,
            written => written.map_err(Broken::Sink)?,
        };
        if written < bytes.len() {
            let bytes = bytes[written..].to_vec();
            self.held = HeldBytes::Bytes(Box::new(Rest { bytes, written: 0 }));
        }
        Ok(())
    }

    /// Moves bytes from the source into a pipe.
    fn splice(&mut self, source: &mut RelaySocket) -> Result<(), Broken> {
        let Ok(mut pipe) = Pipe::take() else {
            // No pipe could be created: the process has no file descriptors left, or its user has
            // too many pipes. Copy bytes instead.
            source.full_reads = 0;
            return Ok(());
        };
        let count = match source.fill(&mut pipe) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                source.full_reads = 0;
                return Ok(());
            }
            filled => filled.map_err(Broken::Source)?,
        };
        if count < SHORT {
            source.full_reads = 0;
        }
        self.held = if count == 0 { HeldBytes::End } else { HeldBytes::Piped(Box::new(pipe)) };
        Ok(())
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
