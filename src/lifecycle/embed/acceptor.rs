//! A source of connections from one listener, which ends when the generation stops accepting.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Error;
use crate::ledger::Source;
use crate::lifecycle::life::{Life, LifeState, ServedListener, StopOrder, Term};
use crate::net::{self, Listener, Peer, Stream};

/// A source of connections from one listener. It returns connections until the generation retires,
/// that is, stops accepting.
#[derive(Debug)]
pub struct Acceptor {
    source: ConnectionSource,
    pub(super) state: Arc<LifeState>,
    pub(super) served: Arc<ServedListener>,
    term: Term,
    retired: Signal,
    /// A token that is held until this acceptor stops accepting. [`Life::draining`] waits until the
    /// token is dropped, because this acceptor may just have accepted a connection.
    accepting: Option<TaskTrackerToken>,
}

/// Where the next connection comes from.
#[derive(Debug)]
enum ConnectionSource {
    /// The listener, which is registered with the runtime.
    Listener(net::WatchedListener),
    /// Nowhere. The generation has stopped accepting, and does not know yet which clients are left.
    Retired,
    /// The clients that were left in the backlog when the service stopped. No other generation
    /// accepts them.
    Backlog(VecDeque<(Stream, Peer)>),
}

/// A boxed future that several calls can poll until it resolves.
struct Signal(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

impl Life {
    /// Returns an acceptor for the listener called `name`, TCP or Unix. It accepts connections
    /// until this generation retires. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the
    /// socket cannot be registered for events.
    pub fn acceptor(&self, name: &str) -> Result<Acceptor, Error> {
        let served = self.served(name)?;
        let watched = net::WatchedListener::new(served.listener.clone())
            .map_err(Error::system("register a listener for events"))?;
        let term = self.term();
        let accepting = Some(served.awaiting(&term));
        let retired = match served.order {
            StopOrder::First => Signal(Box::pin(term.retired())),
            StopOrder::Last => Signal(Box::pin(term.last_retired())),
        };
        Ok(Acceptor {
            source: ConnectionSource::Listener(watched),
            state: Arc::clone(&self.state),
            served,
            term,
            retired,
            accepting,
        })
    }

    /// Returns the listener called `name`, with its connections.
    pub(in crate::lifecycle) fn served(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        let served = self.state.served.get();
        served.ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })?.get(name)
    }

    /// Waits until a server of the listener called `name` must close its idle connections. Waits as
    /// [`Life::closing`] does, but longer for a listener that stops last.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown.
    pub fn closing_of(
        &self,
        name: &str,
    ) -> Result<impl Future<Output = ()> + Send + 'static + use<>, Error> {
        let (served, term) = (self.served(name)?, self.term());
        let (closing, state) = (self.closing(), Arc::clone(&self.state));
        Ok(async move {
            if served.order == StopOrder::First {
                return closing.await;
            }
            term.last_retired().await;
            term.drain_begun().await;
            let limits = state.limits();
            let _ = tokio::time::timeout(limits.first_request, term.last_awaiting().wait()).await;
            let _ = tokio::time::timeout(limits.keep_alive, served.ended()).await;
        })
    }
}

impl Acceptor {
    /// Waits for the next connection. Returns `None` once the generation has stopped accepting.
    /// Cancel safe.
    ///
    /// The stream is non-blocking. [`Life::draining`] waits until the server has read something
    /// from the stream, but at most for
    /// [`Config::first_request_grace`](crate::Config::first_request_grace).
    pub async fn accept(&mut self) -> Option<(Stream, Peer)> {
        loop {
            match &mut self.source {
                ConnectionSource::Listener(watched) => tokio::select! {
                    biased;
                    () = &mut self.retired.0 => self.source = ConnectionSource::Retired,
                    accepted = watched.accept_here() => return Some(self.admit(accepted)),
                },
                ConnectionSource::Retired => {
                    self.term.drain_begun().await;
                    let mut clients = VecDeque::new();
                    if self.term.has_backlog(self.listener().name()) {
                        clients.extend(net::pending(self.listener()));
                    }
                    self.source = ConnectionSource::Backlog(clients);
                }
                ConnectionSource::Backlog(clients) => {
                    let client = clients.pop_front().map(|client| self.admit(client));
                    if client.is_none() {
                        self.accepting = None;
                    }
                    return client;
                }
            }
        }
    }

    /// Returns the listener whose connections this acceptor accepts.
    #[must_use]
    pub fn listener(&self) -> &Listener {
        &self.served.listener
    }

    /// Counts a connection as open.
    fn admit(&self, (mut stream, peer): (Stream, Peer)) -> (Stream, Peer) {
        drop(stream.take_earmark());
        let awaiting = self.served.awaiting(&self.term);
        let open = self.served.admit(Source::New, stream.traffic(), Instant::now());
        stream.belongs_to_server(peer, Some(awaiting), open);
        (stream, peer)
    }
}
