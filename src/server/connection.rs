//! The task of one connection. It serves the connection until the connection ends, is cut, or moves
//! to the successor. Then it counts and logs how the connection ended.
//!
//! To move a connection, the service first detaches it: it stops serving the connection and saves
//! its state. The task then sends the connection to the successor. If the successor does not take
//! the connection, the service continues to serve it in this process.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::ledger::EntryEnd;
use super::slot::ConnectionSlot;
use crate::carry::{
    CarriedState, CarryScheduler, CarrySlot, Outgoing, OutgoingConnection, Verdict,
};
use crate::drain::{DrainEntry, DrainGuard, OnDrain};
use crate::net::{Peer, Stream};
use crate::service::{Admission, Connection, Service};

/// How long to wait for the peer to close the connection after the service has finished. If this
/// process closed first, the kernel could send a reset, which destroys the last reply.
const LINGER: Duration = Duration::from_secs(1);

/// The state that all connections of a server share. Clones share the same state.
#[derive(Debug)]
pub(super) struct ConnectionSpawner<S>(Arc<SharedParts<S>>);

#[derive(Debug)]
struct SharedParts<S> {
    service: S,
    first_request_grace: Duration,
    /// The connection limits of the listeners. A listener without a limit is not in this map.
    limits: HashMap<String, NonZeroUsize>,
    /// The scheduler that asks connections to move to the successor, and the channel through which
    /// they move.
    scheduler: Arc<CarryScheduler>,
    successor: Mutex<Option<Arc<Outgoing>>>,
    /// Counts the connections that are being sent to the successor, until each is taken or stays
    /// here.
    leaving: TaskTracker,
}

/// A new connection that is about to be served.
pub(super) struct IncomingConnection<'a> {
    pub(super) stream: Stream,
    pub(super) peer: Peer,
    pub(super) listener: &'a Arc<str>,
    pub(super) slot: ConnectionSlot,
    /// What happens to the connection in a drain, and the entry that adds it to the drain.
    pub(super) on_drain: OnDrain,
    pub(super) entry: &'a DrainEntry,
    /// The state that the predecessor has saved, if the connection moved here from the predecessor.
    pub(super) parcel: Option<CarriedState>,
}

// This is not derived, because a derived `Clone` would require the service to be `Clone`.
impl<S> Clone for ConnectionSpawner<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Service> ConnectionSpawner<S> {
    pub(super) fn new(
        service: S,
        first_request_grace: Duration,
        limits: HashMap<String, NonZeroUsize>,
    ) -> Self {
        let (scheduler, successor, leaving) =
            (Arc::default(), Mutex::default(), TaskTracker::new());
        leaving.close();
        Self(Arc::new(SharedParts {
            service,
            first_request_grace,
            limits,
            scheduler,
            successor,
            leaving,
        }))
    }

    /// Returns the service.
    pub(super) fn service(&self) -> &S {
        &self.0.service
    }

    /// Returns the scheduler that asks connections to move to the successor.
    pub(super) fn scheduler(&self) -> &Arc<CarryScheduler> {
        &self.0.scheduler
    }

    /// Waits until every connection that is being sent to the successor has been taken or stays
    /// here, and has been counted. Cancel safe.
    pub(super) async fn settled(&self) {
        self.0.leaving.wait().await;
    }

    /// Sets the channel through which connections move to the successor. With `None`, connections
    /// that are not sent yet stay here.
    pub(super) fn carry_to(&self, successor: Option<Arc<Outgoing>>) {
        let mut current = self.0.successor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = std::mem::replace(&mut *current, successor) {
            last.close();
        }
    }

    /// Serves a connection in a separate task. The drain counts the connection and waits for its
    /// end. Must be called in a tokio runtime.
    pub(super) fn spawn(&self, incoming: IncomingConnection<'_>) {
        let IncomingConnection { stream, peer, listener, slot, on_drain, entry, parcel } = incoming;
        let (watch, guard) = entry.admit();
        // Box this state to save memory, because most connections do not need it.
        let mut asking = (on_drain == OnDrain::Carry)
            .then(|| Box::new(CarrySlot::new(Arc::clone(&self.0.scheduler))));
        let mut connection = Connection::new(Admission {
            stream,
            peer,
            listener: Arc::clone(listener),
            drain: watch,
            word: asking.as_ref().map(|asking| Arc::clone(asking.word())),
            parcel,
            first_request_grace: self.0.first_request_grace,
        });
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let ending = loop {
                let served = {
                    // Pin the future in place, because passing it by value would reserve memory for
                    // a second copy.
                    let serving = pin!(async {
                        shared.service.serve(&mut connection).await?;
                        Ok(match connection.detached_state() {
                            None => {
                                Served::Finished { late: connection.stream.finish(LINGER).await }
                            }
                            Some(_) => Served::GivenUp,
                        })
                    });
                    guard.unless_cut(in_turn(serving, asking.as_deref_mut())).await
                };
                break match served {
                    Some(Ok(Served::Finished { late })) => Ending::Finished { late },
                    // Box this future, because otherwise every connection would reserve memory for
                    // it.
                    Some(Ok(Served::GivenUp)) => {
                        match Box::pin(shared.leave(
                            &connection,
                            &slot,
                            asking.as_deref_mut(),
                            &guard,
                        ))
                        .await
                        {
                            Some(ending) => ending,
                            None => {
                                connection.stay();
                                continue;
                            }
                        }
                    }
                    Some(Err(error)) => Ending::Broken(error),
                    None => Ending::Cut,
                };
            };
            report(&connection, &slot, &ending);
            let is_told = connection.is_told();
            // Close the file descriptor before the counters show that the connection is gone.
            drop(connection);
            slot.end(match &ending {
                Ending::Cut => EntryEnd::Cut,
                Ending::Carried(_) => EntryEnd::Carried,
                Ending::Finished { .. } | Ending::Broken(_) if is_told => EntryEnd::Drained,
                Ending::Finished { .. } | Ending::Broken(_) => EntryEnd::Served,
            });
            let is_cut = matches!(ending, Ending::Cut);
            drop((ending, asking));
            if is_cut {
                guard.cut();
            }
        });
    }
}

/// Polls the future `serving`, which serves a connection. Before each poll, gives the scheduler a
/// chance to ask the connection to move to the successor.
fn in_turn<F: Future>(
    mut serving: Pin<&mut F>,
    mut asking: Option<&mut CarrySlot>,
) -> impl Future<Output = F::Output> {
    poll_fn(move |cx| {
        let Some(asking) = &mut asking else { return serving.as_mut().poll(cx) };
        asking.poll(cx);
        let served = serving.as_mut().poll(cx);
        if served.is_pending() {
            // Let the scheduler ask another connection meanwhile, because this connection is in the
            // middle of a message and cannot move yet.
            asking.pass_on();
        }
        served
    })
}

/// The reason why the service has returned.
enum Served {
    /// The service has finished the connection. `late` is the number of bytes that the peer sent
    /// too late to be answered.
    Finished { late: u64 },
    /// The service has stopped serving the connection and has saved its state, so that the
    /// connection can move to the successor.
    GivenUp,
}

impl<S> SharedParts<S> {
    /// Sends a connection whose state the service has saved to the successor. Returns how the
    /// connection ended in this process, or `None` if it stays here.
    ///
    /// If the connection is cut during this call, it is unknown whether the successor has taken the
    /// connection. The connection is then closed without further I/O.
    async fn leave(
        &self,
        connection: &Connection,
        slot: &ConnectionSlot,
        asking: Option<&mut CarrySlot>,
        guard: &DrainGuard,
    ) -> Option<Ending> {
        // Treat it as an error if the service detached a connection that was not asked to move.
        // Otherwise the service could detach the connection again and again, in an endless loop.
        let asked = asking.and_then(|asking| asking.was_asked().then_some(asking));
        let (Some(asking), Some(parcel)) = (asked, connection.detached_state()) else {
            return Some(Ending::Broken(io::Error::other("it was given up unasked")));
        };
        let leaving = self.leaving.token();
        let departing = OutgoingConnection {
            listener: connection.listener(),
            peer: connection.peer(),
            age: slot.age(),
            max_connections: self.limits.get(connection.listener()).copied(),
            stream: &connection.stream,
            parcel,
        };
        let successor = self.successor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let handing_over = async {
            match successor {
                Some(successor) => successor.hand_over(&departing).await,
                None => Verdict::NoReceiver,
            }
        };
        let Some(verdict) = guard.unless_cut(handing_over).await else { return Some(Ending::Cut) };
        asking.pass_on();
        match verdict {
            Verdict::Taken => {
                asking.carried();
                return Some(Ending::Carried(leaving));
            }
            Verdict::Refused(why) => {
                let (listener, peer) = (connection.listener(), connection.peer());
                tracing::debug!(
                    event = "carry.connection_declined", listener, %peer, reason = why,
                    "the successor refused a connection, which stays here: {why}"
                );
                slot.refused();
                asking.refused();
            }
            Verdict::NoReceiver => asking.alone(),
        }
        None
    }
}

/// How a connection ended.
enum Ending {
    /// The service finished the connection. `late` is the number of bytes that the peer sent too
    /// late to be answered.
    Finished { late: u64 },
    /// The connection ended with an I/O error.
    Broken(io::Error),
    /// The connection moved to the successor. The token makes [`ConnectionSpawner::settled`] wait
    /// until the move has been counted.
    Carried(#[expect(dead_code, reason = "it is there to be dropped")] TaskTrackerToken),
    /// The connection was cut at the drain deadline or because of a signal.
    Cut,
}

/// Logs how a connection ended. Each connection has one such log record.
fn report(connection: &Connection, slot: &ConnectionSlot, ending: &Ending) {
    let (ending, late, error) = match ending {
        Ending::Finished { late } => ("finished", *late, None),
        Ending::Broken(error) => ("broken", 0, Some(error)),
        Ending::Carried(_) => ("carried", 0, None),
        Ending::Cut => ("cut", 0, None),
    };
    tracing::debug!(
        event = "connection.ended", listener = connection.listener(), peer = %connection.peer(),
        received = connection.stream.received(), sent = connection.stream.sent(), late,
        seconds = slot.age().as_secs_f64(), ending,
        error = error.map(tracing::field::display),
        "connection ended"
    );
}
