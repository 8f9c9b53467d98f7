//! Looks after upstreams when no client does: makes a connection to each from time to time, and closes it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connect::is_own;
use super::tally::Tally;
use super::upstreams::Upstreams;
use super::{Proxy, header};
use crate::address::Address;
use crate::config::Check;
use crate::net::dial;

/// The checks of one upstream.
struct Watch {
    upstreams: Arc<Upstreams>,
    tally: Arc<Tally>,
    index: usize,
    check: Check,
    /// What is said on each connection: one that expects a header is not to be met by silence.
    header: Vec<u8>,
}

impl Proxy {
    /// Checks each upstream, if that is configured, for as long as this is awaited.
    pub async fn watch(&self) -> Infallible {
        let Some(check) = self.config.check else { return std::future::pending().await };
        let header = self.config.send_header.map(header::own).unwrap_or_default();
        let mut watches = JoinSet::new();
        for index in 0..self.upstreams.all().len() {
            let (upstreams, tally) = (Arc::clone(&self.upstreams), Arc::clone(&self.tally));
            watches.spawn(Watch { upstreams, tally, index, check, header: header.clone() }.run());
        }
        loop {
            // They end with this, and never before.
            watches.join_next().await;
            std::future::pending::<()>().await;
        }
    }
}

impl Watch {
    async fn run(self) {
        loop {
            let address = self.upstreams.all()[self.index].address();
            let result = match timeout(self.check.timeout, look(address, &self.header)).await {
                Ok(result) => result,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            let listeners = self.tally.listeners();
            match result {
                Ok(()) => self.upstreams.check_passed(self.index, &listeners),
                // Nothing was learned of the upstream.
                Err(reason) if is_own(&reason) => {
                    tracing::debug!(
                        listener = %listeners, upstream = %address, %reason,
                        "cannot check an upstream: {reason}"
                    );
                }
                Err(reason) => self.upstreams.check_failed(self.index, &listeners, &reason),
            }
            sleep(self.check.interval).await;
        }
    }
}

async fn look(address: &Address, header: &[u8]) -> io::Result<()> {
    let mut stream = dial(address).await?;
    stream.write_all(header).await
}
