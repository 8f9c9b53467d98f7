//! A client's connection as a [`Service`](crate::Service) sees it: the client's bytes, the client's
//! address, and the server's requests to finish the connection or to move it.
//!
//! Between two requests of the client, the service calls [`Connection::next_request`] to learn what
//! to do next: read, finish, or detach the connection. A service that detaches a connection stops
//! serving it and returns the state that the successor needs to continue it. The server sends this
//! state to the successor.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::carry::{CarriedState, CarryRequest};
use crate::drain::DrainWatch;
use crate::net::{Peer, Stream};
#[cfg(feature = "proxy")]
use crate::service::Established;

/// The parts from which the server creates a [`Connection`].
pub(crate) struct Admission {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    pub(crate) listener: Arc<str>,
    pub(crate) drain: DrainWatch,
    /// The handle with which the server asks the service to detach this connection, so that it can
    /// move to the successor. `None` if the connection cannot move.
    pub(crate) carry_request: Option<Arc<CarryRequest>>,
    /// The state from which the service continues the connection. The predecessor or this service
    /// has saved it. `None` for a new client.
    pub(crate) saved_state: Option<CarriedState>,
    /// During a drain, how long to wait for the first request of this client, counted from the
    /// creation of the [`Connection`].
    pub(crate) first_request_grace: Duration,
}

/// An accepted connection from a client.
#[derive(Debug)]
pub struct Connection {
    /// The byte stream to and from the client.
    pub stream: Stream,
    pub(super) peer: Peer,
    pub(super) listener: Arc<str>,
    drain: DrainWatch,
    carry_request: Option<Arc<CarryRequest>>,
    /// The state from which the service continues this connection, until
    /// [`Connection::resumed_state`] takes it.
    taken_up: Option<Box<CarriedState>>,
    /// The state that the service has saved for the successor in [`Connection::detach`].
    given_up: Option<Box<CarriedState>>,
    /// The connection to an upstream, once the service has asked the server to relay bytes between
    /// the client and this upstream.
    #[cfg(feature = "proxy")]
    established: Option<Box<Established>>,
    /// The time at which a drain stops waiting for the first request of this client.
    first_request_until: Instant,
}

/// The next step for a service whose connection is between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The service should read, because a request has arrived or the peer has half-closed.
    Read,
    /// The service should finish, because no request has arrived and the server wants no more
    /// requests on this connection.
    End,
    /// The service should detach the connection with [`Connection::detach`], so that the successor
    /// can continue it. Only a service that [carries](crate::Service::carries) connections receives
    /// this value.
    Carry,
}

impl Connection {
    pub(crate) fn new(admission: Admission) -> Self {
        let Admission { stream, peer, listener, drain, carry_request, saved_state, .. } = admission;
        let now = Instant::now();
        // If adding the grace period overflows the clock, use one day, which is much longer than
        // any drain.
        let until = now
            .checked_add(admission.first_request_grace)
            .unwrap_or(now + Duration::from_secs(86_400));
        let taken_up = saved_state.map(Box::new);
        Self {
            stream,
            peer,
            listener,
            drain,
            carry_request,
            taken_up,
            given_up: None,
            #[cfg(feature = "proxy")]
            established: None,
            first_request_until: until,
        }
    }

    /// Returns the address of the client.
    #[must_use]
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// Returns the name of the listener that accepted the connection.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// Returns the drain signal, for a service that does not use [`Connection::next_request`].
    #[must_use]
    pub const fn drain(&self) -> &DrainWatch {
        &self.drain
    }

    /// Returns whether the service should detach the connection as soon as it can, so that the
    /// connection moves to the successor. The future of [`Service::serve`] is polled again whenever
    /// the returned value changes.
    ///
    /// [`Service::serve`]: crate::Service::serve
    #[must_use]
    pub fn carry_requested(&self) -> bool {
        self.carry_request.as_ref().is_some_and(|request| request.carry_requested())
    }

    /// Waits until the server asks the service to detach the connection. Waits forever if the
    /// connection cannot move to another process. Cancel safe.
    pub async fn asked(&self) {
        match &self.carry_request {
            Some(request) => request.asked().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the handle through which the server asks for a move. A service uses this handle if
    /// it cannot borrow the [`Connection`] while it waits.
    #[cfg(feature = "proxy")]
    pub(super) fn carry_request(&self) -> Option<Arc<CarryRequest>> {
        self.carry_request.clone()
    }

    /// Detaches the connection, so that the successor can continue it with the state `saved_state`.
    /// After this call the service must not read or write, and must return from `serve`. The server
    /// sends the client's socket to the successor together with the state.
    pub fn detach(&mut self, saved_state: CarriedState) {
        self.given_up = Some(Box::new(saved_state));
    }

    /// Asks the server to relay this connection to and from an upstream. After this call the
    /// service must not read or write, and must return from `serve`.
    #[cfg(feature = "proxy")]
    pub(super) fn establish(&mut self, established: Established) {
        self.established = Some(Box::new(established));
    }

    /// Takes the upstream's connection, if the service has connected the client to an upstream. The
    /// server then relays the bytes between the two connections.
    #[cfg(feature = "proxy")]
    pub(crate) fn take_established(&mut self) -> Option<Box<Established>> {
        self.established.take()
    }

    /// Returns the stream of the connection, because the server relays its bytes from now on.
    #[cfg(feature = "proxy")]
    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Excludes this connection from all moves to a successor. A service needs this for a
    /// connection with TLS, for example, because TLS keys cannot move. During a handoff the server
    /// asks an excluded connection to finish instead.
    pub fn opt_out(&self) {
        if let Some(request) = &self.carry_request {
            request.opt_out();
        }
    }

    /// Takes the state that the service saved when it last detached this connection, usually in the
    /// previous process. A service that lets connections move to a successor calls this method
    /// before it reads anything.
    pub fn resumed_state(&mut self) -> Option<CarriedState> {
        self.taken_up.take().map(|saved_state| *saved_state)
    }

    /// Returns the state that the service has saved for the successor, or `None` if the service has
    /// not detached the connection.
    pub(crate) fn detached_state(&self) -> Option<&CarriedState> {
        self.given_up.as_deref()
    }

    /// Keeps a detached connection in this process, because the successor has not taken it. The
    /// server then calls the service again, and [`Connection::resumed_state`] returns the saved
    /// state.
    pub(crate) fn stay(&mut self) {
        self.taken_up = self.given_up.take();
    }

    /// Returns whether the service should finish the connection. This is the case if the server is
    /// draining, or if the connection was asked to move but cannot.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_requested()
            || self.carry_request.as_ref().is_some_and(|request| request.is_refused())
    }

    /// Waits for the next request of the client, or for a reason to stop. A service calls this
    /// method between two requests. Cancel safe.
    ///
    /// Before a drain, the method waits as long as the client stays connected. During a drain, it
    /// still returns [`Next::Read`] for input that has already arrived. A client that has sent no
    /// request yet may have connected just before accepting stopped. So the method waits for its
    /// first request until `first_request_grace` has passed. For every other connection, the method
    /// returns [`Next::End`] at once.
    ///
    /// # Errors
    /// Fails if the runtime is shutting down.
    pub async fn next_request(&self) -> io::Result<Next> {
        if !self.is_draining() {
            // This future registers no waker, because the server polls this task when it asks for a
            // move.
            let asked = poll_fn(|_| match &self.carry_request {
                Some(request) if request.carry_requested() || request.is_refused() => {
                    Poll::Ready(())
                }
                _ => Poll::Pending,
            });
            tokio::select! {
                biased;
                () = asked => if self.carry_requested() { return Ok(Next::Carry) },
                readable = self.stream.readable() => return readable.map(|()| Next::Read),
                () = self.drain.requested() => {}
            }
        }
        if self.stream.received() == 0 {
            // Ignore the timeout's result, because the code below asks the kernel whether input has
            // arrived. Box the future to save memory, because few connections wait here.
            let _ =
                Box::pin(tokio::time::timeout_at(self.first_request_until, self.stream.readable()))
                    .await;
        }
        if !self.stream.has_input() {
            return Ok(Next::End);
        }
        self.stream.readable().await.map(|()| Next::Read)
    }
}
