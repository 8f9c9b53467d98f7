//! The server's part in moving open connections between processes. During a drain, connections move
//! to the successor. After a handoff, connections arrive from the predecessor.
//!
//! A connection moves while its service is between two messages. The module [`super::takeover`]
//! receives connections from the predecessor.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::Server;
use super::ledger::{ListenerEvents, ListenerLedger};
use super::takeover::TakingOver;
use crate::carry::{Incoming, Outgoing};
use crate::data_plane::{CarryEnd, CarryPlane};
use crate::drain::OnDrain;
use crate::error::Error;
use crate::report::CarryForecast;
use crate::service::Service;

/// Returns a sender that moves connections to the successor through `channel`. Returns `None` if
/// the channel cannot be registered with the tokio runtime.
pub(super) fn outgoing(channel: OwnedFd) -> Option<Arc<Outgoing>> {
    match Outgoing::new(channel) {
        Ok(outgoing) => Some(Arc::new(outgoing)),
        Err(error) => {
            tracing::error!(
                event = "carry.unavailable", reason = %error,
                "cannot move client connections to the successor, draining them here instead: \
                {error}"
            );
            None
        }
    }
}

impl<S: Service> CarryPlane for Server<S> {
    /// Returns how many connections may move to the successor, for each listener with a connection
    /// limit. Returns `None` if no listener is configured to move its connections.
    fn forecast(&self) -> Option<CarryForecast> {
        let mut carried =
            self.names.iter().filter(|name| self.on_drain(name) == OnDrain::Carry).peekable();
        carried.peek()?;
        let open = |name: &Arc<str>| {
            let all = (0..self.workers.all().len())
                .filter_map(|worker| self.ledgers.get(&(worker, Arc::clone(name))));
            all.map(ListenerLedger::open).sum()
        };
        let limited = carried.filter(|name| self.limit.contains_key(&***name));
        Some(limited.map(|name| (name.to_string(), open(name))).collect())
    }

    fn expect(&mut self, forecast: CarryForecast) {
        for (listener, count) in forecast.iter() {
            if let Some(limit) =
                self.limit.get(listener).filter(|_| self.on_drain(listener) == OnDrain::Carry)
            {
                limit.reserve(count);
            }
        }
    }

    fn expect_no_more(&mut self) {
        self.limit.values().for_each(|limit| limit.release_reserved());
    }

    fn take_over(&mut self, channel: OwnedFd) -> Result<(), Error> {
        let incoming = Incoming::new(channel)
            .map_err(Error::system("receive connections from the predecessor"))?;
        let names = self.names.iter().filter(|name| self.on_drain(name) == OnDrain::Carry);
        let names: Vec<_> = names.cloned().collect();
        let slots = names.iter().map(|name| (name.to_string(), self.slot(name, OnDrain::Carry)));
        let (slots, context) = (slots.collect(), Arc::clone(&self.context));
        let stop = self.taking.stop.clone();
        self.taking.all.spawn(TakingOver { incoming, context, slots, stop }.run());
        Ok(())
    }

    fn is_taking_over(&self) -> bool {
        !self.taking.all.is_empty()
    }

    async fn taken_over(&self) {
        self.taking.all.wait().await;
    }

    async fn carry_ended(&self) -> CarryEnd {
        if let Some(mut ended) = self.carrying.ended.clone() {
            if let Ok(end) = ended.wait_for(Option::is_some).await {
                return end.unwrap_or(CarryEnd::ReceiverGone);
            }
        }
        std::future::pending().await
    }

    fn drain_uncarried(&mut self) {
        // Accept no more connections from the predecessor, because they could no longer move on to
        // the successor.
        self.taking.stop.cancel();
        // Ask the connections to finish before the request to move is withdrawn. In the reverse
        // order, a connection that the successor has refused would briefly have neither request,
        // and might start another message.
        self.drain.drain_uncarried();
        self.end_carry();
    }

    async fn settled(&self) {
        self.context.settled().await;
    }

    fn lost_with_successor(&mut self) -> u64 {
        self.ledgers.values().map(|ledger| ledger.count(ListenerEvents::successor_lost)).sum()
    }
}

impl<S: Service> Server<S> {
    /// Stops moving connections to the successor.
    pub(super) fn end_carry(&mut self) {
        self.context.carry_to(None);
        self.context.scheduler.end();
        // Drop only the receiver of the result. The task in `carrying` continues until the
        // successor has answered for every connection that was sent.
        self.carrying.ended = None;
    }

    /// Asks every connection that can move to the successor to do so.
    pub(super) fn begin_carry(&mut self, outgoing: Arc<Outgoing>) {
        self.context.carry_to(Some(Arc::clone(&outgoing)));
        let scheduler = Arc::clone(&self.context.scheduler);
        scheduler.begin();
        let (taking, context) = (self.taking.all.clone(), Arc::clone(&self.context));
        let (ended, carry_ended) = watch::channel(None);
        self.carrying.ended = Some(carry_ended);
        self.carrying.all.spawn(async move {
            // Also wait for connections that still arrive from the predecessor, because they must
            // move on to the successor.
            let all_went = async {
                taking.wait().await;
                scheduler.all_went().await;
            };
            // After the channel is closed, no more connections are sent. The move then ends when
            // the outcome of every connection that was already sent is known.
            let called_off = async {
                outgoing.closed().await;
                context.settled().await;
            };
            let end = tokio::select! {
                () = outgoing.answers() => CarryEnd::ReceiverGone,
                () = all_went => CarryEnd::AllWent,
                () = called_off => CarryEnd::AllWent,
            };
            ended.send_replace(Some(end));
        });
    }
}
