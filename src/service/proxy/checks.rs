//! Looks after upstreams when no client does: makes a connection to each from time to time, and
//! closes it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::connect::is_own;
use super::tally::Tally;
use super::upstream::Upstream;
use super::upstreams::Upstreams;
use super::{Proxy, header};
use crate::address::Address;
use crate::config::Check;
use crate::net::dial;

/// The checks of one upstream.
struct Watch {
    upstreams: Arc<Upstreams>,
    tally: Arc<Tally>,
    upstream: Arc<Upstream>,
    check: Check,
    /// What is said on each connection: one that expects a header is not to be met by silence.
    header: Vec<u8>,
}

/// The checks of all upstreams that there are now. They end with this.
#[derive(Default)]
struct Watches {
    tasks: JoinSet<()>,
    handles: Vec<(Arc<Upstream>, AbortHandle)>,
}

impl Proxy {
    /// Resolves host names again and again, and checks each upstream if that is configured, for as
    /// long as this is awaited.
    pub async fn watch(&self) -> Infallible {
        let (mut names, changed) = (JoinSet::new(), Arc::new(Notify::new()));
        self.watch_names(&mut names, &changed);
        let mut watches = Watches::default();
        loop {
            self.keep(&mut watches);
            changed.notified().await;
        }
    }

    /// Checks the upstreams that there are now, and no others.
    fn keep(&self, watches: &mut Watches) {
        let Some(check) = self.config.check else { return };
        let current = self.upstreams.current();
        let has = |all: &[Arc<Upstream>], one: &Arc<Upstream>| {
            all.iter().any(|other| Arc::ptr_eq(one, other))
        };
        watches.handles.retain(|(upstream, handle)| {
            let stays = has(&current, upstream);
            if !stays {
                handle.abort();
            }
            stays
        });
        // What has been aborted is let go of.
        while watches.tasks.try_join_next().is_some() {}
        let watched: Vec<_> =
            watches.handles.iter().map(|(upstream, _)| Arc::clone(upstream)).collect();
        let header = self.config.send_header.map(header::own).unwrap_or_default();
        for upstream in current.iter().filter(|upstream| !has(&watched, upstream)) {
            let (upstreams, tally) = (Arc::clone(&self.upstreams), Arc::clone(&self.tally));
            let watch = Watch {
                upstreams,
                tally,
                upstream: Arc::clone(upstream),
                check,
                header: header.clone(),
            };
            watches.handles.push((Arc::clone(upstream), watches.tasks.spawn(watch.run())));
        }
    }
}

impl Watch {
    async fn run(self) {
        let Self { upstreams, tally, upstream, check, header } = self;
        loop {
            let result = match timeout(check.timeout, look(upstream.address(), &header)).await {
                Ok(result) => result,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            let listeners = tally.listeners();
            match result {
                Ok(()) => upstreams.check_passed(&upstream, &listeners),
                // Nothing was learned of the upstream.
                Err(reason) if is_own(&reason) => {
                    tracing::debug!(
                        event = "upstream.check_impossible", listener = %listeners,
                        upstream = %upstream.label(), %reason,
                        "cannot check an upstream: {reason}"
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
    stream.write_all(header).await
}
