//! Relays bytes between two streams, both ways at once, until both have ended.
//!
//! An idle connection holds nothing: bytes are read into a buffer that the thread shares and
//! written at once, and only what the other side would not take is kept; then that side alone is
//! waited for, so one slow peer costs one buffer and no more. A long transfer goes through a pipe
//! instead, within the kernel. Nobody keeps the thread: after so many moves a connection lets the
//! others have their turn. When to give up, and what a connection was for, is decided by whoever
//! relays.

mod direction;
mod still;

use std::io;
use std::task::{Context, Poll};

use crate::net::{Gone, Stream};
use direction::{Direction, End};
pub(crate) use still::Still;

/// Both ways of a connection.
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
    /// Both sides have ended, or one is gone for good after its end. All that was said was passed
    /// on.
    Finished,
    /// The client's connection broke.
    ClientBroke(io::Error),
    /// The upstream's connection broke.
    UpstreamBroke(io::Error),
}

/// On which side of a direction something broke.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Relay {
    /// Relays until both sides have ended, or one has broken. What it owes when it is given up is
    /// still owed when it goes on.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<Relayed> {
        // The end of the second direction need not be told: both sides are closed at once.
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
        // A read tells when a side has broken. Where none is under way the kernel has to be asked.
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

    /// After the client has broken: passes on what it had said before, but no end. Ready when there
    /// is no more of it.
    pub(crate) fn poll_rest_up(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<()> {
        self.up.poll_rest(cx, client, upstream)
    }

    /// The same after the upstream has broken.
    pub(crate) fn poll_rest_down(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Stream,
        upstream: &mut Stream,
    ) -> Poll<()> {
        self.down.poll_rest(cx, upstream, client)
    }

    /// Whether something was read that nobody has taken yet.
    pub(crate) const fn owes(&self) -> bool {
        self.up.owes() || self.down.owes()
    }
}
