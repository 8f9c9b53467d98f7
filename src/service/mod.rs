//! Says what is done with a connection: the trait that a service implements, and the services we
//! ship.
//!
//! A service is handed one connection at a time and serves it to its end. It learns of a drain from
//! the connection itself, and whether to give it up for a successor to go on with. Accepting,
//! counting, cutting, carrying and closing are not its affair: the server does them for every
//! service alike.

mod connection;
mod echo;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod proxy;
mod relay;
mod routes;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

pub(crate) use connection::Admission;
pub use connection::{Connection, Next};
pub use echo::Echo;
pub use proxy::Proxy;
pub use routes::{Routes, Served};

use crate::carry::Parcel;
use crate::report::UpstreamCounters;

/// What is done with a connection.
pub trait Service: Send + Sync + 'static {
    /// Serves one connection to its end.
    ///
    /// Returns when the conversation is over: the peer has finished, or the drain asked and the
    /// service is between two requests. Then the server half-closes, waits for the peer as long as
    /// that protects the last reply, and closes. At the drain deadline the future is dropped.
    ///
    /// One that has been given up ([`Connection::give_up`]) is handed to the successor when this
    /// returns; if that does not take it, it is served again, and begins with what was given up.
    ///
    /// # Errors
    /// What the connection died of. It is logged at debug level; a peer that goes away is no fault.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send;

    /// Whether connections of this listener come to a boundary when they are asked to, and are
    /// given up there ([`Connection::is_asked`], [`Connection::give_up`]). One that cannot is
    /// drained.
    ///
    /// A service that ends TLS itself cannot: the keys and the state of a session live in its
    /// library, which does not give them away. Where that is so of some connections only, it
    /// declines these ([`Connection::decline`]).
    fn carries(&self, _listener: &str) -> bool {
        false
    }

    /// Whether a connection that another process has given up can be served on: if it says so,
    /// [`Service::serve`] finds the parcel by [`Connection::taken_up`].
    ///
    /// # Errors
    /// Why not: a format that is not known, or what cannot be so. Then it stays where it is, and is
    /// drained there.
    fn accepts(&self, _listener: &str, _parcel: &Parcel) -> Result<(), String> {
        Err("the service takes up no connections".to_owned())
    }

    /// What it has passed on, by the listener's name and the upstream's address: for a service that
    /// has upstreams.
    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        BTreeMap::new()
    }

    /// How many clients it has refused because of their PROXY header, by the listener's name: for a
    /// service that expects such headers.
    fn header_errors(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// Shared with whoever else needs it.
impl<S: Service> Service for Arc<S> {
    // Not an `async fn`: that would be a future around a future, and each connection would be
    // larger by it.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send {
        S::serve(self, connection)
    }

    fn carries(&self, listener: &str) -> bool {
        S::carries(self, listener)
    }

    fn accepts(&self, listener: &str, parcel: &Parcel) -> Result<(), String> {
        S::accepts(self, listener, parcel)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        S::upstreams(self)
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        S::header_errors(self)
    }
}
