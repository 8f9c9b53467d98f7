//! A relay: it moves bytes between two streams in both directions until both have ended.
//!
//! An idle connection holds no buffer. All connections of a thread share one, and only bytes that a
//! slow receiver does not accept yet are copied. A slow peer therefore costs one buffer at most. A
//! long transfer is spliced through a pipe and stays in the kernel.
//!
//! After a number of moves, a connection lets the thread's other connections run. Timeouts and
//! logging are left to the caller.

mod direction;
mod snapshot;

use std::io;
use std::task::{Context, Poll};

use crate::net::{Gone, Stream};
use direction::{Direction, End};
pub(crate) use snapshot::RelaySnapshot;

/// The two directions of a proxied connection.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// From the client to the upstream.
    up: Direction,
    /// From the upstream to the client.
    down: Direction,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Relayed {
    /// Both sides have ended, or one side has closed completely after its end. All bytes were
    /// passed on.
    Finished,
    /// The client's connection broke.
    ClientBroke(io::Error),
    /// The upstream's connection broke.
    UpstreamBroke(io::Error),
}

/// The side of a direction that broke.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Relay {
    /// Relays until both sides have ended or one has broken. Cancel safe: unwritten bytes are kept
    /// for the next call.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<Relayed> {
        // The end of the second direction is not passed on, because both sides are then closed at
        // once.
        let up = match self.up.poll(
            cx,
            client,
            upstream,
            if self.down.is_over() { End::Keep } else { End::Tell },
        ) {
            Poll::Ready(Err(Broken::Source(error))) => {
                return Poll::Ready(Relayed::ClientBroke(error));
            }
            Poll::Ready(Err(Broken::Sink(error))) => {
                return Poll::Ready(Relayed::UpstreamBroke(error));
            }
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        };
        let down = match self.down.poll(
            cx,
            upstream,
            client,
            if self.up.is_over() { End::Keep } else { End::Tell },
        ) {
            Poll::Ready(Err(Broken::Source(error))) => {
                return Poll::Ready(Relayed::UpstreamBroke(error));
            }
            Poll::Ready(Err(Broken::Sink(error))) => {
                return Poll::Ready(Relayed::ClientBroke(error));
            }
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        };
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Relayed::Finished);
        }
        // A pending read notices a broken side. If no read is pending, ask the kernel.
        let client = if self.up.is_reading() { Poll::Pending } else { client.poll_gone(cx) };
        match client {
            Poll::Ready(Gone::Broken(error)) => return Poll::Ready(Relayed::ClientBroke(error)),
            Poll::Ready(Gone::Closed) if self.up.is_over() => {
                return Poll::Ready(Relayed::Finished);
            }
            Poll::Ready(Gone::Closed) | Poll::Pending => {}
        }
        let upstream = if self.down.is_reading() { Poll::Pending } else { upstream.poll_gone(cx) };
        match upstream {
            Poll::Ready(Gone::Broken(error)) => Poll::Ready(Relayed::UpstreamBroke(error)),
            Poll::Ready(Gone::Closed) if self.down.is_over() => Poll::Ready(Relayed::Finished),
            Poll::Ready(Gone::Closed) | Poll::Pending => Poll::Pending,
        }
    }

    /// Passes on what the client sent before its connection broke, without an end. Ready when
    /// nothing is left.
    pub(crate) fn poll_rest_up(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<()> {
        self.up.poll_rest(cx, client, upstream)
    }

    /// Passes on what the upstream sent before its connection broke, without an end. Ready when
    /// nothing is left.
    pub(crate) fn poll_rest_down(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<()> {
        self.down.poll_rest(cx, upstream, client)
    }

    /// Returns whether either direction holds bytes that are not written yet.
    pub(crate) const fn owes(&self) -> bool {
        self.up.owes() || self.down.owes()
    }
}
