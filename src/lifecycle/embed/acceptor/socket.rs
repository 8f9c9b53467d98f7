//! A source of connections from one listening socket, which ends when the generation stops
//! accepting.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::{Instant, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Error;
use crate::ledger::{HeldPermit, Source};
use crate::lifecycle::life::{Life, ServedListener, StopOrder, Term};
use crate::net::{self, Peer, Stream};

/// A source of connections from one socket.
#[derive(Debug)]
pub(super) struct SocketAcceptor {
    source: ConnectionSource,
    pub(super) served: Arc<ServedListener>,
    term: Term,
    retired: Signal,
    /// A token that is held until this acceptor stops accepting. [`Life::draining`] waits until the
    /// token is dropped, because this acceptor may just have accepted a connection.
    accepting: Option<TaskTrackerToken>,
}

/// An accepted connection, with the address of its client.
type Accepted = (Stream, Peer);

/// The source of an acceptor's next connection.
#[derive(Debug)]
enum ConnectionSource {
    /// The listening socket, which is registered with the async runtime.
    Listener(net::WatchedListener),
    /// No source. The generation has stopped accepting, and does not know yet whether it must
    /// accept the clients that are left in the backlog.
    Retired,
    /// The listener, whose last clients this process must still accept, because no other generation
    /// accepts on it.
    GivenUp,
    /// The listener, which the successor has replaced with a new socket. It is closed when no
    /// further clients arrive.
    Replaced(net::WatchedListener),
    /// The clients that were left in the backlog, or none if another generation accepts these
    /// clients.
    Backlog(VecDeque<(Stream, Peer)>),
}

/// A future that is kept between calls of [`SocketAcceptor::accept`], which poll it.
struct Signal(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

impl SocketAcceptor {
    /// Creates an acceptor for the socket of `served`. Must be called in a tokio runtime.
    pub(super) fn new(life: &Life, served: Arc<ServedListener>) -> Result<Self, Error> {
        let source = match served.socket().filter(|_| !served.is_given_up()) {
            Some(socket) => ConnectionSource::Listener(
                net::WatchedListener::new(socket)
                    .map_err(Error::system("register a listener for events"))?,
            ),
            None => ConnectionSource::GivenUp,
        };
        let term = life.term();
        let accepting = Some(served.awaiting(&term));
        let retired = match served.order {
            StopOrder::First => Signal(Box::pin(term.retired())),
            StopOrder::Last => Signal(Box::pin(term.last_retired())),
        };
        Ok(Self { source, served, term, retired, accepting })
    }

    /// Waits for the next connection. Returns `None` once the generation has stopped accepting.
    /// Cancel safe.
    pub(super) async fn accept(&mut self) -> Option<(Stream, Peer)> {
        loop {
            match &mut self.source {
                ConnectionSource::Listener(watched) => tokio::select! {
                    biased;
                    () = &mut self.retired.0 => self.source = ConnectionSource::Retired,
                    (accepted, permit) = accept_within_limit(&self.served, watched) => {
                        return Some(self.admit(accepted, permit));
                    }
                },
                ConnectionSource::Retired => {
                    self.term.drain_begun().await;
                    self.source = if self.served.is_given_up() {
                        ConnectionSource::GivenUp
                    } else {
                        ConnectionSource::Backlog(VecDeque::new())
                    };
                }
                ConnectionSource::GivenUp => self.source = self.last_clients(),
                ConnectionSource::Replaced(watched) => {
                    let left = self.served.late_clients().unwrap_or_default();
                    match timeout(left, watched.accept_here(|| {})).await {
                        Ok(accepted) => return Some(self.admit(accepted, None)),
                        Err(_) => self.source = self.backlog(),
                    }
                }
                ConnectionSource::Backlog(clients) => {
                    if let Some(client) = clients.pop_front() {
                        return Some(self.admit(client, None));
                    }
                    // Wait until the generation retires. If its successor has died, it may serve
                    // other listeners again, but not this one, which it had given up before.
                    (&mut self.retired.0).await;
                    self.accepting = None;
                    return None;
                }
            }
        }
    }

    /// Returns the source of the last clients of a listener that no other generation accepts on.
    fn last_clients(&mut self) -> ConnectionSource {
        let Some(watched) = self.served.watch_late() else { return self.backlog() };
        // Do not let the drain wait for clients that may never arrive.
        self.accepting = None;
        ConnectionSource::Replaced(watched)
    }

    /// Accepts the clients that are left in the backlog, and closes the listener.
    fn backlog(&self) -> ConnectionSource {
        ConnectionSource::Backlog(self.served.take_backlog().into())
    }

    /// Counts an accepted connection as open until its stream is dropped.
    fn admit(&self, (mut stream, peer): Accepted, permit: Option<HeldPermit>) -> Accepted {
        drop(stream.take_descriptor_claim());
        let awaiting = self.served.awaiting(&self.term);
        let permit = permit.map(HeldPermit::used);
        let open = self.served.admit(Source::New, stream.traffic(), Instant::now(), permit);
        stream.belongs_to_server(peer, Some(awaiting), open);
        (stream, peer)
    }
}

/// Waits for a client, and for a permit if the listener has a connection limit. Then accepts the
/// client.
async fn accept_within_limit(
    served: &ServedListener,
    watched: &mut net::WatchedListener,
) -> (Accepted, Option<HeldPermit>) {
    let on_shortage = || served.count_shortage();
    if !served.is_limited() {
        return (watched.accept_here(on_shortage).await, None);
    }
    loop {
        // Take a permit only when a client waits. Otherwise a socket without clients would hold a
        // permit that another socket of the same listener needs.
        watched.client_waits().await;
        let permit = served.take_permit().await;
        if let Some(accepted) = watched.accept_waiting(on_shortage).await {
            return (accepted, permit);
        }
    }
}
