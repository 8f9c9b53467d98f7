//! Runs the task of one connection: serve, hand over or finish, count, report.
//!
//! One that is given up is the successor's when that has taken it; else it is served again, from
//! where it was given up.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::census::{Counted, End};
use crate::carry::{Asking, Departing, Outgoing, Parcel, Turns, Verdict};
use crate::drain::{DrainEntry, DrainGuard, Way};
use crate::net::{Peer, Stream};
use crate::service::{Admission, Connection, Service};

/// How long a connection that is over stays for its peer's end, so that no reply dies of a reset.
const LINGER: Duration = Duration::from_secs(1);

/// What every connection is served with. Clones share it.
#[derive(Debug)]
pub(super) struct Connections<S>(Arc<Shared<S>>);

#[derive(Debug)]
struct Shared<S> {
    service: S,
    first_request_grace: Duration,
    /// How many connections a listener may have at once, where that is limited.
    limits: HashMap<String, NonZeroUsize>,
    /// Whose turn it is to be carried, and to whom.
    turns: Arc<Turns>,
    successor: Mutex<Option<Arc<Outgoing>>>,
    /// Counts those that are on their way to it, until it is known what became of them.
    leaving: TaskTracker,
}

/// A connection that is to be served.
pub(super) struct Newcomer<'a> {
    pub(super) stream: Stream,
    pub(super) peer: Peer,
    pub(super) listener: &'a Arc<str>,
    pub(super) counted: Counted,
    /// What becomes of it in a drain, and its way in.
    pub(super) way: Way,
    pub(super) entry: &'a DrainEntry,
    /// What it was given up as, if it was carried here.
    pub(super) parcel: Option<Parcel>,
}

// Derived, it would ask the service to be Clone.
impl<S> Clone for Connections<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Service> Connections<S> {
    pub(super) fn new(
        service: S,
        first_request_grace: Duration,
        limits: HashMap<String, NonZeroUsize>,
    ) -> Self {
        let (turns, successor, leaving) = (Arc::default(), Mutex::default(), TaskTracker::new());
        leaving.close();
        Self(Arc::new(Shared { service, first_request_grace, limits, turns, successor, leaving }))
    }

    /// What is done with them.
    pub(super) fn service(&self) -> &S {
        &self.0.service
    }

    /// Whose turn it is to be carried.
    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.0.turns
    }

    /// Waits until it is known, and counted, what became of those that are on their way to the
    /// successor. Cancel safe.
    pub(super) async fn settled(&self) {
        self.0.leaving.wait().await;
    }

    /// To whom they are carried from now on; none: to nobody, and those that wait to be sent stay.
    pub(super) fn carry_to(&self, successor: Option<Arc<Outgoing>>) {
        let mut current = self.0.successor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = std::mem::replace(&mut *current, successor) {
            last.close();
        }
    }

    /// Serves one connection in a task of its own, which the drain counts and waits for. Must be
    /// called in a tokio runtime.
    pub(super) fn spawn(&self, newcomer: Newcomer<'_>) {
        let Newcomer { stream, peer, listener, counted, way, entry, parcel } = newcomer;
        let (watch, guard) = entry.admit();
        // In a box, for most connections have none.
        let mut asking =
            (way == Way::Carry).then(|| Box::new(Asking::new(Arc::clone(&self.0.turns))));
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
                    // Pinned here: whoever it was passed to by value would make room for a copy of
                    // it.
                    let serving = pin!(async {
                        shared.service.serve(&mut connection).await?;
                        Ok(match connection.given_up() {
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
                    // In a box: every connection would be as large as this.
                    Some(Ok(Served::GivenUp)) => {
                        match Box::pin(shared.leave(
                            &connection,
                            &counted,
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
            report(&connection, &counted, &ending);
            let is_told = connection.is_told();
            // The descriptor is closed before the connection is counted as gone.
            drop(connection);
            counted.end(match &ending {
                Ending::Cut => End::Cut,
                Ending::Carried(_) => End::Carried,
                Ending::Finished { .. } | Ending::Broken(_) if is_told => End::Drained,
                Ending::Finished { .. } | Ending::Broken(_) => End::Served,
            });
            let is_cut = matches!(ending, Ending::Cut);
            drop((ending, asking));
            if is_cut {
                guard.cut();
            }
        });
    }
}

/// Serves, and asks to be given up in between, when it is this connection's turn.
fn in_turn<F: Future>(
    mut serving: Pin<&mut F>,
    mut asking: Option<&mut Asking>,
) -> impl Future<Output = F::Output> {
    poll_fn(move |cx| {
        let Some(asking) = &mut asking else { return serving.as_mut().poll(cx) };
        asking.poll(cx);
        let served = serving.as_mut().poll(cx);
        if served.is_pending() {
            // Not at a boundary: the next one is asked meanwhile.
            asking.pass_on();
        }
        served
    })
}

/// What came of serving.
enum Served {
    /// It is over. Bytes that came after our end were not answered.
    Finished { late: u64 },
    /// It is to be carried.
    GivenUp,
}

impl<S> Shared<S> {
    /// Hands a connection that was given up to the successor: how it ended here, or nothing if it
    /// stays. When it is cut meanwhile nobody knows whose it is; it is not touched any more.
    async fn leave(
        &self,
        connection: &Connection,
        counted: &Counted,
        asking: Option<&mut Asking>,
        guard: &DrainGuard,
    ) -> Option<Ending> {
        // One that nobody had asked for would be given up again and again.
        let asked = asking.and_then(|asking| asking.was_asked().then_some(asking));
        let (Some(asking), Some(parcel)) = (asked, connection.given_up()) else {
            return Some(Ending::Broken(io::Error::other("it was given up unasked")));
        };
        let leaving = self.leaving.token();
        let departing = Departing {
            listener: connection.listener(),
            peer: connection.peer(),
            age: counted.since().elapsed(),
            max_connections: self.limits.get(connection.listener()).copied(),
            stream: &connection.stream,
            parcel,
        };
        let successor = self.successor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let handing_over = async {
            match successor {
                Some(successor) => successor.hand_over(&departing).await,
                None => Verdict::Alone,
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
                    "the successor does not take the connection: {why}"
                );
                counted.refused();
                asking.refused();
            }
            Verdict::Alone => asking.alone(),
        }
        None
    }
}

/// How a connection ended.
enum Ending {
    /// In order. Bytes that came after our end were not answered.
    Finished { late: u64 },
    /// It broke.
    Broken(io::Error),
    /// Not at all: the successor has it. It is on its way until that is counted.
    Carried(#[expect(dead_code, reason = "it is there to be dropped")] TaskTrackerToken),
    /// At the drain deadline, or by a signal.
    Cut,
}

/// The one record of a connection.
fn report(connection: &Connection, counted: &Counted, ending: &Ending) {
    let (ending, late, error) = match ending {
        Ending::Finished { late } => ("finished", *late, None),
        Ending::Broken(error) => ("broken", 0, Some(error)),
        Ending::Carried(_) => ("carried", 0, None),
        Ending::Cut => ("cut", 0, None),
    };
    tracing::debug!(
        event = "connection.ended", listener = connection.listener(), peer = %connection.peer(),
        received = connection.stream.received(), sent = connection.stream.sent(), late,
        seconds = counted.since().elapsed().as_secs_f64(), ending,
        error = error.map(tracing::field::display),
        "connection ended"
    );
}
