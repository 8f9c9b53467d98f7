//! The proxy service: it connects each client to an upstream and relays bytes in both directions.
//!
//! | file | contents |
//! |---|---|
//! | `at_once` | the first connection attempt for a client, without a task |
//! | `header` | PROXY protocol headers, received from other proxies and sent to upstreams |
//! | `connect` | connection attempts for one client: timeouts, failover, retries |
//! | `upstreams` | load balancing and ejection |
//! | `upstream` | one upstream and its health |
//! | `names` | host names of upstreams and their current addresses |
//! | `resolver` | DNS lookups with a timeout |
//! | `checks` | active health checks |
//! | `established` | an established connection, which the server relays from then on |
//! | `carried` | the state of a connection that moves to another process |
//! | `ledgers` | connection and byte counters |
//! | `options` | socket options |
//! | `refusals` | counts and log records of clients with an invalid PROXY header |
//!
//! The proxy does not understand the protocol that it relays, so it cannot end a connection between
//! two requests. In a drain, a connection continues until either side or the drain deadline ends
//! it.

mod at_once;
mod carried;
mod checks;
mod connect;
mod established;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod header;
mod ledgers;
mod names;
mod options;
mod refusals;
mod resolver;
#[cfg(test)]
mod tests;
mod upstream;
mod upstreams;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::time::Instant;

use super::{Connection, Service};
use crate::carry::{CarriedState, Declined};
use crate::config::ProxyConfig;
use crate::net::{Peer, ProxiedSocket};
use crate::plane::{Limits, Relay, Side, Used};
use crate::report::UpstreamCounters;
pub(crate) use at_once::{Attempt, Connecting};
use carried::{Arriving, Begun, Identified, Resumed};
use connect::Connected;
pub(crate) use connect::client_disconnected;
pub(crate) use established::{Established, UpstreamCount};
use header::Route;
use ledgers::ProxyLedgers;
use options::SocketOptions;
use refusals::Refusals;
use resolver::Resolver;
use upstreams::UpstreamPool;

/// The service that forwards the connections of clients to upstreams.
///
/// ```no_run
/// use handoffd::proxy::{Proxy, ProxyConfig, Upstreams};
/// use handoffd::{Builder, Inheritance};
///
/// # async fn run(inheritance: Inheritance) -> Result<(), Box<dyn std::error::Error>> {
/// let upstreams = Upstreams::new(vec!["127.0.0.1:9000".parse()?, "/run/app.sock".parse()?])?;
/// let proxy = Proxy::new(ProxyConfig::to(upstreams));
/// Builder::new(inheritance).listen("web=0.0.0.0:8080")?.run(proxy).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    options: SocketOptions,
    upstreams: Arc<UpstreamPool>,
    ledgers: Arc<ProxyLedgers>,
    refusals: Refusals,
    resolver: Resolver,
}

/// The values that the server needs to begin relaying a connection, which is new or has moved here
/// from another process.
struct Beginning {
    upstream: Connected,
    relay: Relay,
    limits: Limits,
}

impl Proxy {
    /// Creates a proxy for one listener, or for several listeners that share the upstreams.
    ///
    /// An upstream that is configured by host name has no address at first. It gets its addresses
    /// when the caller awaits [`Proxy::resolve`] or [`Proxy::watch`].
    #[must_use]
    pub fn new(config: ProxyConfig) -> Self {
        let (upstreams, ledgers) = (Arc::new(UpstreamPool::new(&config)), Arc::default());
        let options = SocketOptions::new(&config);
        Self {
            config,
            options,
            upstreams,
            ledgers,
            refusals: Refusals::default(),
            resolver: Resolver::system(),
        }
    }

    /// Adds a listener to the counters, so that they include the listener even before its first
    /// client arrives.
    pub fn expect(&self, listener: &str) {
        self.ledgers.expect(&listener.into());
    }

    /// Connects a new client to an upstream, or restores a conversation that has moved here from
    /// another process. Returns `None` if the server has asked to move the connection while the
    /// client waited for an upstream.
    async fn prepare(&self, connection: &mut Connection) -> io::Result<Option<Beginning>> {
        let begun = match connection.resumed_state() {
            // Reset the client if the state cannot be restored, because the client could mistake a
            // clean close for the regular end of its data.
            Some(saved_state) => carried::take_up(saved_state, &self.upstreams, &self.ledgers)
                .inspect_err(|error| {
                    connection.stream.reset_on_drop();
                    let (listener, peer) = (connection.listener(), connection.peer());
                    tracing::error!(
                        event = "connection.lost", listener, %peer, reason = %error,
                        "cannot continue a client connection from the old process, so it is reset: \
                        {error}"
                    );
                })?,
            None => Begun::Arriving(Arriving::default()),
        };
        let mut arriving = match begun {
            Begun::Arriving(arriving) => arriving,
            Begun::Conversing(resumed) => return Ok(Some(self.resume(connection, resumed))),
        };
        let request = connection.carry_request();
        // Do not move the connection while the proxy reads a PROXY header, because the successor
        // cannot continue in the middle of a header.
        let is_within_header = AtomicBool::new(false);
        let mut beginning = Box::pin(self.begin(connection, &mut arriving, &is_within_header));
        let is_to_go = || {
            let is_asked = request.as_ref().is_some_and(|request| request.carry_requested());
            is_asked && !is_within_header.load(Ordering::Relaxed)
        };
        let connected = poll_fn(|cx| {
            if is_to_go() {
                return Poll::Ready(None);
            }
            let connected = beginning.as_mut().poll(cx);
            if connected.is_pending() && is_to_go() {
                Poll::Ready(None)
            } else {
                connected.map(Some)
            }
        })
        .await;
        drop(beginning);
        let Some(upstream) = connected.transpose()? else {
            connection.detach(carried::arriving(arriving));
            return Ok(None);
        };
        let limits = self.limits(Used::default());
        Ok(Some(Beginning { upstream, relay: Relay::default(), limits }))
    }

    /// Continues a conversation that has moved here from another process.
    fn resume(&self, connection: &mut Connection, resumed: Resumed) -> Beginning {
        let Resumed { upstream, mut stream, relay, used } = resumed;
        // Set the socket options again, because the configuration of this process may differ from
        // that of the predecessor.
        self.options.set(&mut connection.stream, Side::Client, &connection.listener);
        self.options.set(&mut stream, Side::Upstream, &connection.listener);
        let upstream = self.reconnected(&connection.listener, &upstream, stream);
        Beginning { upstream, relay, limits: self.limits(used) }
    }

    /// Connects a client to an upstream. Cancel safe: `arriving` records the progress, and the next
    /// call continues from there.
    async fn begin(
        &self,
        connection: &mut Connection,
        arriving: &mut Arriving,
        is_within_header: &AtomicBool,
    ) -> io::Result<Connected> {
        // Hold a file descriptor in reserve for the upstream's socket until the upstream is
        // connected. Otherwise new clients could take all file descriptors, and no client would get
        // an upstream. A client that was in a relay plane or in another process has no claim yet.
        connection.stream.claim_descriptor();
        let _earmark = connection.stream.take_descriptor_claim();
        self.options.set(&mut connection.stream, Side::Client, &connection.listener);
        let Identified { route } = match arriving.identified {
            // Ask the socket for the client's addresses. The generation that accepted the client
            // may not have stored them, because its upstreams may not have required a PROXY header.
            Some(Identified { route: None }) => Identified { route: self.own_route(connection) },
            Some(identified) => identified,
            None => {
                let identifying = self.identify(connection, &mut arriving.since, is_within_header);
                let identified = Identified { route: identifying.await? };
                *arriving = Arriving { identified: Some(identified), ..Arriving::default() };
                identified
            }
        };
        let header = match self.config.send_header {
            Some(version) => header::announce(version, route),
            None => Vec::new(),
        };
        let connected = self.connect(connection, arriving, &header).await;
        if connected.is_err() {
            // Reset the client, because it could mistake a clean close for an empty reply.
            connection.stream.reset_on_drop();
        }
        connected
    }

    /// Returns the client's addresses. They come from its PROXY header if the configuration trusts
    /// the sender, and from its socket otherwise.
    ///
    /// `since` is the time at which the wait for the header began, in this process or an earlier
    /// one. While only a part of the header has been read, `is_within_header` is true. Cancel safe
    /// as long as `is_within_header` is false.
    async fn identify(
        &self,
        connection: &mut Connection,
        since: &mut Option<Instant>,
        is_within_header: &AtomicBool,
    ) -> io::Result<Option<Route>> {
        if self.trusts(connection.peer) {
            let since = since.get_or_insert_with(Instant::now);
            let left = self.config.header_timeout.saturating_sub(since.elapsed());
            let receiving = header::receive(&mut connection.stream, is_within_header);
            let received = match tokio::time::timeout(left, receiving).await {
                Ok(received) => received,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the PROXY header did not arrive in time",
                )),
            };
            let refused = |error: &io::Error| self.refusals.refused(connection, error);
            if let Some(route) = received.inspect_err(refused)? {
                connection.peer = Peer::Tcp(route.source);
                return Ok(Some(route));
            }
        }
        Ok(self.own_route(connection))
    }

    fn limits(&self, used: Used) -> Limits {
        Limits::new(self.config.idle_timeout, self.config.lifetime, used)
    }

    /// Returns the addresses of a TCP client's socket. Returns `None` for a client on a Unix
    /// socket, and for every client if the proxy sends no PROXY header to upstreams.
    fn own_route(&self, connection: &Connection) -> Option<Route> {
        let (Peer::Tcp(source), Some(_)) = (connection.peer, self.config.send_header) else {
            return None;
        };
        connection.stream.local().map(|destination| Route { source, destination })
    }
}

impl Service for Proxy {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        // Box the future that connects to an upstream, because it needs much memory, but only for a
        // short time.
        let Some(Beginning { upstream, relay, limits }) =
            Box::pin(self.prepare(connection)).await?
        else {
            return Ok(());
        };
        let Connected { stream, mut count } = upstream;
        let upstream = stream.into_relay_socket().inspect_err(|_| {
            connection.stream.reset_on_drop();
        })?;
        count.entry.unlist();
        connection.establish(Established { upstream, relay, limits, count });
        Ok(())
    }

    fn proxy(&self, _listener: &str) -> Option<&Proxy> {
        Some(self)
    }

    fn carries(&self, _listener: &str) -> bool {
        true
    }

    fn accepts(&self, _listener: &str, saved_state: &CarriedState) -> Result<(), Declined> {
        carried::check(saved_state, &self.upstreams)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        self.ledgers.counters(&self.upstreams)
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        self.refusals.counts()
    }
}
