//! A load of verified connections: clients of several kinds, and the upstream of those behind a
//! proxy.
//!
//! All of it runs in one runtime of two threads, one for each core of the machine. A load begins
//! when every connection has reached its full activity. It ends when every client and every
//! upstream connection has ended or was lost.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::clients::{Client, Kind};
use crate::ends::Shared;
use crate::support::{DEADLINE, raise_descriptor_limit};
use crate::tally::{Report, Tally};
use crate::upstream::Upstream;

/// How many clients may connect at the same time: no more than fit into any listener's backlog.
const DOORS: usize = 128;

/// A running load of clients.
#[derive(Debug)]
pub(crate) struct Load {
    runtime: Runtime,
    shared: Arc<Shared>,
    upstream: Option<Upstream>,
    doors: Arc<Semaphore>,
    clients: Vec<(String, JoinHandle<Tally>)>,
}

/// The server that answers the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The daemon itself.
    Echo,
    /// The load's own upstream, behind the daemon.
    Proxy,
}

impl Load {
    /// Returns a load without clients.
    pub(crate) fn new() -> Self {
        raise_descriptor_limit();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shared = Arc::new(Shared::new());
        let upstream = Some(Upstream::start(&runtime, &shared));
        Self {
            runtime,
            shared,
            upstream,
            doors: Arc::new(Semaphore::new(DOORS)),
            clients: Vec::new(),
        }
    }

    /// Returns the address of the load's upstream.
    pub(crate) fn upstream(&self) -> SocketAddr {
        self.upstream.as_ref().expect("the upstream runs until the end").address
    }

    /// Starts `count` clients of a kind that connect to a listener with that service.
    pub(crate) fn add(&mut self, service: Service, to: &str, kind: Kind, count: usize) {
        let is_proxied = service == Service::Proxy;
        for number in 0..count {
            let (shared, doors) = (Arc::clone(&self.shared), Arc::clone(&self.doors));
            let client =
                Client { kind, to: to.parse().unwrap(), is_proxied, number, shared, doors };
            self.clients.push((format!("{service:?} {kind:?}"), self.runtime.spawn(client.run())));
        }
    }

    /// Waits until every client has reached its full activity, or a connection was lost.
    pub(crate) fn settle(&self) {
        let all = self.clients.len();
        self.shared.wait_until("all clients are busy", |progress| {
            progress.ready >= all || progress.lost > 0
        });
        self.shared.settle();
    }

    /// Waits until `count` more requests were answered, or a connection was lost.
    pub(crate) fn wait_for_answers(&self, count: u64) {
        self.shared.advance(|progress| progress.awaited = progress.answered + count);
        self.shared.wait_until("the requests are answered", |now| {
            now.answered >= now.awaited || now.lost > 0
        });
    }

    /// Waits until `count` connections are lost, on either side of the proxy.
    pub(crate) fn wait_for_losses(&self, count: usize) {
        self.shared.wait_until("the connections are lost", |progress| progress.lost >= count);
    }

    /// Returns whether no connection has been lost so far.
    pub(crate) fn is_whole(&self) -> bool {
        self.shared.progress().lost == 0
    }

    /// Tells every client to finish, and returns the report of all connections.
    pub(crate) fn end(mut self) -> Report {
        self.shared.end();
        let upstream = self.upstream.take().expect("the load ends only once");
        let clients = std::mem::take(&mut self.clients);
        self.runtime.block_on(async {
            let mut report = Report::default();
            for (kind, client) in clients {
                let Ok(tally) = timeout(2 * DEADLINE, client).await else {
                    panic!("a client does not end: {kind}. The others:\n{report}");
                };
                report.add(&kind, tally.unwrap());
            }
            let Ok(tally) = timeout(2 * DEADLINE, upstream.end()).await else {
                panic!("an upstream connection does not end. The clients:\n{report}");
            };
            if tally.connections > 0 {
                report.add("upstream", tally);
            }
            report
        })
    }
}
