//! The [`Service`] trait, and the services that come with handoffd.
//!
//! A service serves one connection from its beginning to its end. The connection tells the service
//! when to finish because of a drain, and when to detach because of a handoff. The server accepts,
//! counts, cuts, carries and closes connections, because these steps are the same for every
//! service.

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
    /// Returns when the conversation is over: either the peer has finished, or a drain has begun
    /// and no request is open. The server then half-closes the connection. It waits for the peer to
    /// close if that protects the last reply, and then closes. At the drain deadline the server
    /// drops this future.
    ///
    /// If the service has detached the connection with [`Connection::detach`], the server then
    /// hands the connection to the successor. If the successor does not take it, the server calls
    /// `serve` again with the detached state.
    ///
    /// # Errors
    /// Returns the error that ended the connection. The server logs it at debug level. A peer that
    /// disconnects is not an error.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send;

    /// Returns whether connections of this listener can be carried, that is, moved to the
    /// successor. If so, each must stop at a message boundary when [`Connection::carry_requested`]
    /// returns true, and detach with [`Connection::detach`]. If not, the connections are drained.
    ///
    /// A service that terminates TLS cannot carry connections, because its TLS library does not
    /// export keys and session state. If only some connections use TLS, the service calls
    /// [`Connection::opt_out`] for each of them.
    fn carries(&self, _listener: &str) -> bool {
        false
    }

    /// Checks whether this service can continue a connection that another process has detached. If
    /// so, [`Service::serve`] later finds the state with [`Connection::resumed_state`].
    ///
    /// # Errors
    /// Returns the reason why the service refuses the connection, such as an unknown format. The
    /// connection then stays in the other process and is drained there.
    fn accepts(&self, _listener: &str, _parcel: &CarriedState) -> Result<(), String> {
        Err("the service takes up no connections".to_owned())
    }

    /// Returns the counters of all upstreams, by listener name and upstream address. The map is
    /// empty for a service without upstreams.
    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        BTreeMap::new()
    }

    /// Returns how many clients were refused because of a wrong PROXY header, by listener name. The
    /// map is empty for a service that expects no such headers.
    fn header_errors(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// An `Arc` of a service is a service too, so that several threads can share it.
impl<S: Service> Service for Arc<S> {
    // This is not an `async fn`, because one future inside another would make each connection
    // larger.
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
