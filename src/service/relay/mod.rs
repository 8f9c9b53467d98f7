//! A relay: it moves bytes between two streams in both directions, until both streams have
//! half-closed.
//!
//! An idle connection holds no buffer, because all connections of a thread share one. The relay
//! copies only those bytes that a slow receiver does not accept yet, at most one buffer. Long
//! transfers go through a pipe with splice(2), so their bytes never leave the kernel.
//!
//! After moving bytes a few times, a relay lets other connections of the thread run. The caller of
//! the relay applies timeouts and writes the log.

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
    /// The direction from the client to the upstream.
    up: Direction,
    /// The direction from the upstream to the client.
    down: Direction,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Relayed {
    /// The relay has passed on all bytes. Either both sides have half-closed, or one side has
    /// half-closed and then closed its connection.
    Finished,
    /// The client's connection failed with this error.
    ClientBroke(io::Error),
    /// The upstream's connection failed with this error.
    UpstreamBroke(io::Error),
}

/// The side of a direction, source or sink, whose connection failed.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Relay {
    /// Relays until both sides have half-closed or one connection has failed. Cancel safe: the next
    /// call continues with the unwritten bytes.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<Relayed> {
        match self.poll_bytes(cx, client, upstream) {
            Poll::Ready(relayed) => Poll::Ready(relayed),
            Poll::Pending => self.poll_failure(cx, client, upstream),
        }
    }

    /// Moves bytes in both directions, until both directions have ended or one connection has
    /// failed.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<Relayed> {
        // The direction that ends last does not half-close its sink, because the caller then closes
        // both sides at once.
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
        Poll::Pending
    }

    /// Asks the kernel whether a connection has failed, but only if no pending read on it would
    /// notice the failure.
    fn poll_failure(
        &self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<Relayed> {
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

    /// Writes the bytes that the client sent before its connection failed, but does not half-close
    /// the upstream. Completes when no bytes are left.
    pub(crate) fn poll_rest_up(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<()> {
        self.up.poll_rest(cx, client, upstream)
    }

    /// Writes the bytes that the upstream sent before its connection failed, but does not
    /// half-close the client. Completes when no bytes are left.
    pub(crate) fn poll_rest_down(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<()> {
        self.down.poll_rest(cx, upstream, client)
    }

    /// Returns whether the relay holds unwritten bytes of either direction.
    pub(crate) const fn owes(&self) -> bool {
        self.up.owes() || self.down.owes()
    }
}
