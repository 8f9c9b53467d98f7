//! A load of verified connections: clients of several kinds and the upstream of those that go
//! through a proxy.
//!
//! All of it is in one runtime of two threads, as many as the machine has cores. A load begins when
//! every connection is as busy as it will be, and it ends when every client and every upstream
//! connection has come to its end, or to a loss.

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

/// How many clients may be about to connect at once: no more than wait in any listener's queue.
const DOORS: usize = 128;

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    runtime: Runtime,
    shared: Arc<Shared>,
    upstream: Option<Upstream>,
    doors: Arc<Semaphore>,
    clients: Vec<(String, JoinHandle<Tally>)>,
}

/// Who answers the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// The daemon itself.
    Echo,
    /// The load's own upstream, through the daemon.
    Proxy,
}

impl Load {
    /// Of nobody yet.
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

    /// Where a proxy has to pass its connections on to.
    pub(crate) fn upstream(&self) -> SocketAddr {
        self.upstream.as_ref().expect("it is there until the end").address
    }

    /// Lets so many clients of a kind come to a listener with that service.
    pub(crate) fn add(&mut self, service: Service, to: &str, kind: Kind, count: usize) {
        let is_proxied = service == Service::Proxy;
        for number in 0..count {
            let (shared, doors) = (Arc::clone(&self.shared), Arc::clone(&self.doors));
            let client =
                Client { kind, to: to.parse().unwrap(), is_proxied, number, shared, doors };
            self.clients.push((format!("{service:?} {kind:?}"), self.runtime.spawn(client.run())));
        }
    }

    /// Waits until every client is as busy as it will be, or one was lost.
    pub(crate) fn settle(&self) {
        let all = self.clients.len();
        self.shared
            .wait_until("is everybody busy", |progress| progress.ready >= all || progress.lost > 0);
        self.shared.settle();
    }

    /// Waits until so many more requests were answered, or a connection was lost.
    pub(crate) fn wait_for_answers(&self, count: u64) {
        self.shared.advance(|progress| progress.awaited = progress.answered + count);
        self.shared
            .wait_until("are they answered", |now| now.answered >= now.awaited || now.lost > 0);
    }

    /// Waits until that many connections are lost, on whichever side.
    pub(crate) fn wait_for_losses(&self, count: usize) {
        self.shared.wait_until("are they lost", |progress| progress.lost >= count);
    }

    /// Whether nobody has noticed anything so far.
    pub(crate) fn is_whole(&self) -> bool {
        self.shared.progress().lost == 0
    }

    /// Has every client come to its end, and tells what all of them met.
    pub(crate) fn end(mut self) -> Report {
        self.shared.end();
        let upstream = self.upstream.take().expect("it ends once");
        let clients = std::mem::take(&mut self.clients);
        self.runtime.block_on(async {
            let mut report = Report::default();
            for (kind, client) in clients {
                let tally = timeout(2 * DEADLINE, client).await;
                report.add(&kind, tally.expect("each of its waits has a deadline").unwrap());
            }
            let tally = timeout(2 * DEADLINE, upstream.end())
                .await
                .expect("each of its waits has a deadline");
            if tally.connections > 0 {
                report.add("upstream", tally);
            }
            report
        })
    }
}
