//! Passes each connection on to an upstream, and everything that either side says to the other.
//!
//! | file | what it holds |
//! |---|---|
//! | `header` | who the client is, by the word of another proxy, and for the next one |
//! | `connect` | one client's way to an upstream: deadlines, the next one, patience |
//! | `upstreams` | which one that is, and who is passed over |
//! | `upstream` | one of them, and how it fares |
//! | `names` | host names among them, and the addresses that they have now |
//! | `resolver` | how a name is resolved, without waiting for it for ever |
//! | `checks` | who looks after them when no client does |
//! | `conversation` | the two of them to the end; `relay` moves the bytes |
//! | `carried` | what of them goes to another process |
//! | `limits` | how long they may be silent, and how old |
//! | `options` | the options of their sockets |
//! | `refusals` | clients whose header is wrong: counted, and logged now and then |
//! | `tally` | what was passed on |
//!
//! In a drain a connection goes on until either side ends it: what the two are saying is theirs,
//! and only the deadline cuts it.

mod carried;
mod checks;
mod connect;
mod conversation;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod header;
mod limits;
mod names;
mod options;
mod refusals;
mod resolver;
mod tally;
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
use crate::carry::Parcel;
use crate::config::{Network, ProxyConfig};
use crate::net::Peer;
use crate::report::UpstreamCounters;
use crate::service::relay::Relay;
use carried::{Arriving, Begun, Identified, Resumed};
use connect::Connected;
use conversation::{Conversation, Held};
use header::Route;
use limits::{Limits, Used};
use options::{Side, SocketOptions};
use refusals::Refusals;
use resolver::Resolver;
use tally::Tally;
use upstreams::Upstreams;

/// The service that passes connections on.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    options: SocketOptions,
    upstreams: Arc<Upstreams>,
    tally: Arc<Tally>,
    refusals: Refusals,
    resolver: Resolver,
}

/// With what a conversation begins, or goes on.
struct Beginning<'a> {
    upstream: Connected<'a>,
    relay: Relay,
    limits: Limits,
}

impl Proxy {
    /// For one listener, or for several that share its upstreams.
    ///
    /// Upstreams that are host names have no address until [`Proxy::resolve`] or [`Proxy::watch`]
    /// is awaited.
    #[must_use]
    pub fn new(config: ProxyConfig) -> Self {
        let (upstreams, tally) = (Arc::new(Upstreams::new(&config)), Arc::default());
        let options = SocketOptions::new(&config);
        Self {
            config,
            options,
            upstreams,
            tally,
            refusals: Refusals::default(),
            resolver: Resolver::system(),
        }
    }

    /// Counts for this listener from now on, also while nobody comes by it.
    pub(super) fn expect(&self, listener: &str) {
        self.tally.expect(&listener.into());
    }

    /// Takes a conversation up that was carried here, or brings a client to its upstream: none if
    /// it has been given up on the way.
    async fn prepare(&self, connection: &mut Connection) -> io::Result<Option<Beginning<'_>>> {
        let begun = match connection.taken_up() {
            // A clean end could be taken for one.
            Some(parcel) => {
                carried::take_up(parcel, &self.upstreams, &self.tally).inspect_err(|error| {
                    connection.stream.reset_on_drop();
                    let (listener, peer) = (connection.listener(), connection.peer());
                    tracing::error!(
                        event = "connection.lost", listener, %peer, reason = %error,
                        "a connection is lost that was carried here: {error}"
                    );
                })?
            }
            None => Begun::Arriving(Arriving::default()),
        };
        let mut arriving = match begun {
            Begun::Arriving(arriving) => arriving,
            Begun::Conversing(Resumed { upstream, mut stream, relay, used }) => {
                // This configuration may have other options than that of the generation before.
                self.options.set(&mut connection.stream, Side::Client, &connection.listener);
                self.options.set(&mut stream, Side::Upstream, &connection.listener);
                let upstream = self.reconnected(&connection.listener, &upstream, stream);
                return Ok(Some(Beginning {
                    upstream,
                    relay,
                    limits: Limits::new(&self.config, used),
                }));
            }
        };
        let word = connection.word();
        // Nobody else could go on in the middle of a header.
        let is_within_header = AtomicBool::new(false);
        let mut beginning = Box::pin(self.begin(connection, &mut arriving, &is_within_header));
        let is_to_go = || {
            let is_asked = word.as_ref().is_some_and(|word| word.is_asked());
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
            connection.give_up(carried::arriving(arriving));
            return Ok(None);
        };
        let limits = Limits::new(&self.config, Used::default());
        Ok(Some(Beginning { upstream, relay: Relay::default(), limits }))
    }

    /// Brings a client to its upstream. What is learned of it on the way is kept in `arriving`; if
    /// this is dropped, it begins anew with that. Cancel safe.
    async fn begin(
        &self,
        connection: &mut Connection,
        arriving: &mut Arriving,
        is_within_header: &AtomicBool,
    ) -> io::Result<Connected<'_>> {
        // Until the upstream is connected. Otherwise further clients would take all descriptors,
        // and every client would wait for an upstream.
        let _earmark = connection.stream.take_earmark();
        self.options.set(&mut connection.stream, Side::Client, &connection.listener);
        let Identified { route } = match arriving.identified {
            // The generation that has asked may have had no need to know.
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
            // An empty reply could be taken for a reply.
            connection.stream.reset_on_drop();
        }
        connected
    }

    /// Learns who the client is, as far as anybody wants to know: from its header, if we trust it
    /// with one, or from itself. `since` is when the wait for the header began, in this process or
    /// in another. Cancel safe unless `is_within_header`: else a header is read whole, or not at
    /// all.
    async fn identify(
        &self,
        connection: &mut Connection,
        since: &mut Option<Instant>,
        is_within_header: &AtomicBool,
    ) -> io::Result<Option<Route>> {
        let is_trusted = match connection.peer {
            Peer::Tcp(source) => {
                self.config.accept_header_from.iter().any(|network| network.contains(source.ip()))
            }
            Peer::Unix => self.config.accept_header_from.iter().any(Network::is_unix),
        };
        if is_trusted {
            let since = since.get_or_insert_with(Instant::now);
            let left = self.config.header_timeout.saturating_sub(since.elapsed());
            let receiving = header::receive(&mut connection.stream, is_within_header);
            let received = match tokio::time::timeout(left, receiving).await {
                Ok(received) => received,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "its PROXY header did not come in time",
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

    /// Who the client is by itself, if anybody wants to know.
    fn own_route(&self, connection: &Connection) -> Option<Route> {
        let (Peer::Tcp(source), Some(_)) = (connection.peer, self.config.send_header) else {
            return None;
        };
        connection.stream.local().map(|destination| Route { source, destination })
    }
}

impl Service for Proxy {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        // In a box of its own: what waits to connect needs much more room than what relays, and
        // most do the latter.
        let Some(Beginning { upstream, relay, limits }) =
            Box::pin(self.prepare(connection)).await?
        else {
            return Ok(());
        };
        let mut conversation = Conversation::new(connection, upstream, relay, limits);
        if conversation.hold().await? == Held::ToBeCarried {
            conversation.give_up()?;
        }
        Ok(())
    }

    fn carries(&self, _listener: &str) -> bool {
        true
    }

    fn accepts(&self, _listener: &str, parcel: &Parcel) -> Result<(), String> {
        carried::check(parcel, &self.upstreams)
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        self.tally.counters(&self.upstreams)
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        self.refusals.counts()
    }
}
