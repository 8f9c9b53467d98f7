//! This module sends the connections of this process to the successor.
//!
//! The tasks of all connections share one [`Departures`]: the scheduler that asks connections to
//! move, and the channel through which they move. The server begins and ends the move through its
//! [`DepartureTasks`].

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::outgoing::{Outgoing, OutgoingConnection, SendResult};
use super::scheduler::{CarryScheduler, CarrySlot};

/// The scheduler and the channel that move connections to the successor, shared by all connections
/// of a server.
#[derive(Debug)]
pub(crate) struct Departures {
    /// The scheduler that asks connections to move to the successor.
    scheduler: Arc<CarryScheduler>,
    /// The channel through which connections move, or `None` if they do not move at the moment.
    successor: Mutex<Option<Arc<Outgoing>>>,
    /// The connections that are being sent to the successor. A connection is counted here until it
    /// has moved or this process has decided to keep it.
    leaving: TaskTracker,
}

/// The outcome of sending a connection to the successor.
#[derive(Debug)]
pub(crate) enum Departure {
    /// The connection belongs to the successor from now on. The caller keeps the token until it has
    /// counted the move, because [`Departures::settled`] waits for this.
    Taken(TaskTrackerToken),
    /// The connection stays in this process, which must drain it, because the successor has refused
    /// it.
    Refused,
    /// The connection stays in this process, because no successor accepts connections any more.
    Kept,
}

/// The reason why no more connections will move to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// Every connection that could move to the successor has moved, ended or been refused.
    AllWent,
    /// The successor takes no more connections: it does not support carrying, was told to stop, or
    /// is dead.
    ReceiverGone,
}

impl Default for Departures {
    fn default() -> Self {
        let leaving = TaskTracker::new();
        leaving.close();
        Self { scheduler: Arc::default(), successor: Mutex::default(), leaving }
    }
}

/// Connections that register with the scheduler only when they can move at once. So a server with
/// very many connections does not need memory for all their registrations.
pub(crate) trait UnregisteredConnections: Send + 'static {
    /// Registers the connections one after another, as soon as [`Departures::has_room`] allows it,
    /// until no connection is left or the move has ended. Cancel safe.
    fn register_all(&self) -> impl Future<Output = ()> + Send;

    /// Returns whether a connection is left that may move but is not registered.
    fn is_any_left(&self) -> bool;
}

/// A server whose connections all register with the scheduler when they begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllRegistered;

impl UnregisteredConnections for AllRegistered {
    async fn register_all(&self) {}

    fn is_any_left(&self) -> bool {
        false
    }
}

impl Departures {
    /// Waits until the scheduler has a free permit for another connection, and returns `true`.
    /// Returns `false` if connections do not move at the moment. Cancel safe.
    #[cfg(feature = "proxy")]
    pub(crate) async fn has_room(&self) -> bool {
        self.scheduler.has_room().await
    }

    /// Registers a connection that can move to a successor.
    pub(crate) fn register(&self) -> CarrySlot {
        CarrySlot::new(Arc::clone(&self.scheduler))
    }

    /// Sends a connection to the successor, and waits for the answer. `slot` is the registration of
    /// the connection.
    ///
    /// Not cancel safe: if the future is dropped, it is unknown which process owns the connection.
    /// The caller may then only close its file descriptor.
    pub(crate) async fn send(
        &self,
        slot: &CarrySlot,
        connection: &OutgoingConnection<'_>,
    ) -> Departure {
        let leaving = self.leaving.token();
        let successor = self.successor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let verdict = match successor {
            Some(successor) => successor.hand_over(connection).await,
            None => SendResult::NoReceiver,
        };
        match verdict {
            SendResult::Taken => Departure::Taken(leaving),
            SendResult::Refused(why) => {
                let OutgoingConnection { listener, peer, .. } = connection;
                tracing::debug!(
                    event = "carry.connection_declined", listener, %peer, reason = why,
                    "the new process did not take over a client connection, which stays in this \
                    process: {why}"
                );
                slot.refused();
                Departure::Refused
            }
            SendResult::NoReceiver => {
                slot.withdraw();
                Departure::Kept
            }
        }
    }

    /// Waits until the outcome of every connection that is being sent to the successor is known and
    /// counted. Cancel safe.
    pub(crate) async fn settled(&self) {
        self.leaving.wait().await;
    }

    /// Waits until every connection that can move has moved, ended or been refused.
    async fn all_went(&self, arriving: &TaskTracker, others: &impl UnregisteredConnections) {
        others.register_all().await;
        // Also wait for connections that still arrive from the predecessor, because they must move
        // on to the successor. This may take long, because the predecessor may hang.
        arriving.wait().await;
        loop {
            others.register_all().await;
            self.scheduler.all_went().await;
            // Check the unregistered connections last. A connection that did not move may have
            // become one of them, but it stays registered until then. So no connection is
            // overlooked.
            if !others.is_any_left() {
                return;
            }
        }
    }

    /// Sets the channel through which connections move to the successor. With `None`, connections
    /// that have not been sent yet stay in this process.
    fn carry_to(&self, successor: Option<Arc<Outgoing>>) {
        let mut current = self.successor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = std::mem::replace(&mut *current, successor) {
            last.close();
        }
    }
}

/// The tasks that read the successor's answers while connections move to it.
#[derive(Debug, Default)]
pub(crate) struct DepartureTasks {
    departures: Arc<Departures>,
    all: JoinSet<()>,
    /// The receiver for the result of the most recent task.
    ended: Option<watch::Receiver<Option<CarryEnd>>>,
}

impl DepartureTasks {
    /// Creates the server's end of `departures`.
    pub(crate) fn new(departures: Arc<Departures>) -> Self {
        Self { departures, ..Self::default() }
    }

    /// Returns the scheduler and the channel that the connections share.
    pub(crate) const fn departures(&self) -> &Arc<Departures> {
        &self.departures
    }

    /// Begins to move all connections that can move to the successor, through `channel`. `arriving`
    /// tracks the tasks that still take over connections from the predecessor. `others` are the
    /// connections that are not registered yet. Returns `false` if connections cannot move, because
    /// the channel cannot be registered with the tokio runtime.
    pub(crate) fn begin(
        &mut self,
        channel: OwnedFd,
        arriving: TaskTracker,
        others: impl UnregisteredConnections + Sync,
    ) -> bool {
        let outgoing = match Outgoing::new(channel) {
            Ok(outgoing) => Arc::new(outgoing),
            Err(error) => {
                tracing::error!(
                    event = "carry.unavailable", reason = %error,
                    "cannot move client connections to the new process, so they stay in this \
                    process: {error}"
                );
                return false;
            }
        };
        let departures = Arc::clone(&self.departures);
        departures.carry_to(Some(Arc::clone(&outgoing)));
        departures.scheduler.begin();
        let (ended, carry_ended) = watch::channel(None);
        self.ended = Some(carry_ended);
        self.all.spawn(async move {
            let all_went = departures.all_went(&arriving, &others);
            // After the channel is closed, no more connections are sent. The move then ends when
            // the outcome of every connection that was already sent is known.
            let called_off = async {
                outgoing.closed().await;
                departures.settled().await;
            };
            let end = tokio::select! {
                () = outgoing.answers() => CarryEnd::ReceiverGone,
                () = all_went => CarryEnd::AllWent,
                () = called_off => CarryEnd::AllWent,
            };
            ended.send_replace(Some(end));
        });
        true
    }

    /// Stops moving connections to the successor.
    pub(crate) fn end(&mut self) {
        self.departures.carry_to(None);
        self.departures.scheduler.end();
        // Drop only the receiver of the result. The task in `all` continues until the successor has
        // answered for every connection that was sent.
        self.ended = None;
    }

    /// Waits until no more connections will move to the successor, and returns the reason. Waits
    /// forever if connections have not begun to move. Cancel safe.
    pub(crate) async fn ended(&self) -> CarryEnd {
        if let Some(mut ended) = self.ended.clone() {
            if let Ok(end) = ended.wait_for(Option::is_some).await {
                return end.unwrap_or(CarryEnd::ReceiverGone);
            }
        }
        std::future::pending().await
    }
}
