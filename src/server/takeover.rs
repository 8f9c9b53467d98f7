//! The successor's side of connection transfer. This module takes over open connections from the
//! predecessor, or refuses them.
//!
//! The successor prepares a connection, sends an answer to the predecessor, and only then serves
//! the connection. Until the answer is sent, the connection belongs to the predecessor. The
//! successor refuses a connection that it cannot serve, for example because the listener's
//! connection limit is reached. The predecessor then keeps the connection.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::connection::{ConnectionContext, ConnectionTask};
use super::listener::ListenerSlot;
use super::workers::choose;
use crate::carry::{Arrival, CarriedConnection, CarryAnswer, Declined, Incoming};
use crate::net::{Peer, Stream, Traffic};
use crate::service::Service;

/// How many connections to take over before a pause of [`REST`].
const STRETCH: u32 = 64;
/// How long to pause after every [`STRETCH`] connections that arrive. The pauses take about a third
/// of the total time, so that requests on other connections do not pile up. Tokio's timer cannot
/// wait for less than one millisecond.
const REST: Duration = Duration::from_millis(1);

/// How long to keep permits reserved while no connection arrives from the predecessor. After that,
/// the reserved permits go to new clients. Otherwise new clients might wait for a predecessor that
/// hangs or for connections that are busy. A connection that arrives later may exceed the
/// listener's limit, unless this process has a lower limit than the predecessor.
const PATIENCE: Duration = Duration::from_secs(1);

/// The task that takes over connections from the predecessor.
pub(super) struct TakingOver<S> {
    pub(super) incoming: Incoming,
    pub(super) context: Arc<ConnectionContext<S>>,
    /// The listeners that accept connections from the predecessor, by name.
    pub(super) slots: HashMap<String, ListenerSlot<S>>,
    /// A token that stops this task when it is cancelled. The predecessor then sees that the
    /// channel is closed, and keeps the connections that have not moved.
    pub(super) stop: CancellationToken,
}

/// A connection that this process can take over. It is served only after the answer has been sent
/// to the predecessor.
struct PreparedConnection<'a, S> {
    slot: &'a ListenerSlot<S>,
    worker: usize,
    task: ConnectionTask<S>,
}

impl<S: Service> TakingOver<S> {
    /// Takes over connections until the predecessor closes the channel, or until `stop` is
    /// cancelled.
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
            let (id, prepared) = match arrival {
                Arrival::Connection(arrived) => (arrived.id(), self.prepare(*arrived)),
                Arrival::Damaged { id, why } => (id, Err(why.into())),
                Arrival::End => break,
            };
            let is_taken = prepared.is_ok();
            refused += u64::from(!is_taken);
            if let Err(error) = self.answer(id, prepared).await {
                // Stop receiving, which closes the channel. The predecessor then knows that this
                // process did not take the connection.
                tracing::error!(
                    event = "carry.answer_failed", reason = %error,
                    "cannot reply to the predecessor, which must drain its remaining connections \
                    itself: {error}"
                );
                break;
            }
            taken += u64::from(is_taken);
            // Let other tasks run before the next connection, because thousands of connections may
            // arrive.
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

    /// Sends the answer to the predecessor. Then serves the connection, unless it is refused.
    async fn answer(
        &self,
        id: u64,
        prepared: Result<PreparedConnection<'_, S>, Declined>,
    ) -> io::Result<()> {
        match prepared {
            Ok(PreparedConnection { slot, worker, task }) => {
                self.incoming.answer(id, CarryAnswer::Taken).await?;
                slot.start(worker, task);
                Ok(())
            }
            Err(why) => {
                tracing::debug!(
                    event = "carry.connection_refused",
                    reason = %why,
                    "did not take over a client connection, which the predecessor drains instead: \
                    {why}"
                );
                self.incoming.answer(id, CarryAnswer::Refused(why.to_string())).await
            }
        }
    }

    /// Makes the permits that are reserved for the predecessor's connections available to new
    /// clients.
    fn release_reserved(&self) {
        self.slots
            .values()
            .filter_map(|slot| slot.limit.as_ref())
            .for_each(|limit| limit.release_reserved());
    }

    /// Prepares a connection from the predecessor, without reading from the socket or writing to
    /// it. Returns the reason if this process refuses the connection.
    fn prepare(
        &self,
        CarriedConnection { head, socket, parcel }: CarriedConnection,
    ) -> Result<PreparedConnection<'_, S>, Declined> {
        let slot = self.slots.get(&head.listener);
        let slot = slot.ok_or_else(|| {
            format!("the successor has no listener {:?} that takes over connections", head.listener)
        })?;
        self.context.service.accepts(&slot.name, &parcel)?;
        let permit = match &slot.limit {
            Some(limit) => {
                let full =
                    || format!("the listener {} has reached its connection limit", slot.name);
                Some(limit.acquire_for_carried(head.max_connections).ok_or_else(full)?)
            }
            None => None,
        };
        let worker = choose(&slot.workers, 0);
        let _within = slot.enter(worker);
        let peer = head.peer.map_or(Peer::Unix, Peer::Tcp);
        let traffic = Traffic::so_far(head.received, head.sent);
        let stream = Stream::taken_up(socket, peer, traffic, head.peer_finished)
            .map_err(|error| error.to_string())?;
        let now = Instant::now();
        let since = now.checked_sub(Duration::from_millis(head.age_ms)).unwrap_or(now);
        let task = slot.prepare(worker, (stream, peer), since, permit, Some(parcel));
        Ok(PreparedConnection { slot, worker, task })
    }
}

/// A rate limiter for the takeover. It lets other tasks run after each connection, and pauses after
/// every [`STRETCH`] connections.
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

    /// [`Pace`] pauses for [`REST`] after every [`STRETCH`] connections.
    #[tokio::test]
    async fn others_have_the_processors_in_between_however_many_come() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        for _ in 0..10 * STRETCH {
            pace.after_one().await;
        }
        assert!(began.elapsed() >= 10 * REST);
    }
}
