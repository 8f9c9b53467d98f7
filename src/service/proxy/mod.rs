//! Passes each connection on to an upstream, and everything that either side says to the other.
//!
//! Which upstream it is decides `upstreams`; how bytes move, `relay`. In a drain a connection goes on until either side ends
//! it: what the two are saying is theirs, and only the deadline cuts it.

use std::io;

use super::relay::{Relay, Relayed};
use super::{Connection, Service};
use crate::config::ProxyConfig;
use crate::net::{Stream, dial};

/// The service that passes connections on.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
}

impl Proxy {
    /// For one listener.
    #[must_use]
    pub fn new(config: ProxyConfig) -> Self {
        Self { config }
    }

    /// Finds an upstream that accepts.
    async fn connect(&self, _client: &Connection) -> io::Result<Stream> {
        let upstream = &self.config.upstreams.as_slice()[0];
        dial(upstream).await
    }
}

impl Service for Proxy {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        connection.stream.set_nodelay();
        // In a box of its own: what waits to connect needs much more room than what relays, and most do the latter.
        let mut upstream = Box::pin(self.connect(connection)).await?;
        upstream.set_nodelay();
        match Relay::default().run(&mut connection.stream, &mut upstream).await {
            Relayed::Finished => Ok(()),
            Relayed::ClientBroke(error) | Relayed::UpstreamBroke(error) => Err(error),
        }
    }
}
