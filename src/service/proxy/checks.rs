//! Health checks: the proxy connects to each upstream at regular intervals, and closes the
//! connection at once.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::connect::greeted;
use super::ledgers::ProxyLedgers;
use super::upstream::Upstream;
use super::upstreams::UpstreamPool;
use super::{Proxy, header};
use crate::address::Address;
use crate::config::Check;
use crate::net::{dial, is_local_shortage};

/// The periodic health check of one upstream.
struct UpstreamCheck {
    upstreams: Arc<UpstreamPool>,
    ledgers: Arc<ProxyLedgers>,
    upstream: Arc<Upstream>,
    check: Check,
    /// The PROXY header that each check sends, because the upstream may require one.
    header: Vec<u8>,
}

/// The health checks of all upstreams in use. Dropping this value stops the checks.
#[derive(Default)]
struct UpstreamChecks {
    tasks: JoinSet<()>,
    handles: Vec<(Arc<Upstream>, AbortHandle)>,
}

impl Proxy {
    /// Keeps DNS answers up to date and runs the configured health checks. Never returns. Dropping
    /// the future stops both activities.
    pub async fn watch(&self) -> Infallible {
        let (mut names, changed) = (JoinSet::new(), Arc::new(Notify::new()));
        self.watch_names(&mut names, &changed);
        let mut checks = UpstreamChecks::default();
        loop {
            self.keep(&mut checks);
            changed.notified().await;
        }
    }

    /// Starts health checks of new upstreams, and stops those of removed upstreams.
    fn keep(&self, checks: &mut UpstreamChecks) {
        let Some(check) = self.config.check else { return };
        let current = self.upstreams.current();
        let has = |all: &[Arc<Upstream>], one: &Arc<Upstream>| {
            all.iter().any(|other| Arc::ptr_eq(one, other))
        };
        checks.handles.retain(|(upstream, handle)| {
            let stays = has(&current, upstream);
            if !stays {
                handle.abort();
            }
            stays
        });
        // Remove the aborted health checks from the set of tasks, which would otherwise grow
        // without limit.
        while checks.tasks.try_join_next().is_some() {}
        let watched: Vec<_> =
            checks.handles.iter().map(|(upstream, _)| Arc::clone(upstream)).collect();
        let header = self.config.send_header.map(header::own).unwrap_or_default();
        for upstream in current.iter().filter(|upstream| !has(&watched, upstream)) {
            let (upstreams, ledgers) = (Arc::clone(&self.upstreams), Arc::clone(&self.ledgers));
            let watch = UpstreamCheck {
                upstreams,
                ledgers,
                upstream: Arc::clone(upstream),
                check,
                header: header.clone(),
            };
            checks.handles.push((Arc::clone(upstream), checks.tasks.spawn(watch.run())));
        }
    }
}

impl UpstreamCheck {
    async fn run(self) {
        let Self { upstreams, ledgers, upstream, check, header } = self;
        loop {
            let result = match timeout(check.timeout, look(upstream.address(), &header)).await {
                Ok(result) => result,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            let listeners = ledgers.listeners();
            match result {
                Ok(()) => upstreams.check_passed(&upstream, &listeners),
                // This machine has run out of file descriptors or memory, so the failure does not
                // count against the upstream.
                Err(reason) if is_local_shortage(&reason) => {
                    tracing::debug!(
                        event = "upstream.check_impossible", listener = %listeners,
                        upstream = %upstream.label(), %reason,
                        "cannot check the health of the upstream {}, which stays as it is: \
                        {reason}",
                        upstream.label()
                    );
                }
                Err(reason) => upstreams.check_failed(&upstream, &listeners, &reason),
            }
            sleep(check.interval).await;
        }
    }
}

async fn look(address: &Address, header: &[u8]) -> io::Result<()> {
    let mut stream = dial(address).await?;
    greeted(address, stream.write_all(header).await)
}
