//! Holds a client and its upstream together until they have finished, or something ends it for them.
//!
//! No side may take a break for an end: when one has broken, what it had said before is passed on, and then the other is reset.
//! Whatever else ends a conversation before its end, the drain deadline above all, resets both.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;

use super::connect::Connected;
use super::limits::{Expired, Limits};
use crate::net::Stream;
use crate::service::relay::{Relay, Relayed};

/// How long one side may take nothing of what it is owed after the other has broken.
const LINGER: Duration = Duration::from_secs(1);

/// A client and its upstream. There may be very many of them: all that one needs while it is idle is in here, once.
pub(super) struct Conversation<'a> {
    client: &'a mut Stream,
    upstream: Connected<'a>,
    relay: Relay,
    limits: Limits,
    /// Whether nobody has to be told any more that it is over.
    is_settled: bool,
}

/// What ended it.
enum Ended {
    Relay(Relayed),
    Limit(Expired),
}

impl<'a> Conversation<'a> {
    pub(super) fn new(client: &'a mut Stream, upstream: Connected<'a>, limits: Limits) -> Self {
        Self { client, upstream, relay: Relay::default(), limits, is_settled: false }
    }

    /// Relays to the end.
    ///
    /// # Errors
    /// What it broke of, or which limit ended it in the middle.
    pub(super) async fn hold(&mut self) -> io::Result<()> {
        match poll_fn(|cx| self.poll(cx)).await {
            Ended::Relay(Relayed::Finished) => self.is_settled = true,
            // Nothing was under way: an end like any other. The upstream's is its close.
            Ended::Limit(Expired::Idle) if !self.relay.owes() => self.is_settled = true,
            Ended::Limit(expired) => return Err(expired.into()),
            Ended::Relay(Relayed::ClientBroke(error)) => {
                Box::pin(self.settle_upstream()).await;
                return Err(error);
            }
            Ended::Relay(Relayed::UpstreamBroke(error)) => {
                Box::pin(self.settle_client()).await;
                return Err(error);
            }
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { client, upstream: Connected { stream: upstream, .. }, relay, limits, .. } = self;
        if let Poll::Ready(relayed) = relay.poll(cx, client, upstream) {
            return Poll::Ready(Ended::Relay(relayed));
        }
        limits.poll(cx, || client.carried() + upstream.carried()).map(Ended::Limit)
    }

    /// Passes on what the client had said before it broke.
    async fn settle_upstream(&mut self) {
        let Self { client, upstream: Connected { stream: upstream, .. }, relay, .. } = self;
        loop {
            let before = upstream.sent();
            let rest = timeout(LINGER, poll_fn(|cx| relay.poll_rest_up(cx, client, upstream))).await;
            if rest.is_ok() || upstream.sent() == before {
                return upstream.acknowledged(LINGER).await;
            }
        }
    }

    /// Passes on what the upstream had said before it broke.
    async fn settle_client(&mut self) {
        let Self { client, upstream: Connected { stream: upstream, .. }, relay, .. } = self;
        loop {
            let before = client.sent();
            let rest = timeout(LINGER, poll_fn(|cx| relay.poll_rest_down(cx, client, upstream))).await;
            if rest.is_ok() || client.sent() == before {
                return client.acknowledged(LINGER).await;
            }
        }
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.client.reset_on_drop();
            self.upstream.stream.reset_on_drop();
        }
    }
}
