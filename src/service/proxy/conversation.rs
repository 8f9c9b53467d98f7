//! A conversation between a client and its upstream, until both have finished or something ends it.
//!
//! A broken connection must not look like a regular end to the other side. If one side breaks, the
//! other gets the remaining bytes and then a reset. Any other early end, such as the drain
//! deadline, resets both sides. A conversation that is carried pauses between two moves, and
//! neither side notices.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;

use super::carried;
use super::connect::Connected;
use super::limits::{Expired, Limits, Used};
use crate::service::Connection;
use crate::service::relay::{Relay, Relayed};

/// After one side has broken, how long the other may accept no bytes. TCP needs about this long if
/// a segment is lost four times: it retransmits after 0.2 s and doubles the delay each time.
const LINGER: Duration = Duration::from_secs(5);

/// A client and its upstream. There may be very many conversations, so this holds everything an
/// idle one needs, exactly once.
pub(super) struct Conversation<'a> {
    client: &'a mut Connection,
    /// `None` after the conversation has been detached.
    upstream: Option<Connected<'a>>,
    relay: Relay,
    limits: Limits,
    /// Whether both sides have been told about the end.
    is_settled: bool,
}

/// The outcome of [`Conversation::hold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    ToTheEnd,
    /// The conversation is to be detached for the successor.
    ToBeCarried,
}

/// Why the relay stopped.
enum Ended {
    Relay(Relayed),
    Limit(Expired),
    Asked,
}

impl<'a> Conversation<'a> {
    /// Creates a conversation that begins here or was carried here.
    pub(super) const fn new(
        client: &'a mut Connection,
        upstream: Connected<'a>,
        relay: Relay,
        limits: Limits,
    ) -> Self {
        Self { client, upstream: Some(upstream), relay, limits, is_settled: false }
    }

    /// Relays to the end, or until the conversation should be detached.
    ///
    /// # Errors
    /// The I/O error that broke it, or the limit that ended it early.
    pub(super) async fn hold(&mut self) -> io::Result<Held> {
        match poll_fn(|cx| self.poll(cx)).await {
            Ended::Relay(Relayed::Finished) => self.finish(),
            // No bytes were pending, so this is a regular end.
            Ended::Limit(Expired::Idle) if !self.relay.owes() => self.finish(),
            Ended::Limit(expired) => return Err(expired.into()),
            Ended::Asked => return Ok(Held::ToBeCarried),
            // The rest of a broken conversation cannot be carried, and the drain must not wait for
            // it to move.
            Ended::Relay(Relayed::ClientBroke(error)) => {
                self.client.opt_out();
                Box::pin(self.settle_upstream()).await;
                return Err(error);
            }
            Ended::Relay(Relayed::UpstreamBroke(error)) => {
                self.client.opt_out();
                Box::pin(self.settle_client()).await;
                return Err(error);
            }
        }
        Ok(Held::ToTheEnd)
    }

    /// Detaches the conversation in its current state.
    ///
    /// # Errors
    /// When the kernel refuses to stop watching the upstream's socket.
    pub(super) fn detach(mut self) -> io::Result<()> {
        let Some(upstream) = self.upstream.take() else { return Ok(()) };
        let (label, stream) = (upstream.label().to_owned(), upstream.stream);
        let carried = self.client.stream.carried() + stream.carried();
        let used = Used { carried, ..self.limits.used() };
        let parcel = carried::conversing(label, stream, std::mem::take(&mut self.relay), used);
        self.client.detach(parcel.inspect_err(|_| self.client.stream.reset_on_drop())?);
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self {
            client, upstream: Some(Connected { stream: upstream, .. }), relay, limits, ..
        } = self
        else {
            return Poll::Pending;
        };
        if client.carry_requested() {
            return Poll::Ready(Ended::Asked);
        }
        if let Poll::Ready(relayed) = relay.poll(cx, &mut client.stream, upstream) {
            return Poll::Ready(Ended::Relay(relayed));
        }
        limits.poll(cx, || client.stream.carried() + upstream.carried()).map(Ended::Limit)
    }

    /// Marks a regular end. Closing the upstream's socket is what tells the upstream.
    fn finish(&mut self) {
        self.is_settled = true;
        self.upstream.iter().for_each(|upstream| upstream.stream.say_end());
    }

    /// Passes on what the client sent before its connection broke.
    async fn settle_upstream(&mut self) {
        let Self { client, upstream: Some(Connected { stream: upstream, .. }), relay, .. } = self
        else {
            return;
        };
        loop {
            let before = upstream.sent();
            let rest =
                timeout(LINGER, poll_fn(|cx| relay.poll_rest_up(cx, &mut client.stream, upstream)))
                    .await;
            if rest.is_ok() || upstream.sent() == before {
                return upstream.acknowledged(LINGER).await;
            }
        }
    }

    /// Passes on what the upstream sent before its connection broke.
    async fn settle_client(&mut self) {
        let Self { client, upstream: Some(Connected { stream: upstream, .. }), relay, .. } = self
        else {
            return;
        };
        let client = &mut client.stream;
        loop {
            let before = client.sent();
            let rest =
                timeout(LINGER, poll_fn(|cx| relay.poll_rest_down(cx, client, upstream))).await;
            if rest.is_ok() || client.sent() == before {
                return client.acknowledged(LINGER).await;
            }
        }
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        // A detached conversation has no upstream here and is ended by the process that continues
        // it.
        let Some(upstream) = self.upstream.as_ref().filter(|_| !self.is_settled) else { return };
        self.client.stream.reset_on_drop();
        upstream.stream.reset_on_drop();
    }
}
