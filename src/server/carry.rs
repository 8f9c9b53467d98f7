//! How the server moves open connections between processes. During a drain, connections move to the
//! successor. After a handoff, connections arrive from the predecessor.
//!
//! A connection moves while its service is between two messages. The module [`super::takeover`]
//! receives connections from the predecessor.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Server;
use super::takeover::TakingOver;
use crate::carry::CarryEnd;
use crate::data_plane::CarryPlane;
use crate::drain::OnDrain;
use crate::error::Error;
use crate::ledger::{ListenerEvents, ListenerLedger};
use crate::report::CarryForecast;
use crate::service::Service;

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

    fn expect_carried(&mut self, forecast: CarryForecast) {
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
        let names = self.names.iter().filter(|name| self.on_drain(name) == OnDrain::Carry);
        let names: Vec<_> = names.cloned().collect();
        let slots =
            names.iter().map(|name| (name.to_string(), Arc::new(self.slot(name, OnDrain::Carry))));
        let (slots, context) = (slots.collect(), Arc::clone(&self.context));
        self.taking
            .begin(channel, TakingOver { context, slots })
            .map_err(Error::system("receive connections from the old process"))
    }

    fn is_taking_over(&self) -> bool {
        !self.taking.tracker().is_empty()
    }

    async fn taken_over(&self) {
        self.taking.tracker().wait().await;
    }

    async fn carry_ended(&self) -> CarryEnd {
        self.carrying.ended().await
    }

    fn drain_uncarried(&mut self) {
        // Accept no more connections from the predecessor, because they could no longer move on to
        // the successor.
        self.taking.stop();
        // Ask the connections to finish before the request to move is withdrawn. In the reverse
        // order, a connection that the successor has refused would briefly have neither request,
        // and might start another message.
        self.drain.drain_uncarried();
        self.carrying.end();
    }

    async fn settled(&self) {
        self.carrying.departures().settled().await;
    }

    fn lost_with_successor(&mut self) -> u64 {
        self.ledgers.values().map(|ledger| ledger.count(ListenerEvents::successor_lost)).sum()
    }
}
