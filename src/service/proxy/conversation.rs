//! Holds a client and its upstream together until they have finished, or something ends it for
//! them.
//!
//! No side may take a break for an end: when one has broken, what it had said before is passed on,
//! and then the other is reset. Whatever else ends a conversation before its end, the drain
//! deadline above all, resets both. One that is to be carried comes to rest between two moves, and
//! nobody is told anything.

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

/// How long one side may take nothing of what it is owed after the other has broken. As long as TCP
/// may need for a segment that is lost four times: the first retransmission comes after 0.2 s, the
/// next one after twice that time, and so on.
const LINGER: Duration = Duration::from_secs(5);

/// A client and its upstream. There may be very many of them: all that one needs while it is idle
/// is in here, once.
pub(super) struct Conversation<'a> {
    client: &'a mut Connection,
    /// None when it has been given up.
    upstream: Option<Connected<'a>>,
    relay: Relay,
    limits: Limits,
    /// Whether nobody has to be told any more that it is over.
    is_settled: bool,
}

/// What came of holding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    ToTheEnd,
    /// It is to be given up.
    ToBeCarried,
}

/// What ended it.
enum Ended {
    Relay(Relayed),
    Limit(Expired),
    Asked,
}

impl<'a> Conversation<'a> {
    /// One that begins, or goes on.
    pub(super) const fn new(
        client: &'a mut Connection,
        upstream: Connected<'a>,
        relay: Relay,
        limits: Limits,
    ) -> Self {
        Self { client, upstream: Some(upstream), relay, limits, is_settled: false }
    }

    /// Relays to the end, or until it is to be given up.
    ///
    /// # Errors
    /// What it broke of, or which limit ended it in the middle.
    pub(super) async fn hold(&mut self) -> io::Result<Held> {
        match poll_fn(|cx| self.poll(cx)).await {
            Ended::Relay(Relayed::Finished) => self.finish(),
            // Nothing was under way: an end like any other.
            Ended::Limit(Expired::Idle) if !self.relay.owes() => self.finish(),
            Ended::Limit(expired) => return Err(expired.into()),
            Ended::Asked => return Ok(Held::ToBeCarried),
            // Nobody can take up what is left of it then, and nobody is to wait for it.
            Ended::Relay(Relayed::ClientBroke(error)) => {
                self.client.decline();
                Box::pin(self.settle_upstream()).await;
                return Err(error);
            }
            Ended::Relay(Relayed::UpstreamBroke(error)) => {
                self.client.decline();
                Box::pin(self.settle_client()).await;
                return Err(error);
            }
        }
        Ok(Held::ToTheEnd)
    }

    /// Gives it up as it stands.
    ///
    /// # Errors
    /// When the kernel will not end the watch over the upstream's socket.
    pub(super) fn give_up(mut self) -> io::Result<()> {
        let Some(upstream) = self.upstream.take() else { return Ok(()) };
        let (label, stream) = (upstream.label().to_owned(), upstream.stream);
        let carried = self.client.stream.carried() + stream.carried();
        let used = Used { carried, ..self.limits.used() };
        let parcel = carried::conversing(label, stream, std::mem::take(&mut self.relay), used);
        self.client.give_up(parcel.inspect_err(|_| self.client.stream.reset_on_drop())?);
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self {
            client, upstream: Some(Connected { stream: upstream, .. }), relay, limits, ..
        } = self
        else {
            return Poll::Pending;
        };
        if client.is_asked() {
            return Poll::Ready(Ended::Asked);
        }
        if let Poll::Ready(relayed) = relay.poll(cx, &mut client.stream, upstream) {
            return Poll::Ready(Ended::Relay(relayed));
        }
        limits.poll(cx, || client.stream.carried() + upstream.carried()).map(Ended::Limit)
    }

    /// It is over in order. The upstream's end is its close.
    fn finish(&mut self) {
        self.is_settled = true;
        self.upstream.iter().for_each(|upstream| upstream.stream.say_end());
    }

    /// Passes on what the client had said before it broke.
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

    /// Passes on what the upstream had said before it broke.
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
        // One that was given up is another's to end.
        let Some(upstream) = self.upstream.as_ref().filter(|_| !self.is_settled) else { return };
        self.client.stream.reset_on_drop();
        upstream.stream.reset_on_drop();
    }
}
