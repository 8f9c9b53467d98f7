//! A connection as its service sees it: its bytes, its peer, and requests to finish or to move.
//!
//! Between two requests, [`Connection::next_request`] tells the service whether to read, to finish,
//! or to detach the connection so that the successor can continue it. The service decides what
//! state it detaches; the server sends that state to the successor.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::carry::{CarriedState, CarryRequest};
use crate::drain::DrainWatch;
use crate::net::{Peer, Stream};

/// Everything that a connection is created from.
pub(crate) struct Admission {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    pub(crate) listener: Arc<str>,
    pub(crate) drain: DrainWatch,
    /// Requests to move, if the connection can be carried.
    pub(crate) word: Option<Arc<CarryRequest>>,
    /// The carried state, if the predecessor carried the connection here.
    pub(crate) parcel: Option<CarriedState>,
    /// How long from now the client may take for its first request during a drain.
    pub(crate) first_request_grace: Duration,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// The byte stream to and from the client.
    pub stream: Stream,
    pub(super) peer: Peer,
    pub(super) listener: Arc<str>,
    drain: DrainWatch,
    word: Option<Arc<CarryRequest>>,
    /// The state carried here from the previous process, and the state that the service has
    /// detached the connection with.
    taken_up: Option<Box<CarriedState>>,
    given_up: Option<Box<CarriedState>>,
    /// Until when a drain waits for the first request.
    first_request_until: Instant,
}

/// What a service does next with a connection that is between two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read: a request has arrived, or the peer has half-closed.
    Read,
    /// Finish: the peer will send nothing more, or the server wants no more requests.
    End,
    /// Detach the connection with [`Connection::detach`], so that the successor can continue it.
    /// Only a service that [carries](crate::Service::carries) connections gets this.
    Carry,
}

impl Connection {
    pub(crate) fn new(admission: Admission) -> Self {
        let Admission { stream, peer, listener, drain, word, parcel, first_request_grace } =
            admission;
        let now = Instant::now();
        // A time that the clock cannot represent means no limit. A day is much longer than any
        // drain.
        let until =
            now.checked_add(first_request_grace).unwrap_or(now + Duration::from_secs(86_400));
        let taken_up = parcel.map(Box::new);
        Self {
            stream,
            peer,
            listener,
            drain,
            word,
            taken_up,
            given_up: None,
            first_request_until: until,
        }
    }

    /// Returns the address of the peer.
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

    /// Returns whether the service should detach the connection as soon as it can. When the answer
    /// changes, the future of [`Service::serve`] is polled.
    ///
    /// [`Service::serve`]: crate::Service::serve
    #[must_use]
    pub fn carry_requested(&self) -> bool {
        self.word.as_ref().is_some_and(|word| word.carry_requested())
    }

    /// Waits until the service should detach the connection. Never returns if the connection cannot
    /// be carried. Cancel safe.
    pub async fn asked(&self) {
        match &self.word {
            Some(word) => word.asked().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the requests to move, for a service that cannot borrow the connection while it
    /// waits.
    pub(super) fn word(&self) -> Option<Arc<CarryRequest>> {
        self.word.clone()
    }

    /// Detaches the connection together with its state, `parcel`. The service must not read or
    /// write any more, and returns from `serve`. The client's socket travels with the state.
    pub fn detach(&mut self, parcel: CarriedState) {
        self.given_up = Some(Box::new(parcel));
    }

    /// Opts out of being carried, for good: for example because the connection now uses TLS, whose
    /// keys cannot move. When the other connections are asked to move, this one is asked to finish.
    pub fn opt_out(&self) {
        if let Some(word) = &self.word {
            word.opt_out();
        }
    }

    /// Takes the state that the connection was detached with in the previous process. A service
    /// that carries connections calls this first.
    pub fn resumed_state(&mut self) -> Option<CarriedState> {
        self.taken_up.take().map(|parcel| *parcel)
    }

    /// Returns the state that the service has detached the connection with, if it has.
    pub(crate) fn detached_state(&self) -> Option<&CarriedState> {
        self.given_up.as_deref()
    }

    /// Keeps the connection here after all. The service will be called again, and finds the
    /// detached state in [`Connection::resumed_state`].
    pub(crate) fn stay(&mut self) {
        self.taken_up = self.given_up.take();
    }

    /// Returns whether the service should finish the connection. Either all connections are
    /// draining, or this one should have moved and was refused.
    pub(crate) fn is_told(&self) -> bool {
        self.drain.is_told() || self.word.as_ref().is_some_and(|word| word.is_refused())
    }

    /// Waits, between two requests, for the next request or for a reason to stop. Cancel safe.
    ///
    /// Before a drain, it waits as long as the peer stays. During a drain, input that has arrived
    /// is still served. A connection without a first request gets the rest of
    /// `first_request_grace`, because its client may have connected just before the listener
    /// stopped. Any other connection finishes at once.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn next_request(&self) -> io::Result<Next> {
        if !self.is_told() {
            // A change of the request polls the whole task, so no waker is registered here.
            let asked = poll_fn(|_| match &self.word {
                Some(word) if word.carry_requested() || word.is_refused() => Poll::Ready(()),
                _ => Poll::Pending,
            });
            tokio::select! {
                biased;
                () = asked => if self.carry_requested() { return Ok(Next::Carry) },
                readable = self.stream.readable() => return readable.map(|()| Next::Read),
                () = self.drain.told() => {}
            }
        }
        if self.stream.received() == 0 {
            // A timeout is ignored, because the kernel is asked below. Boxed, because otherwise
            // every connection would be larger, and few get here.
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
