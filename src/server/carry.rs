//! The server's side of a drain: connections that can be carried move to the successor, and all
//! others are asked to finish.
//!
//! Each connection moves when its service reaches a message boundary. [`super::takeover`] is the
//! receiving side.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::Server;
use super::census::Census;
use crate::carry::Outgoing;
use crate::drain::Way;
use crate::service::Service;

/// Why no more connections are carried to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// All connections that could be carried have moved.
    AllWent,
    /// The successor accepts no more connections: it does not support carrying, was told to stop,
    /// or is dead.
    Alone,
}

impl<S: Service> Server<S> {
    /// Returns how many connections can be carried, for each listener with a connection limit.
    /// Returns `None` if no listener carries connections.
    pub(crate) fn carries(&self) -> Option<Vec<(usize, String)>> {
        let mut carried = self.names.iter().filter(|name| self.way(name) == Way::Carry).peekable();
        carried.peek()?;
        let open = |name: &Arc<str>| {
            let all = (0..self.workers.all().len())
                .filter_map(|worker| self.census.get(&(worker, Arc::clone(name))));
            all.map(Census::open).sum()
        };
        let limited = carried.filter(|name| self.places.contains_key(&***name));
        Some(limited.map(|name| (open(name), name.to_string())).collect())
    }

    /// Begins a drain: asks every connection to finish.
    ///
    /// If `successor` is a channel to the successor, connections that can be carried are asked to
    /// move there instead. Without a channel, this process also stops taking over connections from
    /// its own predecessor.
    pub(crate) fn drain(&mut self, successor: Option<OwnedFd>) {
        self.census.values().for_each(Census::begin_drain);
        // An earlier drain may have carried connections to a successor that died.
        self.connections.turns().forget();
        self.drain.begin();
        let outgoing = successor.and_then(|channel| match Outgoing::new(channel) {
            Ok(outgoing) => Some(Arc::new(outgoing)),
            Err(error) => {
                tracing::error!(
                    event = "carry.unavailable", reason = %error,
                    "cannot carry connections to the successor: {error}"
                );
                None
            }
        });
        let Some(outgoing) = outgoing else {
            self.stop_taking.cancel();
            self.drain.tell_the_rest();
            return;
        };
        self.connections.carry_to(Some(Arc::clone(&outgoing)));
        let turns = Arc::clone(self.connections.turns());
        turns.begin();
        let (taking, connections) = (self.taking.clone(), self.connections.clone());
        let (ended, carry_ended) = watch::channel(None);
        self.carry_ended = Some(carry_ended);
        self.carrying.spawn(async move {
            // Connections that the predecessor is still carrying here must move on as well.
            let all_went = async {
                taking.wait().await;
                turns.all_went().await;
            };
            // The carry may also be called off. It then ends with the answers to the connections
            // already sent.
            let called_off = async {
                outgoing.closed().await;
                connections.settled().await;
            };
            let end = tokio::select! {
                () = outgoing.answers() => CarryEnd::Alone,
                () = all_went => CarryEnd::AllWent,
                () = called_off => CarryEnd::AllWent,
            };
            ended.send_replace(Some(end));
        });
    }

    /// Waits until no more connections are carried to the successor, and returns the reason. Never
    /// returns if no carry has begun. Cancel safe.
    pub(crate) async fn carry_ended(&self) -> CarryEnd {
        if let Some(mut ended) = self.carry_ended.clone() {
            if let Ok(end) = ended.wait_for(Option::is_some).await {
                return end.unwrap_or(CarryEnd::Alone);
            }
        }
        std::future::pending().await
    }

    /// Asks the connections that were not carried to finish.
    pub(crate) fn tell_the_rest(&mut self) {
        // A connection that arrives from the predecessor now could not move on from here.
        self.stop_taking.cancel();
        // In this order, a refused connection has a request to finish at every moment: ending the
        // carry withdraws the refusal.
        self.drain.tell_the_rest();
        self.end_carry();
    }

    /// Stops carrying connections to the successor.
    pub(super) fn end_carry(&mut self) {
        self.connections.carry_to(None);
        self.connections.turns().end();
        // The task keeps running until the successor has answered for every connection already
        // sent.
        self.carry_ended = None;
    }

    /// Waits until the fate of every connection that was being sent to a dead successor is known.
    /// Cancel safe.
    pub(crate) async fn settled(&self) {
        self.connections.settled().await;
    }

    /// Records that the successor has died. Returns how many carried connections may be lost with
    /// it.
    pub(crate) fn successor_lost(&self) -> u64 {
        self.census.values().map(Census::successor_lost).sum()
    }
}
