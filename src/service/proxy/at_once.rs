//! The first attempt to connect a new client to an upstream. It runs without a task for the client,
//! because most first attempts succeed and each task costs memory.
//!
//! The proxy chooses an upstream and begins to connect as soon as the client is accepted. The relay
//! plane, which is one task for all connections of a worker, waits for the outcome. A client gets
//! its own task only if its PROXY header must be read or its first attempt fails (see `connect`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Proxy;
use super::carried::{self, Arriving, Identified};
use super::established::UpstreamCount;
use super::header::{self, Route};
use super::ledgers::ProxyLedgers;
use super::upstream::UpstreamLoad;
use super::upstreams::UpstreamPool;
use crate::carry::CarriedState;
use crate::config::Network;
use crate::net::{Accepted, Peer, RelaySocket, begin_connect, is_local_shortage};
use crate::plane::{Limits, Relay, Side, Used};

/// An attempt in progress to connect a client to an upstream.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) upstream: RelaySocket,
    /// The bytes to relay, which begin with the PROXY header for the upstream, if there is one.
    pub(crate) relay: Relay,
    pub(crate) connecting: Box<Connecting>,
}

/// The state of a client whose connection to an upstream is not yet established.
#[derive(Debug)]
pub(crate) struct Connecting {
    listener: Arc<str>,
    upstreams: Arc<UpstreamPool>,
    ledgers: Arc<ProxyLedgers>,
    load: UpstreamLoad,
    route: Option<Route>,
    since: Instant,
    /// The time at which the attempt exceeds the configured connect timeout.
    deadline: Instant,
    idle_timeout: Option<Duration>,
    lifetime: Option<Duration>,
}

impl Proxy {
    /// Chooses an upstream for a new client and begins to connect to it. Returns `None` if the
    /// client needs its own task, for example because its PROXY header must be read.
    ///
    /// # Errors
    /// If the upstream refuses the connection at once, returns the state with which a task can try
    /// the other upstreams.
    pub(crate) fn begin_at_once(
        &self,
        listener: &Arc<str>,
        client: &Accepted,
    ) -> Option<Result<Attempt, CarriedState>> {
        if self.trusts(client.peer()) {
            return None;
        }
        let upstream = self.upstreams.choose(&self.upstreams.round())?;
        let now = Instant::now();
        let connecting = Connecting {
            listener: Arc::clone(listener),
            upstreams: Arc::clone(&self.upstreams),
            ledgers: Arc::clone(&self.ledgers),
            load: UpstreamLoad::take(&upstream),
            route: self.config.send_header.and_then(|_| client.route()).map(Route::from),
            since: now,
            deadline: now.checked_add(self.config.connect_timeout)?,
            idle_timeout: self.config.idle_timeout,
            lifetime: self.config.lifetime,
        };
        let mut socket = match begin_connect(upstream.address()) {
            Ok(socket) => socket,
            Err(error) if is_local_shortage(&error) => return None,
            Err(error) => return Some(Err(connecting.failed(&error))),
        };
        self.options.set(&mut socket, Side::Upstream, listener);
        let header =
            self.config.send_header.map(|version| header::announce(version, connecting.route));
        let relay = header.map_or_else(Relay::default, Relay::beginning_with);
        Some(Ok(Attempt { upstream: socket, relay, connecting: Box::new(connecting) }))
    }

    /// Sets the socket options of a new client.
    pub(crate) fn set_client_options(&self, client: &mut RelaySocket, listener: &str) {
        self.options.set(client, Side::Client, listener);
    }

    /// Returns whether the configuration trusts PROXY headers from the address `peer`.
    pub(super) fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(source) => {
                self.config.accept_header_from.iter().any(|network| network.contains(source.ip()))
            }
            Peer::Unix => self.config.accept_header_from.iter().any(Network::is_unix),
        }
    }
}

impl Connecting {
    /// Returns the time at which the attempt exceeds the configured connect timeout.
    pub(crate) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Counts the connection to the upstream as established. Returns a guard that keeps the
    /// connection counted, and the time limits of the connection.
    pub(crate) fn established(self) -> (UpstreamCount, Limits) {
        let Self { listener, upstreams, ledgers, load, idle_timeout, lifetime, .. } = self;
        upstreams.succeeded(&load.0, &listener);
        let entry = ledgers.enter_unlisted(&listener, &load.0);
        let limits = Limits::new(idle_timeout, lifetime, Used::default());
        (UpstreamCount { entry, load }, limits)
    }

    /// Counts the attempt as failed, unless this machine lacks file descriptors or memory. Returns
    /// the state with which a task can try the other upstreams.
    pub(crate) fn failed(self, reason: &io::Error) -> CarriedState {
        let Self { load, listener, upstreams, ledgers, route, since, .. } = self;
        let identified = Some(Identified { route });
        let mut arriving = Arriving { identified, since: Some(since), ..Arriving::default() };
        if !is_local_shortage(reason) {
            ledgers.failed(&listener, &load.0);
            upstreams.failed(&load.0, &listener, reason);
            arriving.tried.push(Arc::clone(&load.0));
        }
        carried::arriving(arriving)
    }

    /// Aborts the attempt. Returns the state with which another process continues to connect the
    /// client.
    pub(crate) fn into_state(self) -> CarriedState {
        let Self { load, route, since, .. } = self;
        let (identified, since) = (Some(Identified { route }), Some(since));
        let unfinished = vec![Arc::clone(&load.0)];
        carried::arriving(Arriving { identified, since, unfinished, ..Arriving::default() })
    }
}
