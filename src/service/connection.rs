//! Is one connection as its service sees it: its bytes, who is there, and what is asked of it.
//!
//! Between two requests it is told by one call whether to go on, to come to an end, or to be given
//! up. What it was given up as, and what becomes of it then, is the affair of its service and of
//! the server.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::carry::{Parcel, Word};
use crate::drain::DrainWatch;
use crate::net::{Peer, Stream};

/// With what a connection begins.
pub(crate) struct Admission {
    pub(crate) stream: Stream,
    pub(crate) peer: Peer,
    pub(crate) listener: Arc<str>,
    pub(crate) drain: DrainWatch,
    /// What is asked of it, if it can be carried.
    pub(crate) word: Option<Arc<Word>>,
    /// What it was given up as, if it was carried here.
    pub(crate) parcel: Option<Parcel>,
    /// Counts from now.
    pub(crate) first_request_grace: Duration,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Its bytes.
    pub stream: Stream,
    pub(super) peer: Peer,
    pub(super) listener: Arc<str>,
    drain: DrainWatch,
    word: Option<Arc<Word>>,
    /// What it was given up as: by whoever served it before, and by whoever serves it now.
    taken_up: Option<Box<Parcel>>,
    given_up: Option<Box<Parcel>>,
    /// Until when its first request is awaited even if a drain has begun.
    first_request_until: Instant,
}

/// What a connection between two requests has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Something can be read: a request, or the peer's end.
    Read,
    /// Nothing more is to come, or nothing more is to be taken: end the conversation.
    End,
    /// Give it up ([`Connection::give_up`]), for a successor may go on with it. Only a service
    /// hears this that [`Service::carries`](crate::Service::carries) connections.
    Carry,
}

impl Connection {
    pub(crate) fn new(admission: Admission) -> Self {
        let Admission { stream, peer, listener, drain, word, parcel, first_request_grace } =
            admission;
        let now = Instant::now();
        // A grace that no clock can hold is no bound at all; a day is far beyond any drain.
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

    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// The name of the listener that accepted it.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// For a service that keeps its own time: learns when to come to an end.
    #[must_use]
    pub const fn drain(&self) -> &DrainWatch {
        &self.drain
    }

    /// Whether it is to be given up, as soon as that can be. When this changes, the whole of
    /// [`Service::serve`] is polled.
    ///
    /// [`Service::serve`]: crate::Service::serve
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.word.as_ref().is_some_and(|word| word.is_asked())
    }

    /// Waits until it is to be given up. Pends for ever if it cannot be carried. Cancel safe.
    pub async fn asked(&self) {
        match &self.word {
            Some(word) => word.asked().await,
            None => std::future::pending().await,
        }
    }

    /// The same for a service that cannot keep hold of it meanwhile.
    pub(super) fn word(&self) -> Option<Arc<Word>> {
        self.word.clone()
    }

    /// Gives it up, as `parcel`: nothing may be read or written any more, and `serve` returns. The
    /// client's socket goes with it.
    pub fn give_up(&mut self, parcel: Parcel) {
        self.given_up = Some(Box::new(parcel));
    }

    /// Says that it cannot be given up, from now on: it has become one with keys of TLS, say. When
    /// the others are carried it is told to come to an end, as all are without a carry.
    pub fn decline(&self) {
        if let Some(word) = &self.word {
            word.decline();
        }
    }

    /// What it was given up as by whoever served it before, to be looked for before anything else.
    pub fn taken_up(&mut self) -> Option<Parcel> {
        self.taken_up.take().map(|parcel| *parcel)
    }

    /// What it is given up as, if it is.
    pub(crate) fn given_up(&self) -> Option<&Parcel> {
        self.given_up.as_deref()
    }

    /// It stays here after all: whoever serves it again begins with what it was given up as.
    pub(crate) fn stay(&mut self) {
        self.taken_up = self.given_up.take();
    }

    /// Whether it is to come to an end: because all are, or because it was to be carried and the
    /// successor would not have it.
    pub(crate) fn is_told(&self) -> bool {
        self.drain.is_told() || self.word.as_ref().is_some_and(|word| word.is_refused())
    }

    /// Waits, between two requests, for the next one or for the end. Cancel safe.
    ///
    /// While a drain has not begun it waits as long as the peer does. When it has, whatever has
    /// arrived is still served; a connection that has not sent its first request keeps the rest of
    /// `first_request_grace` to do so, for its peer may have connected in the very instant in which
    /// we stopped accepting; any other ends at once.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn next_request(&self) -> io::Result<Next> {
        if !self.is_told() {
            // Whoever asks has the whole task polled.
            let asked = poll_fn(|_| match &self.word {
                Some(word) if word.is_asked() || word.is_refused() => Poll::Ready(()),
                _ => Poll::Pending,
            });
            tokio::select! {
                biased;
                () = asked => if self.is_asked() { return Ok(Next::Carry) },
                readable = self.stream.readable() => return readable.map(|()| Next::Read),
                () = self.drain.told() => {}
            }
        }
        if self.stream.received() == 0 {
            // Whether it came in time or not, the kernel's word below decides.
            // In a box: every connection would be as large as this, and few come here.
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
