//! The receiving side of a carry: takes over connections from the predecessor while there is room
//! for them.
//!
//! A connection is prepared first, then acknowledged to the predecessor, and only then served.
//! Until the acknowledgement, it belongs to the predecessor. A connection that cannot be served
//! equally well here is refused and stays with the predecessor.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::census::{Census, Source};
use super::connection::{Connections, IncomingConnection};
use super::limit::ConnectionLimit;
use super::workers::{Worker, choose};
use crate::carry::{Answer, Arrival, CarriedConnection, Incoming};
use crate::drain::{DrainEntry, OnDrain};
use crate::net::{Peer, Stream, Traffic};
use crate::service::Service;

/// How many connections are taken over before a pause.
const STRETCH: u32 = 64;
/// How long that pause is. Tokio's timer has a resolution of one millisecond. The pauses take about
/// a third of the time, so that requests on other connections do not pile up while thousands are
/// carried.
const REST: Duration = Duration::from_millis(1);

/// How long to reserve permits for carried connections when none arrives. New clients do not wait
/// for busy connections, or for a predecessor that hangs. A connection that arrives later may
/// exceed the limit, unless the limit is lower here.
const PATIENCE: Duration = Duration::from_secs(1);

/// The task that takes over connections from the predecessor.
pub(super) struct TakingOver<S> {
    pub(super) incoming: Incoming,
    pub(super) connections: Connections<S>,
    pub(super) workers: Arc<[Worker]>,
    /// The listeners that accept carried connections, by name.
    pub(super) slots: HashMap<String, ListenerSlot>,
    pub(super) entry: DrainEntry,
    /// Stops the takeover. The predecessor sees the end of the channel, and keeps the remaining
    /// connections.
    pub(super) stop: CancellationToken,
}

/// The state of one listener that accepts carried connections.
pub(super) struct ListenerSlot {
    pub(super) name: Arc<str>,
    /// The census of this listener for each worker.
    pub(super) census: Vec<Census>,
    pub(super) limit: Option<Arc<ConnectionLimit>>,
}

impl<S: Service> TakingOver<S> {
    /// Takes over connections until the predecessor has no more, or the task is stopped.
    pub(super) async fn run(mut self) {
        let (mut taken, mut refused, mut pace) = (0_u64, 0_u64, Pace::default());
        let mut keeps = true;
        loop {
            let arrival = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                arrival = self.incoming.next() => arrival,
                () = sleep(PATIENCE), if keeps => {
                    keeps = false;
                    self.release_reserved();
                    continue;
                }
            };
            let (id, outcome) = match arrival {
                Arrival::Connection(arrived) => (arrived.id(), self.admit(*arrived)),
                Arrival::Damaged { id, why } => (id, Err(why)),
                Arrival::End => break,
            };
            match outcome {
                Ok((worker, newcomer)) => {
                    if let Err(error) = self.incoming.answer(id, Answer::Taken).await {
                        // Closing the channel tells the predecessor the same.
                        tracing::error!(
                            event = "carry.answer_failed", reason = %error,
                            "cannot answer the predecessor, taking no more: {error}"
                        );
                        break;
                    }
                    let _within = self.workers[worker].handle().enter();
                    self.connections.spawn(newcomer);
                    taken += 1;
                }
                Err(why) => {
                    tracing::debug!(
                        event = "carry.connection_refused",
                        reason = why,
                        "refused a connection from the predecessor: {why}"
                    );
                    refused += 1;
                    if let Err(error) = self.incoming.answer(id, Answer::Refused(why)).await {
                        tracing::error!(
                            event = "carry.answer_failed", reason = %error,
                            "cannot answer the predecessor, taking no more: {error}"
                        );
                        break;
                    }
                }
            }
            // Thousands of connections may follow, and other tasks need the processor too.
            pace.after_one().await;
        }
        self.release_reserved();
        if taken + refused > 0 {
            tracing::info!(
                event = "carry.taken_over",
                taken,
                refused,
                "took over {taken} connections from the predecessor, refused {refused}"
            );
        }
    }

    /// Releases the reserved permits to new clients.
    fn release_reserved(&self) {
        self.slots
            .values()
            .filter_map(|slot| slot.limit.as_ref())
            .for_each(|limit| limit.release_reserved());
    }

    /// Prepares a carried connection without any I/O on it. Returns it with the index of the worker
    /// that will serve it.
    fn admit(
        &self,
        CarriedConnection { head, socket, parcel }: CarriedConnection,
    ) -> Result<(usize, IncomingConnection<'_>), String> {
        let slot = self.slots.get(&head.listener);
        let slot = slot.ok_or_else(|| {
            format!("no listener {:?} takes connections over here", head.listener)
        })?;
        self.connections.service().accepts(&slot.name, &parcel)?;
        let place = match &slot.limit {
            Some(limit) => {
                let open = || slot.census.iter().map(Census::open).sum();
                let full = |_| format!("{} has as many connections as it may have", slot.name);
                Some(limit.acquire_for_carried(head.max_connections, open).map_err(full)?)
            }
            None => None,
        };
        let number = choose(&self.workers, 0);
        let worker = &self.workers[number];
        let _within = worker.handle().enter();
        let peer = head.peer.map_or(Peer::Unix, Peer::Tcp);
        let traffic = Traffic::so_far(head.received, head.sent);
        let stream = Stream::taken_up(socket, peer, traffic, head.peer_finished)
            .map_err(|error| error.to_string())?;
        let now = Instant::now();
        let since = now.checked_sub(Duration::from_millis(head.age_ms)).unwrap_or(now);
        let traffic = Arc::clone(stream.traffic());
        let counted =
            slot.census[number].enter(since, Source::Carried, traffic, worker.load(), place);
        let newcomer = IncomingConnection {
            stream,
            peer,
            listener: &slot.name,
            counted,
            on_drain: OnDrain::Carry,
            entry: &self.entry,
            parcel: Some(parcel),
        };
        Ok((number, newcomer))
    }
}

/// Yields the processor between connections, and pauses after each [`STRETCH`] of them.
#[derive(Debug, Default)]
struct Pace {
    since_rest: u32,
}

impl Pace {
    async fn after_one(&mut self) {
        self.since_rest += 1;
        if self.since_rest == STRETCH {
            self.since_rest = 0;
            sleep(REST).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The takeover pauses once after each stretch of connections.
    #[tokio::test]
    async fn others_have_the_processors_in_between_however_many_come() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        for _ in 0..10 * STRETCH {
            pace.after_one().await;
        }
        assert!(began.elapsed() >= 10 * REST);
    }
}
