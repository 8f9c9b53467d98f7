//! Connection attempts for one client. If an upstream fails, the proxy tries the next one. If all
//! upstreams fail, the proxy waits and tries them again.
//!
//! While no upstream accepts, the proxy keeps the client waiting. A backend can therefore restart
//! without its clients noticing. The proxy regularly checks whether a waiting client is still
//! connected. A client that has half-closed after its request counts as connected.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Proxy;
use super::carried::Arriving;
use super::established::UpstreamCount;
use super::upstream::{Upstream, UpstreamLoad};
use super::upstreams::Round;
use crate::address::Address;
use crate::ledger::Source;
use crate::net::{ProxiedSocket, Stream, dial, is_local_shortage};
use crate::plane::Side;
use crate::service::Connection;

/// How long the proxy waits after all upstreams have failed for the first time. Each later wait is
/// twice as long as the wait before it, up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest wait between two passes over all upstreams. After each wait, the proxy checks
/// whether the client is still connected.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// A connection to an upstream, and the guard that counts it as open.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) count: UpstreamCount,
}

/// Why an attempt to connect a client to an upstream failed.
enum Failed {
    /// The upstream did not accept the connection.
    Upstream(io::Error),
    /// This machine has run out of file descriptors or memory, which is no fault of the upstream.
    LocalShortage(io::Error),
    /// The client has disconnected while the proxy was looking for an upstream.
    ClientGone,
    /// The client has waited for an upstream as long as the configuration allows.
    TimedOut,
    /// Every upstream was tried for this client before this pass began.
    NoneLeft,
}

impl Proxy {
    /// Counts an upstream connection that moved here from another process. Returns the connection.
    pub(super) fn reconnected(
        &self,
        listener: &Arc<str>,
        upstream: &Arc<Upstream>,
        stream: Stream,
    ) -> Connected {
        let load = UpstreamLoad::take(upstream);
        let entry = self.ledgers.enter(listener, upstream, Source::Carried, stream.traffic());
        Connected { stream, count: UpstreamCount { entry, load } }
    }

    /// Connects the client to an upstream, and then sends `header` to the upstream.
    ///
    /// If another process has already tried upstreams for this client, `arriving` lists these
    /// upstreams, and the method continues with the others. Cancel safe: unfinished connections are
    /// closed, and `arriving` records the progress.
    ///
    /// # Errors
    /// Returns the reason why no upstream accepted the client, or an error if the client has
    /// disconnected.
    pub(super) async fn connect(
        &self,
        client: &Connection,
        arriving: &mut Arriving,
        header: &[u8],
    ) -> io::Result<Connected> {
        let Arriving { since, tried, unfinished, .. } = arriving;
        // The first pass tries every upstream for its full connect timeout, even if that exceeds
        // `connect_patience`. A client that moved here from another process does not get this time
        // again.
        let mut limit = since.and_then(|since| {
            since.checked_add(self.config.connect_patience.max(self.longest_round()))
        });
        let until =
            since.get_or_insert_with(Instant::now).checked_add(self.config.connect_patience);
        let mut pause = FIRST_PAUSE;
        loop {
            let reason = match self.go_round(client, header, limit, (tried, unfinished)).await {
                Ok(connected) => return Ok(connected),
                Err(Failed::ClientGone) => return Err(client_disconnected()),
                Err(Failed::Upstream(reason) | Failed::LocalShortage(reason)) => Some(reason),
                Err(Failed::TimedOut) => Some(io::ErrorKind::TimedOut.into()),
                Err(Failed::NoneLeft) => None,
            };
            let next = Instant::now() + pause;
            // If this pass tried no upstream, make another one like it. Its error is the reason to
            // turn the client away.
            if let Some(reason) = reason {
                if until.is_some_and(|until| next >= until) {
                    self.upstreams.turned_away(client.listener(), &reason);
                    return Err(reason);
                }
                limit = until;
            }
            sleep_until(next).await;
            if client.stream.has_left() {
                return Err(client_disconnected());
            }
            tried.clear();
            unfinished.clear();
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Returns the longest time that a pass over all upstreams can take.
    fn longest_round(&self) -> Duration {
        let upstreams = u32::try_from(self.upstreams.current().len()).unwrap_or(u32::MAX);
        self.config.connect_timeout.saturating_mul(upstreams)
    }

    /// Tries each upstream once. Skips the upstreams in `tried`, tries those in `unfinished` last,
    /// and records its progress in both lists.
    async fn go_round(
        &self,
        client: &Connection,
        header: &[u8],
        limit: Option<Instant>,
        (tried, unfinished): (&mut Vec<Arc<Upstream>>, &mut Vec<Arc<Upstream>>),
    ) -> Result<Connected, Failed> {
        let mut round: Round = self.upstreams.round();
        tried.iter().chain(&*unfinished).for_each(|upstream| round.tried(upstream));
        let mut last = None;
        if round.is_empty() {
            last = Some(io::Error::new(
                io::ErrorKind::NotConnected,
                "no upstream host name has been resolved yet",
            ));
        }
        let next = |round: &Round, unfinished: &[Arc<Upstream>]| {
            self.upstreams.choose(round).or_else(|| unfinished.first().map(Arc::clone))
        };
        while let Some(upstream) = next(&round, unfinished) {
            unfinished.retain(|one| !Arc::ptr_eq(one, &upstream));
            unfinished.push(Arc::clone(&upstream));
            round.tried(&upstream);
            let load = UpstreamLoad::take(&upstream);
            match self.attempt(client, header, &upstream, limit).await {
                Ok(stream) => {
                    self.upstreams.succeeded(&upstream, client.listener());
                    let (listener, traffic) = (&client.listener, stream.traffic());
                    let entry = self.ledgers.enter(listener, &upstream, Source::New, traffic);
                    return Ok(Connected { stream, count: UpstreamCount { entry, load } });
                }
                Err(Failed::Upstream(reason)) => {
                    self.ledgers.failed(&client.listener, &upstream);
                    self.upstreams.failed(&upstream, client.listener(), &reason);
                    tried.extend(unfinished.pop());
                    last = Some(reason);
                }
                Err(other) => return Err(other),
            }
        }
        Err(last.map_or(Failed::NoneLeft, Failed::Upstream))
    }

    /// Connects to one upstream. Gives up at `limit` or after the connect timeout, whichever is
    /// earlier.
    async fn attempt(
        &self,
        client: &Connection,
        header: &[u8],
        upstream: &Upstream,
        limit: Option<Instant>,
    ) -> Result<Stream, Failed> {
        let now = Instant::now();
        let deadline = now
            .checked_add(self.config.connect_timeout)
            .unwrap_or(now + Duration::from_secs(86_400));
        let end = limit.map_or(deadline, |limit| limit.min(deadline));
        let mut connecting = pin!(self.greet(client.listener(), upstream, header));
        loop {
            let look = Instant::now() + LAST_PAUSE;
            match timeout_at(look.min(end), connecting.as_mut()).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if is_local_shortage(&error) => {
                    return Err(Failed::LocalShortage(error));
                }
                Ok(Err(error)) => return Err(Failed::Upstream(error)),
                Err(_) if client.stream.has_left() => return Err(Failed::ClientGone),
                Err(_) if look < end => {}
                Err(_) if end < deadline => return Err(Failed::TimedOut),
                Err(_) => return Err(Failed::Upstream(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    /// Connects to an upstream and sends it the PROXY header.
    async fn greet(
        &self,
        listener: &str,
        upstream: &Upstream,
        header: &[u8],
    ) -> io::Result<Stream> {
        let mut stream = dial(upstream.address()).await?;
        self.options.set(&mut stream, Side::Upstream, listener);
        if !header.is_empty() {
            greeted(upstream.address(), stream.write_all(header).await)?;
        }
        Ok(stream)
    }
}

/// Checks the result of writing the PROXY header to an upstream. Succeeds if an upstream on a Unix
/// socket has already closed the connection, because it may have sent an answer first.
pub(super) fn greeted(upstream: &Address, written: io::Result<()>) -> io::Result<()> {
    let is_unix = matches!(upstream, Address::UnixPath(_) | Address::UnixAbstract(_));
    written.or_else(|error| {
        let has_closed = is_unix && error.kind() == io::ErrorKind::BrokenPipe;
        if has_closed { Ok(()) } else { Err(error) }
    })
}

/// Returns the error for a client that has disconnected before an upstream accepted its connection.
pub(crate) fn client_disconnected() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the client disconnected before an upstream accepted its connection",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_that_closes_its_unix_socket_was_connected() {
        let written = |kind: io::ErrorKind| Err(io::Error::from(kind));
        let [tcp, unix] = ["127.0.0.1:80", "/run/up"].map(|one| one.parse().unwrap());
        greeted(&unix, written(io::ErrorKind::BrokenPipe)).unwrap();
        greeted(&unix, written(io::ErrorKind::TimedOut)).unwrap_err();
        greeted(&tcp, written(io::ErrorKind::BrokenPipe)).unwrap_err();
        greeted(&tcp, Ok(())).unwrap();
    }
}
