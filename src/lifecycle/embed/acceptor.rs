//! A source of connections from one listener, which ends when the generation stops accepting.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::{Instant, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Error;
use crate::ledger::Source;
use crate::lifecycle::life::{Life, LifeState, ServedListener, StopOrder, Term};
use crate::net::{self, Peer, Stream};

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

/// The source of an acceptor's next connection.
#[derive(Debug)]
enum ConnectionSource {
    /// The listener, which is registered with the runtime.
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

/// A boxed future that several calls can poll until it resolves.
struct Signal(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

impl Life {
    /// Returns an acceptor for the listener called `name`, TCP or Unix. It accepts connections
    /// until this generation retires. If no generation will accept on the listener again, it
    /// then accepts the clients that are left in the backlog, and closes the listener. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the
    /// socket cannot be registered for events.
    pub fn acceptor(&self, name: &str) -> Result<Acceptor, Error> {
        let served = self.served(name)?;
        let source = match served.socket().filter(|_| !served.is_given_up()) {
            Some(socket) => ConnectionSource::Listener(
                net::WatchedListener::new(socket)
                    .map_err(Error::system("register a listener for events"))?,
            ),
            None => ConnectionSource::GivenUp,
        };
        let term = self.term();
        let accepting = Some(served.awaiting(&term));
        let retired = match served.order {
            StopOrder::First => Signal(Box::pin(term.retired())),
            StopOrder::Last => Signal(Box::pin(term.last_retired())),
        };
        let state = Arc::clone(&self.state);
        Ok(Acceptor { source, state, served, term, retired, accepting })
    }

    /// Returns the listener called `name`, with its connections.
    pub(in crate::lifecycle) fn served(&self, name: &str) -> Result<Arc<ServedListener>, Error> {
        let served = self.state.served.get();
        served.ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })?.get(name)
    }

    /// Waits until it is time to ask the connections of the listener called `name` to end. Waits
    /// as [`Life::draining`] does, but longer for a listener that stops last.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown.
    pub fn draining_of(
        &self,
        name: &str,
    ) -> Result<impl Future<Output = ()> + Send + 'static + use<>, Error> {
        let (served, term) = (self.served(name)?, self.term());
        let (draining, state) = (self.draining(), Arc::clone(&self.state));
        Ok(async move {
            if served.order == StopOrder::First {
                return draining.await;
            }
            term.last_retired().await;
            term.drain_begun().await;
            let heard = term.last_awaiting().wait();
            let _ = timeout(state.limits().first_request, heard).await;
        })
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
        let (served, draining) = (self.served(name)?, self.draining_of(name)?);
        let (closing, state) = (self.closing(), Arc::clone(&self.state));
        Ok(async move {
            if served.order == StopOrder::First {
                return closing.await;
            }
            draining.await;
            let _ = timeout(state.limits().keep_alive, served.ended()).await;
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
                    self.source = if self.served.is_given_up() {
                        ConnectionSource::GivenUp
                    } else {
                        ConnectionSource::Backlog(VecDeque::new())
                    };
                }
                ConnectionSource::GivenUp => {
                    let late =
                        self.served.socket().filter(|_| self.served.late_clients().is_some());
                    let watched = late.map(net::WatchedListener::new).and_then(Result::ok);
                    self.source = match watched {
                        Some(watched) => ConnectionSource::Replaced(watched),
                        None => ConnectionSource::Backlog(self.served.take_backlog().into()),
                    };
                    // Do not let the drain wait for clients that may never arrive.
                    self.accepting = None;
                }
                ConnectionSource::Replaced(watched) => {
                    let left = self.served.late_clients().unwrap_or_default();
                    match timeout(left, watched.accept_here()).await {
                        Ok(accepted) => return Some(self.admit(accepted)),
                        Err(_) => {
                            self.source =
                                ConnectionSource::Backlog(self.served.take_backlog().into());
                        }
                    }
                }
                ConnectionSource::Backlog(clients) => {
                    if let Some(client) = clients.pop_front() {
                        return Some(self.admit(client));
                    }
                    // Wait until the generation retires. It may still serve other listeners, if it
                    // has resumed after it had given up this listener.
                    (&mut self.retired.0).await;
                    self.accepting = None;
                    return None;
                }
            }
        }
    }

    /// Returns the name of the listener.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.served.name
    }

    /// Returns the address on which the listener listens, as [`Life::address`] does.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.served.address
    }

    /// Returns the address of the socket itself, not of a client. Fails if the socket is closed.
    #[cfg(feature = "axum")]
    pub(crate) fn local_address(&self) -> std::io::Result<Peer> {
        let closed = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        self.served.socket().ok_or_else(closed)?.local_address()
    }

    /// Counts an accepted connection as open until its stream is dropped.
    fn admit(&self, (mut stream, peer): (Stream, Peer)) -> (Stream, Peer) {
        drop(stream.take_earmark());
        let awaiting = self.served.awaiting(&self.term);
        let open = self.served.admit(Source::New, stream.traffic(), Instant::now());
        stream.belongs_to_server(peer, Some(awaiting), open);
        (stream, peer)
    }
}
