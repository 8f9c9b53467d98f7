//! A relay: it moves bytes between two streams in both directions, until both streams have
//! half-closed.
//!
//! An idle connection holds no buffer, because all connections of a thread share one. The relay
//! keeps only bytes that a slow receiver does not accept yet, at most one buffer. Long transfers go
//! through a pipe with splice(2), so their bytes never leave the kernel.
//!
//! A relay regularly lets other connections of the thread run. It never waits: the
//! [`Plane`](super::Plane) calls it when an event says that a socket is ready.

use std::io;

use rustix::event::PollFlags;

use super::direction::{Direction, Progress, SinkEnd};
use super::entry::RelayEnd;
use super::settle::Side;
use crate::net::{PeerLoss, RelaySocket};

/// The two directions of a proxied connection.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// The direction from the client to the upstream.
    pub(super) up: Direction,
    /// The direction from the upstream to the client.
    pub(super) down: Direction,
}

/// The result of moving bytes in both directions.
#[derive(Debug)]
pub(crate) enum RelayStep {
    /// The relay continues when an event says that one of its sockets is ready.
    Blocked,
    /// The relay can move more bytes, but must let other connections run first.
    HasMore,
    /// The relay has ended.
    Ended(RelayEnd),
}

/// The connection that failed while bytes moved from the source to the sink, with the error.
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

fn broke(side: fn(io::Error) -> RelayEnd, error: io::Error) -> RelayStep {
    RelayStep::Ended(side(error))
}

impl Relay {
    /// Creates a relay that sends these bytes to the upstream before those of the client.
    pub(crate) fn beginning_with(bytes: Vec<u8>) -> Self {
        Self { up: Direction::holding(bytes), down: Direction::default() }
    }

    /// Moves bytes in both directions through `buffer`, until nothing more can be moved now.
    pub(crate) fn advance(
        &mut self,
        buffer: &mut [u8],
        client: &mut RelaySocket,
        upstream: &mut RelaySocket,
    ) -> RelayStep {
        // Do not half-close a side if the other direction is already over. The caller then closes
        // both connections when the relay has ended.
        let end = |other: &Direction| {
            if other.is_over() { SinkEnd::LeaveOpen } else { SinkEnd::HalfClose }
        };
        let up = match self.up.advance(buffer, client, upstream, end(&self.down)) {
            Err(Broken::Source(error)) => return broke(RelayEnd::ClientBroke, error),
            Err(Broken::Sink(error)) => return broke(RelayEnd::UpstreamBroke, error),
            Ok(progress) => progress,
        };
        let down = match self.down.advance(buffer, upstream, client, end(&self.up)) {
            Err(Broken::Source(error)) => return broke(RelayEnd::UpstreamBroke, error),
            Err(Broken::Sink(error)) => return broke(RelayEnd::ClientBroke, error),
            Ok(progress) => progress,
        };
        match (up, down) {
            (Progress::Ended, Progress::Ended) => RelayStep::Ended(RelayEnd::Finished),
            (Progress::HasMore, _) | (_, Progress::HasMore) => RelayStep::HasMore,
            _ => self.failure(client, upstream).map_or(RelayStep::Blocked, RelayStep::Ended),
        }
    }

    /// Asks the kernel whether a side has failed. Skips a side from which the relay waits for
    /// bytes, because the next read reports its failure.
    fn failure(&self, client: &mut RelaySocket, upstream: &mut RelaySocket) -> Option<RelayEnd> {
        let client = if self.up.is_reading() { None } else { client.gone() };
        match client {
            Some(PeerLoss::Broken(error)) => return Some(RelayEnd::ClientBroke(error)),
            Some(PeerLoss::Closed) if self.up.is_over() => {
                return Some(RelayEnd::PeerClosed(Side::Client));
            }
            Some(PeerLoss::Closed) | None => {}
        }
        let upstream = if self.down.is_reading() { None } else { upstream.gone() };
        match upstream {
            Some(PeerLoss::Broken(error)) => Some(RelayEnd::UpstreamBroke(error)),
            Some(PeerLoss::Closed) if self.down.is_over() => {
                Some(RelayEnd::PeerClosed(Side::Upstream))
            }
            Some(PeerLoss::Closed) | None => None,
        }
    }

    /// Writes the bytes that the client sent before its connection failed, but does not half-close
    /// the upstream. Returns `false` if the upstream cannot accept more bytes yet.
    pub(super) fn advance_rest_up(
        &mut self,
        buffer: &mut [u8],
        client: &mut RelaySocket,
        upstream: &mut RelaySocket,
    ) -> bool {
        self.up.advance_rest(buffer, client, upstream)
    }

    /// Writes the bytes that the upstream sent before its connection failed, but does not
    /// half-close the client. Returns `false` if the client cannot accept more bytes yet.
    pub(super) fn advance_rest_down(
        &mut self,
        buffer: &mut [u8],
        client: &mut RelaySocket,
        upstream: &mut RelaySocket,
    ) -> bool {
        self.down.advance_rest(buffer, upstream, client)
    }

    /// Returns what the relay waits for from the client and from the upstream. It waits for no
    /// bytes from a side while the other side does not accept the earlier ones.
    pub(super) fn waits_for(&self) -> (PollFlags, PollFlags) {
        let flags = |from: &Direction, to: &Direction| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, from.is_reading());
            flags.set(PollFlags::OUT, to.owes());
            flags
        };
        (flags(&self.up, &self.down), flags(&self.down, &self.up))
    }

    /// Returns whether the relay holds unwritten bytes of either direction.
    pub(crate) const fn owes(&self) -> bool {
        self.up.owes() || self.down.owes()
    }
}
