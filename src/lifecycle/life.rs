//! The handle with which a server follows the life of its generation: when it becomes active, when
//! it must stop accepting, and when its connections must end.
//!
//! A server with its own accept loop gets a [`Life`] from [`crate::Builder::serve_with`]. A
//! [`crate::Service`] that needs these events gets one from [`crate::Builder::life`].
//!
//! The driver (event loop) changes the state in `life/state.rs`, and this handle reads it. In the
//! other direction, the handle sends requests to the driver (`life/server_link.rs`). Tasks that run
//! in a single generation are in `life/alone.rs`.

mod alone;
mod moves;
mod served;
mod served_listener;
mod server_link;
mod state;
mod term;

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::carry::{CarriedState, Declined};
use crate::generation::Generation;

pub(super) use alone::DROP_TIMEOUT;
pub use alone::Stop;
pub(super) use served::{ServedListeners, ServedSettings};
pub(super) use served_listener::{OpenConnection, ServedListener, SocketUse, StopOrder};
pub(super) use server_link::{LifeRequest, ServerLink};
pub(super) use state::LifeState;
pub(super) use term::Term;

/// A handle with which a server follows its generation, that is, this process of the service.
/// Clones refer to the same generation.
///
/// ```no_run
/// use handoffd::{Builder, Error};
/// use tokio::io::AsyncWriteExt;
///
/// fn main() -> Result<(), Error> {
///     Builder::from_env()?.listen("web=127.0.0.1:7000")?.serve_with(async |life| {
///         let mut acceptor = life.acceptor("web")?;
///         life.ready(); // the predecessor, if any, retires after the bake
///         while let Some((mut client, _)) = acceptor.accept().await {
///             client.write_all(b"hello\n").await.ok();
///         }
///         Ok::<_, Error>(())
///     })?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Life {
    pub(super) state: Arc<LifeState>,
    /// The period of accepting connections (term) to which this handle is bound. `None` if the
    /// handle always follows the current one.
    term: Option<Term>,
}

impl Life {
    /// Creates a handle to a generation for the server, and the other end for the event loop.
    pub(super) fn new(generation: Generation) -> (Self, ServerLink) {
        let (state, line) = ServerLink::new(generation);
        (Self { state, term: None }, line)
    }

    /// Returns a handle that always follows the current period of accepting connections (term).
    pub(super) const fn of(state: Arc<LifeState>) -> Self {
        Self { state, term: None }
    }

    /// Returns a handle that is bound to the current period of accepting connections (term). The
    /// handle does not follow this generation into a later term.
    pub(super) fn of_this_term(&self) -> Self {
        Self { state: Arc::clone(&self.state), term: Some(self.term()) }
    }

    pub(super) fn term(&self) -> Term {
        self.term.clone().unwrap_or_else(|| self.state.term.borrow().clone())
    }

    /// Returns whether this handle belongs to the current period of accepting connections (term).
    /// This is always true for a handle that is bound to no period.
    pub(super) fn is_current(&self) -> bool {
        self.term.as_ref().is_none_or(|term| term.is(&self.state.term.borrow()))
    }

    /// Returns the generation number of this process. The first process of a service has number 1.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.state.generation
    }

    /// Reports that this server accepts connections, or is about to. The old process retires after
    /// [`Config::bake`](crate::Config::bake). Further calls have no effect.
    ///
    /// Clients that connect before the server's first accept wait in the backlog. A server that is
    /// not ready within [`Config::ready_timeout`](crate::Config::ready_timeout) is stopped; see
    /// [`Life::extend_start`]. If the successor dies, the server is called again, and must report
    /// again that it is ready. If it does not, this process ends with an error. A server started by
    /// [`crate::Builder::run`] need not call this function.
    pub fn ready(&self) {
        self.term().set_ready();
    }

    /// Asks for more time before [`Life::ready`] must be called, for example while the server fills
    /// its caches. The deadline moves to at least `time` from now. The predecessor and the service
    /// manager learn the new deadline too. Has no effect once the server is ready.
    pub fn extend_start(&self, time: Duration) {
        self.state.request(LifeRequest::ExtendStart(time));
    }

    /// Waits until this generation is the active one, so that it can no longer be rolled back. The
    /// first generation of a service is committed as soon as it is ready. Waits forever if the
    /// handoff is rolled back. Cancel safe.
    pub fn committed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.state.committed.clone().cancelled_owned()
    }

    /// Waits until the server must stop accepting connections, because a successor has taken over
    /// or this generation was told to stop. Cancel safe.
    ///
    /// Do not end connections yet: see [`Life::draining`].
    pub fn retired(&self) -> impl Future<Output = ()> + Send + use<> {
        self.term().retired()
    }

    /// Returns whether the server must stop accepting connections. From then on, the next reply on
    /// each connection must be the last. In HTTP/1.1, such a reply has the header `Connection:
    /// close`. Otherwise a request is lost if the client sends it just before the server closes the
    /// connection.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        match &self.term {
            Some(term) => term.has_retired(),
            None => self.state.term.borrow().has_retired(),
        }
    }

    /// Waits until it is time to ask the connections to end. Cancel safe.
    ///
    /// This function first waits until the server must stop accepting. Then it waits until each
    /// [`Acceptor`](crate::embed::Acceptor) has returned `None` or has been dropped, and the server
    /// has read something from each accepted connection. The second wait takes at most
    /// [`Config::first_request_grace`](crate::Config::first_request_grace), and never longer than a
    /// quarter of [`Config::drain_timeout`](crate::Config::drain_timeout).
    ///
    /// Do not end connections as soon as [`Life::retired`] resolves. A client whose connection was
    /// just accepted may have sent its first request, which would be lost.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let (term, state) = (self.term(), Arc::clone(&self.state));
        async move {
            term.drain_begun().await;
            let served = state.served.get();
            let heard = async {
                term.all_heard().await;
                if served.is_some_and(ServedListeners::has_unknown) {
                    std::future::pending().await
                }
            };
            let _ = tokio::time::timeout(state.limits().first_request, heard).await;
        }
    }

    /// Waits until it is time to close connections that wait for another request. Cancel safe.
    ///
    /// This function first waits as [`Life::draining`] does. Then it waits until all accepted
    /// connections are closed, but at most for
    /// [`Config::keep_alive_grace`](crate::Config::keep_alive_grace). If a listener has moved, it
    /// waits as long as late clients may arrive. This wait never takes longer than half of
    /// [`Config::drain_timeout`](crate::Config::drain_timeout).
    ///
    /// If the server accepts on a listener by itself (see [`Life::tcp_listener`]), the library does
    /// not know its connections. Both waits then take their full time.
    ///
    /// Use this function for protocols such as HTTP/1.1, in which a reply can announce the end of
    /// its connection (see [`Life::has_retired`]). A client that sends a request in the meantime
    /// gets such a reply, so no request is lost.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        let (draining, state) = (self.draining(), Arc::clone(&self.state));
        async move {
            draining.await;
            let Some(served) = state.served.get() else { return };
            let ended = async {
                served.first_ended().await;
                if served.has_unknown() {
                    std::future::pending().await
                }
            };
            let limit = state.limits().idle_time(served.late_clients());
            let _ = tokio::time::timeout(limit, ended).await;
        }
    }

    /// Waits until the drain deadline has passed, or an operator has ended the drain. The server
    /// must then drop its remaining connections. The process ends a moment later. Cancel safe.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + use<> {
        self.state.cut.clone().cancelled_owned()
    }

    /// Gives the handoff back, or refuses it: the predecessor keeps serving and reports `reason`.
    /// This generation drains the connections that it has accepted and ends.
    ///
    /// This is possible until [`Life::committed`]. After that, the call only writes a log record. A
    /// first generation that is not ready yet ends with an error.
    pub fn roll_back(&self, reason: impl Display) {
        self.state.request(LifeRequest::RollBack(reason.to_string()));
    }

    /// Starts a handoff, as SIGHUP does.
    pub fn reload(&self) {
        self.state.request(LifeRequest::Reload);
    }

    /// Stops this generation, as SIGTERM does. If it is the active generation, it drains its
    /// connections, and the service ends. If its successor is ready, the successor takes over at
    /// once and continues to serve.
    pub fn stop(&self) {
        self.state.request(LifeRequest::Stop);
    }

    /// Runs a task in exactly one generation of the service. Use it for work that must never run
    /// twice at the same time, such as a scheduler or the consumer of a queue. Must be called in a
    /// tokio runtime.
    ///
    /// The task begins when this generation becomes active, and must end soon after
    /// [`Stop::requested`] resolves. The successor becomes active only after the task has ended. If
    /// the task does not end within [`Config::alone_timeout`](crate::Config::alone_timeout), the
    /// handoff is rolled back and the task starts again. If the handoff fails for another reason,
    /// `task` is called again too. A task that returns without a request to stop has finished.
    ///
    /// When the service stops, the process waits for the task for the same time, and then drops it.
    /// A task must not leave work behind in a thread when it is dropped.
    pub fn alone<T, F>(&self, task: T)
    where
        T: FnMut(Stop) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        alone::run(self, task);
    }

    /// Offers a state to the successor, which gets it from [`Life::from_predecessor`]. A later call
    /// replaces the offered state. The state is sent when the handoff is committed, after the tasks
    /// of [`Life::alone`] have ended.
    ///
    /// The format of the state has a name, because the successor may be another version of the
    /// server and must not misread the bytes.
    ///
    /// # Errors
    /// Fails if the state is larger than [`Life::OFFER_MAX`] or contains descriptors.
    pub fn offer(&self, state: CarriedState) -> Result<(), Declined> {
        if state.bytes.len() > Self::OFFER_MAX || !state.descriptors.is_empty() {
            let length = state.bytes.len();
            let most = Self::OFFER_MAX;
            return Err(format!(
                "expected at most {most} bytes and no descriptors, but the state has {length} \
                bytes and {} descriptors",
                state.descriptors.len()
            )
            .into());
        }
        self.state.offer(state);
        Ok(())
    }

    /// The maximum size in bytes of a state that [`Life::offer`] passes to the successor.
    pub const OFFER_MAX: usize = 16 * 1024 * 1024;

    /// Waits until this generation is active, and returns the state that the predecessor has
    /// offered. Returns `None` if there is no such state, for example because this generation is
    /// the first or the predecessor was killed. Only the first call returns the state. Call
    /// [`Life::ready`] first, because a generation that is not ready never becomes active. Cancel
    /// safe.
    pub async fn from_predecessor(&self) -> Option<CarriedState> {
        self.committed().await;
        self.state.take_received()
    }
}
