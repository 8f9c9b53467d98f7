//! The [`Service`] trait, and the services that come with handoffd.
//!
//! A service serves one connection from its beginning to its end. During a drain, the connection
//! tells the service to finish. During a handoff, the connection asks the service to stop, so that
//! the connection can move to the successor. The server accepts, counts, moves and closes
//! connections, because these steps are the same for every service.

mod connection;
mod echo;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
#[cfg(feature = "proxy")]
mod proxy;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

pub(crate) use connection::Admission;
pub use connection::{Connection, Next};
pub use echo::Echo;
#[cfg(feature = "proxy")]
pub use proxy::Proxy;
#[cfg(feature = "proxy")]
pub(crate) use proxy::{Attempt, Connecting, Established, UpstreamCount, client_disconnected};

use crate::carry::{CarriedState, Declined};
use crate::report::UpstreamCounters;

/// A protocol implementation that serves connections.
pub trait Service: Send + Sync + 'static {
    /// Serves one connection to its end.
    ///
    /// Returns when the conversation is over: either the peer has finished, or a drain has begun
    /// and no request is in progress. The server then half-closes the connection. If the peer might
    /// otherwise lose the last reply, the server waits for the peer to close first. Then the server
    /// closes the connection. At the drain deadline, the server drops this future.
    ///
    /// The service may also detach the connection with [`Connection::detach`] and return. The
    /// server then hands the connection to the successor. If the successor does not take it, the
    /// server calls `serve` again with the state that the service has saved.
    ///
    /// # Errors
    /// Returns the error that ended the connection. The server logs it at debug level. A peer that
    /// disconnects is not an error.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send;

    /// Returns the proxy if a proxy serves this listener. The server then connects the listener's
    /// clients to upstreams without a task for each client. It calls [`Service::serve`] only for
    /// clients that have to wait.
    #[cfg(feature = "proxy")]
    fn proxy(&self, _listener: &str) -> Option<&Proxy> {
        None
    }

    /// Returns whether connections of this listener can move to the successor. If so, the service
    /// must stop at a message boundary when [`Connection::carry_requested`] returns true, and call
    /// [`Connection::detach`]. If not, the server drains the connections.
    ///
    /// Connections of a service that terminates TLS cannot move, because its TLS library does not
    /// export keys and session state. If only some connections use TLS, the service calls
    /// [`Connection::opt_out`] for each of them.
    fn carries(&self, _listener: &str) -> bool {
        false
    }

    /// Checks whether this service can continue a connection that another process offers. If so,
    /// [`Service::serve`] later gets the connection's state from [`Connection::resumed_state`].
    ///
    /// # Errors
    /// Returns the reason why the service refuses the connection, such as an unknown format. The
    /// connection then stays in the other process, which drains it. A panic has the same effect.
    fn accepts(&self, _listener: &str, _saved_state: &CarriedState) -> Result<(), Declined> {
        Err("the service does not take over connections".into())
    }

    /// Returns the counters of all upstreams, by listener name and upstream address. The map is
    /// empty for a service without upstreams.
    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        BTreeMap::new()
    }

    /// Returns how many clients the service has refused because of an invalid or missing PROXY
    /// header, by listener name. The map is empty for a service that expects no such headers.
    fn header_errors(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}

/// An `Arc` of a service is a service too, so that several threads can share it.
impl<S: Service> Service for Arc<S> {
    // This method is not an `async fn`, because wrapping one future in another would make the
    // future of each connection larger.
    fn serve(&self, connection: &mut Connection) -> impl Future<Output = io::Result<()>> + Send {
        S::serve(self, connection)
    }

    #[cfg(feature = "proxy")]
    fn proxy(&self, listener: &str) -> Option<&Proxy> {
        S::proxy(self, listener)
    }

    fn carries(&self, listener: &str) -> bool {
        S::carries(self, listener)
    }

    fn accepts(&self, listener: &str, saved_state: &CarriedState) -> Result<(), Declined> {
        S::accepts(self, listener, saved_state)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        S::upstreams(self)
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        S::header_errors(self)
    }
}
