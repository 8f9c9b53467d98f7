//! The [`Service`] trait, and the services that come with handoffd.
//!
//! A service gets one connection at a time and serves it to its end. The connection tells it when
//! to finish for a drain, and when to detach for the successor. Accepting, counting, cutting,
//! carrying and closing are the same for every service, so the server does them.

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
pub use routes::{BuiltinService, Routes};

use crate::carry::CarriedState;
use crate::report::UpstreamCounters;

/// A protocol implementation that serves connections.
pub trait Service: Send + Sync + 'static {
    /// Serves one connection to its end.
    ///
    /// Returns when the conversation is over: the peer has finished, or a drain has begun and no
    /// request is open. The server then half-closes, waits for the peer if that protects the last
    /// reply, and closes. At the drain deadline the future is dropped.
    ///
    /// A connection that was detached with [`Connection::detach`] is handed to the successor after
    /// this returns. If the successor does not take it, `serve` is called again with the detached
    /// state.
    ///
    /// # Errors
    /// The error that ended the connection. It is logged at debug level. A peer that disconnects is
    /// not an error.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send;

    /// Returns whether connections of this listener can be carried. They must then stop at a
    /// message boundary when [`Connection::carry_requested`] says so, and detach with
    /// [`Connection::detach`]. Other connections are drained.
    ///
    /// A service that terminates TLS itself cannot carry connections, because its TLS library does
    /// not export keys and session state. If that is true of some connections only, the service
    /// opts out for each of them with [`Connection::opt_out`].
    fn carries(&self, _listener: &str) -> bool {
        false
    }

    /// Checks whether this service can continue a connection that another process detached. If it
    /// can, [`Service::serve`] finds the state with [`Connection::resumed_state`].
    ///
    /// # Errors
    /// The reason for a refusal, such as an unknown format. The connection then stays in its
    /// process and is drained there.
    fn accepts(&self, _listener: &str, _parcel: &CarriedState) -> Result<(), String> {
        Err("the service takes up no connections".to_owned())
    }

    /// Returns the upstream counters, by listener name and upstream address. Services without
    /// upstreams return nothing.
    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        BTreeMap::new()
    }

    /// Returns how many clients were refused because of their PROXY header, by listener name.
    /// Services that expect no such headers return nothing.
    fn header_errors(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// A shared service is a service.
impl<S: Service> Service for Arc<S> {
    // Not an `async fn`: it would wrap one future in another and make each connection larger.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send {
        S::serve(self, connection)
    }

    fn carries(&self, listener: &str) -> bool {
        S::carries(self, listener)
    }

    fn accepts(&self, listener: &str, parcel: &CarriedState) -> Result<(), String> {
        S::accepts(self, listener, parcel)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        S::upstreams(self)
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        S::header_errors(self)
    }
}
