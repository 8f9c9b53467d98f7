//! Drains connections, and has those that can be carried go to the successor.
//!
//! They go one after another, each at a boundary of its service. How they arrive there is in
//! [`super::takeover`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::Server;
use super::census::Census;
use crate::carry::Outgoing;
use crate::drain::Way;
use crate::service::Service;

/// How it ended that connections went to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// None is left that might go.
    AllWent,
    /// The successor takes no more: it does not know how, was told to stop, or is dead.
    Alone,
}

impl<S: Service> Server<S> {
    /// How many connections there are that can be carried, by the name of their listener, where
    /// their number is limited. None if no listener's can be.
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

    /// Tells every connection to come to an end, but for those that are carried, if there is a
    /// channel to a `successor`: these are asked, one after another, to be given up. Without one
    /// nothing more is taken over from a predecessor either.
    pub(crate) fn drain(&mut self, successor: Option<OwnedFd>) {
        self.census.values().for_each(Census::begin_drain);
        // It may have carried some to a successor that has died, and been recalled.
        self.connections.turns().forget();
        self.drain.begin();
        let outgoing = successor.and_then(|channel| match Outgoing::new(channel) {
            Ok(outgoing) => Some(Arc::new(outgoing)),
            Err(error) => {
                tracing::error!(
                    event = "carry.unavailable", reason = %error,
                    "no connection can be carried: {error}"
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
            // Those that a predecessor is still carrying here are to go on as well.
            let all_went = async {
                taking.wait().await;
                turns.all_went().await;
            };
            // Or nobody else is to be sent: then the channel ends with the last answer.
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

    /// Waits until no more connections go to the successor: none is left that it might take, or it
    /// hears nothing any more. Pends for ever when none go. Cancel safe.
    pub(crate) async fn carry_ended(&self) -> CarryEnd {
        if let Some(mut ended) = self.carry_ended.clone() {
            if let Ok(end) = ended.wait_for(Option::is_some).await {
                return end.unwrap_or(CarryEnd::Alone);
            }
        }
        std::future::pending().await
    }

    /// Tells those to come to an end that were not carried.
    pub(crate) fn tell_the_rest(&mut self) {
        // What comes from a predecessor would not go on from here either.
        self.stop_taking.cancel();
        // In this order, so that one that was refused and ends in between is told of its end by one
        // word or the other.
        self.drain.tell_the_rest();
        self.end_carry();
    }

    /// Has no more connections go to the successor.
    pub(super) fn end_carry(&mut self) {
        self.connections.carry_to(None);
        self.connections.turns().end();
        // The task goes on until whoever has been sent has heard what the successor says.
        self.carry_ended = None;
    }

    /// Waits until it is known what became of those that were on their way to a successor that has
    /// died. Cancel safe.
    pub(crate) async fn settled(&self) {
        self.connections.settled().await;
    }

    /// The successor has died: how many of those are lost with it that it has taken over, at most.
    pub(crate) fn successor_lost(&self) -> u64 {
        self.census.values().map(Census::successor_lost).sum()
    }
}
