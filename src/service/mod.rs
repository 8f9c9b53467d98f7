//! Says what is done with a connection: the trait that a service implements, and the services we ship.
//!
//! A service is handed one connection at a time and serves it to its end. It learns of a drain from the connection
//! itself. Accepting, counting, cutting and closing are not its affair: the server does them for every service alike.

mod echo;
mod proxy;
mod relay;
mod routes;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use echo::Echo;
pub use proxy::Proxy;
#[cfg(fuzzing)]
pub(crate) use proxy::fuzz_proxy_header;
pub use routes::{Routes, Served};

use crate::drain::DrainWatch;
use crate::net::{Peer, Stream};
use crate::report::UpstreamCounters;

/// What is done with a connection.
pub trait Service: Send + Sync + 'static {
    /// Serves one connection to its end.
    ///
    /// Returns when the conversation is over: the peer has finished, or the drain asked and the service is between two
    /// requests. Then the server half-closes, waits for the peer as long as that protects the last reply, and closes.
    /// At the drain deadline the future is dropped.
    ///
    /// # Errors
    /// What the connection died of. It is logged at debug level; a peer that goes away is no fault.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send;

    /// What it has passed on, by the listener's name and the upstream's address: for a service that has upstreams.
    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        BTreeMap::new()
    }
}

/// Shared with whoever else needs it.
impl<S: Service> Service for Arc<S> {
    // Not an `async fn`: that would be a future around a future, and each connection would be larger by it.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send {
        S::serve(self, connection)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        S::upstreams(self)
    }
}

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Its bytes.
    pub stream: Stream,
    peer: Peer,
    listener: Arc<str>,
    drain: DrainWatch,
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
}

impl Connection {
    /// `first_request_grace` counts from now.
    pub(crate) fn new(
        stream: Stream,
        peer: Peer,
        listener: Arc<str>,
        drain: DrainWatch,
        first_request_grace: Duration,
    ) -> Self {
        let now = Instant::now();
        // A grace that no clock can hold is no bound at all; a day is far beyond any drain.
        let until = now.checked_add(first_request_grace).unwrap_or(now + Duration::from_secs(86_400));
        Self { stream, peer, listener, drain, first_request_until: until }
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

    /// Waits, between two requests, for the next one or for the end. Cancel safe.
    ///
    /// While a drain has not begun it waits as long as the peer does. When it has, whatever has arrived is still served;
    /// a connection that has not sent its first request keeps the rest of `first_request_grace` to do so, for its peer
    /// may have connected in the very instant in which we stopped accepting; any other ends at once.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn next_request(&self) -> io::Result<Next> {
        tokio::select! {
            biased;
            readable = self.stream.readable() => return readable.map(|()| Next::Read),
            () = self.drain.told() => {}
        }
        if self.stream.received() == 0 {
            // Whether it came in time or not, the kernel's word below decides.
            let _ = tokio::time::timeout_at(self.first_request_until, self.stream.readable()).await;
        }
        if !self.stream.has_input() {
            return Ok(Next::End);
        }
        self.stream.readable().await.map(|()| Next::Read)
    }
}
