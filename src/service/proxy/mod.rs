//! Passes each connection on to an upstream, and everything that either side says to the other.
//!
//! | file | what it holds |
//! |---|---|
//! | `header` | who the client is, by the word of another proxy, and for the next one |
//! | `connect` | one client's way to an upstream: deadlines, the next one, patience |
//! | `upstreams` | which one that is, and who is passed over |
//! | `checks` | who looks after them when no client does |
//! | `conversation` | the two of them to the end; `relay` moves the bytes |
//! | `limits` | how long they may be silent, and how old |
//! | `tally` | what was passed on |
//!
//! In a drain a connection goes on until either side ends it: what the two are saying is theirs, and only the deadline cuts it.

mod checks;
mod connect;
mod conversation;
mod header;
mod limits;
mod tally;
#[cfg(test)]
mod tests;
mod upstreams;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{Connection, Service};
use crate::config::ProxyConfig;
use crate::net::{Peer, Stream};
use crate::report::UpstreamCounters;
use connect::Connected;
use conversation::Conversation;
use header::Route;
use limits::Limits;
use tally::Tally;
use upstreams::Upstreams;

#[cfg(fuzzing)]
pub(crate) use header::fuzz as fuzz_proxy_header;

/// The service that passes connections on.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    upstreams: Arc<Upstreams>,
    tally: Arc<Tally>,
}

impl Proxy {
    /// For one listener, or for several that share its upstreams.
    #[must_use]
    pub fn new(config: ProxyConfig) -> Self {
        let (upstreams, tally) = (Arc::new(Upstreams::new(&config)), Arc::default());
        Self { config, upstreams, tally }
    }

    /// Counts for this listener from now on, also while nobody comes by it.
    pub(super) fn expect(&self, listener: &str) {
        self.tally.expect(&listener.into(), self.upstreams.all().len());
    }

    /// Brings a client to its upstream.
    async fn begin(&self, connection: &mut Connection) -> io::Result<Connected<'_>> {
        self.tune(&mut connection.stream)?;
        let route = self.identify(connection).await?;
        let header = match self.config.send_header {
            Some(version) => header::announce(version, route),
            None => Vec::new(),
        };
        let connected = self.connect(connection, &header).await;
        if connected.is_err() {
            // An empty reply could be taken for a reply.
            connection.stream.reset_on_drop();
        }
        connected
    }

    /// Learns who the client is, as far as anybody wants to know: from its header, if we trust it with one, or from itself.
    async fn identify(&self, connection: &mut Connection) -> io::Result<Option<Route>> {
        let Peer::Tcp(source) = connection.peer else { return Ok(None) };
        if self.config.accept_header_from.iter().any(|network| network.contains(source.ip())) {
            let receiving = header::receive(&mut connection.stream);
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "its PROXY header did not come in time");
            if let Some(route) = tokio::time::timeout(self.config.header_timeout, receiving).await.map_err(late)?? {
                connection.peer = Peer::Tcp(route.source);
                return Ok(Some(route));
            }
        }
        if self.config.send_header.is_none() {
            return Ok(None);
        }
        Ok(connection.stream.local().map(|destination| Route { source, destination }))
    }

    /// Each write goes out at once, for whoever relays does not know what comes next; and a peer that is gone is noticed.
    fn tune(&self, stream: &mut Stream) -> io::Result<()> {
        stream.set_nodelay();
        stream.set_alive(self.config.keep_alive, self.config.user_timeout)
    }
}

impl Service for Proxy {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        // In a box of its own: what waits to connect needs much more room than what relays, and most do the latter.
        let connected = Box::pin(self.begin(connection)).await?;
        let limits = Limits::new(&self.config);
        Conversation::new(&mut connection.stream, connected, limits).hold().await
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        self.tally.counters(self.upstreams.all())
    }
}
