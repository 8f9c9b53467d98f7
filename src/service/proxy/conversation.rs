//! A conversation between a client and its upstream. It lasts until both sides have finished, or
//! until a failure or a time limit ends it.
//!
//! A failed connection must not look like a regular end to the other side. If one side fails, the
//! other side receives the remaining bytes and then a reset. Any other early end, such as the drain
//! deadline, resets both sides. When a conversation moves to another process, both sides notice
//! only a short pause.

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

/// After one side has failed, how long the other side may go without accepting any bytes. Even a
/// segment that TCP loses four times arrives earlier, after about 3 s: TCP retransmits after 0.2 s
/// and doubles the delay each time.
const LINGER: Duration = Duration::from_secs(5);

/// A conversation between a client and its upstream. A process may hold very many conversations, so
/// this type stores only the data that an idle conversation needs.
pub(super) struct ProxySession<'a> {
    client: &'a mut Connection,
    /// The connection to the upstream. `None` after the conversation has left this process.
    upstream: Option<Connected>,
    relay: Relay,
    limits: Limits,
    /// Whether the conversation has ended normally. If not, dropping this value resets both
    /// connections.
    is_settled: bool,
}

/// The outcome of [`ProxySession::hold`], which relays bytes until the conversation ends or must
/// move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionOutcome {
    ToTheEnd,
    /// The conversation must move to the successor, because the server has requested the move.
    ToBeCarried,
}

/// Why the conversation stopped relaying bytes.
enum Ended {
    Relay(Relayed),
    Limit(Expired),
    Asked,
}

impl<'a> ProxySession<'a> {
    /// Creates a conversation that begins in this process or has moved here from another process.
    pub(super) const fn new(
        client: &'a mut Connection,
        upstream: Connected,
        relay: Relay,
        limits: Limits,
    ) -> Self {
        Self { client, upstream: Some(upstream), relay, limits, is_settled: false }
    }

    /// Relays bytes until the conversation ends, or until the server asks to move it to the
    /// successor.
    ///
    /// # Errors
    /// Returns the I/O error that broke the conversation, or the time limit that ended it.
    pub(super) async fn hold(&mut self) -> io::Result<SessionOutcome> {
        match poll_fn(|cx| self.poll(cx)).await {
            Ended::Relay(Relayed::Finished) => self.finish(),
            // An idle conversation without unwritten bytes ends as if both sides had finished.
            Ended::Limit(Expired::Idle) if !self.relay.owes() => self.finish(),
            Ended::Limit(expired) => return Err(expired.into()),
            Ended::Asked => return Ok(SessionOutcome::ToBeCarried),
            // Exclude a failed conversation from the move to a successor. Otherwise a drain would
            // wait for it to move, although it cannot.
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
        Ok(SessionOutcome::ToTheEnd)
    }

    /// Detaches the conversation: saves its current state, so that another process can continue it.
    ///
    /// # Errors
    /// Fails if the kernel refuses to stop watching the upstream's socket.
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

    /// Records a regular end of the conversation. Half-closes the upstream's socket if another
    /// process shares it. Otherwise the upstream would not notice that this process closes the
    /// socket.
    fn finish(&mut self) {
        self.is_settled = true;
        self.upstream.iter().for_each(|upstream| upstream.stream.say_end());
    }

    /// Forwards to the upstream the bytes that the client sent before its connection failed.
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

    /// Forwards to the client the bytes that the upstream sent before its connection failed.
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

impl Drop for ProxySession<'_> {
    fn drop(&mut self) {
        // Do nothing if the conversation has moved to another process or has ended normally.
        let Some(upstream) = self.upstream.as_ref().filter(|_| !self.is_settled) else { return };
        self.client.stream.reset_on_drop();
        upstream.stream.reset_on_drop();
    }
}
