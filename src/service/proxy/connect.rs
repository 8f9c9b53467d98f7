//! The connection attempts for one client: if an upstream fails, try the next one; if all fail,
//! wait and retry.
//!
//! A client is held while no upstream accepts, so a backend can restart without its clients
//! noticing. Meanwhile the proxy checks regularly whether the client is still connected. A client
//! that has half-closed after its request still counts as connected.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Proxy;
use super::carried::Arriving;
use super::options::Side;
use super::tally::{Counted, Source};
use super::upstream::{Upstream, UpstreamLoad};
use super::upstreams::Round;
use crate::net::{Stream, dial};
use crate::service::Connection;

/// The first pause after all upstreams have failed. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause, and the interval at which the client is checked for a disconnect.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// A connection to an upstream. It is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Connected<'a> {
    pub(super) stream: Stream,
    // Fields are dropped in this order. The traffic is added to the sums before the upstream can
    // have zero connections.
    counted: Counted<'a>,
    _place: UpstreamLoad,
}

impl Connected<'_> {
    /// Returns the label of the upstream.
    pub(super) fn label(&self) -> &str {
        self.counted.upstream().label()
    }
}

/// Why a connection attempt failed.
enum Failed {
    /// The upstream did not accept.
    Upstream(io::Error),
    /// This machine has no descriptors or memory left. That is not the upstream's fault.
    Own(io::Error),
    /// The client has disconnected.
    ClientGone,
    /// The client's patience has run out.
    OutOfPatience,
}

impl Proxy {
    /// Counts an upstream connection that another process made, and returns it.
    pub(super) fn reconnected(
        &self,
        listener: &Arc<str>,
        upstream: &Arc<Upstream>,
        stream: Stream,
    ) -> Connected<'_> {
        let place = UpstreamLoad::take(upstream);
        let counted = self.tally.enter(listener, upstream, Source::Carried, stream.traffic());
        Connected { stream, _place: place, counted }
    }

    /// Connects `client` to an upstream and sends `header` there first.
    ///
    /// If another process has already tried, this continues from `arriving`. Cancel safe: open
    /// connections are closed, and `arriving` records the progress.
    ///
    /// # Errors
    /// The reason why no upstream accepted, or that the client has disconnected.
    pub(super) async fn connect(
        &self,
        client: &Connection,
        arriving: &mut Arriving,
        header: &[u8],
    ) -> io::Result<Connected<'_>> {
        let Arriving { since, tried, .. } = arriving;
        // In the first round, each upstream gets its full connect timeout, even beyond the
        // patience. A carried client does not get that time again in each process.
        let mut limit = since.and_then(|since| {
            since.checked_add(self.config.connect_patience.max(self.longest_round()))
        });
        let until =
            since.get_or_insert_with(Instant::now).checked_add(self.config.connect_patience);
        let mut pause = FIRST_PAUSE;
        loop {
            let reason = match self.go_round(client, header, limit, tried).await {
                Ok(connected) => return Ok(connected),
                Err(Failed::ClientGone) => return Err(client_gone()),
                Err(Failed::Upstream(reason) | Failed::Own(reason)) => reason,
                Err(Failed::OutOfPatience) => io::ErrorKind::TimedOut.into(),
            };
            let next = Instant::now() + pause;
            if until.is_some_and(|until| next >= until) {
                self.upstreams.turned_away(client.listener(), &reason);
                return Err(reason);
            }
            sleep_until(next).await;
            if client.stream.has_hung_up() {
                return Err(client_gone());
            }
            tried.clear();
            pause = (pause * 2).min(LAST_PAUSE);
            limit = until;
        }
    }

    /// Returns the longest time it can take to try each upstream once.
    fn longest_round(&self) -> Duration {
        let upstreams = u32::try_from(self.upstreams.current().len()).unwrap_or(u32::MAX);
        self.config.connect_timeout.saturating_mul(upstreams)
    }

    /// Tries each upstream once, except those in `tried`.
    async fn go_round(
        &self,
        client: &Connection,
        header: &[u8],
        limit: Option<Instant>,
        tried: &mut Vec<Arc<Upstream>>,
    ) -> Result<Connected<'_>, Failed> {
        let mut round: Round = self.upstreams.round();
        tried.iter().for_each(|upstream| round.tried(upstream));
        let mut last = None;
        if round.is_empty() {
            last = Some(io::Error::new(
                io::ErrorKind::NotConnected,
                "no upstream's host name has an address yet",
            ));
        }
        while let Some(upstream) = self.upstreams.choose(&round) {
            tried.push(Arc::clone(&upstream));
            round.tried(&upstream);
            let place = UpstreamLoad::take(&upstream);
            match self.attempt(client, header, &upstream, limit).await {
                Ok(stream) => {
                    self.upstreams.succeeded(&upstream, client.listener());
                    let counted = self.tally.enter(
                        &client.listener,
                        &upstream,
                        Source::Made,
                        stream.traffic(),
                    );
                    return Ok(Connected { stream, _place: place, counted });
                }
                Err(Failed::Upstream(reason)) => {
                    self.tally.failed(&client.listener, &upstream);
                    self.upstreams.failed(&upstream, client.listener(), &reason);
                    last = Some(reason);
                }
                Err(other) => return Err(other),
            }
        }
        Err(Failed::Upstream(last.unwrap_or_else(|| io::ErrorKind::NotConnected.into())))
    }

    /// Connects to one upstream before the connect timeout or `limit`, whichever comes first.
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
                Ok(Err(error)) if is_own(&error) => return Err(Failed::Own(error)),
                Ok(Err(error)) => return Err(Failed::Upstream(error)),
                Err(_) if client.stream.has_hung_up() => return Err(Failed::ClientGone),
                Err(_) if look < end => {}
                Err(_) if end < deadline => return Err(Failed::OutOfPatience),
                Err(_) => return Err(Failed::Upstream(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    /// Connects and sends the header.
    async fn greet(
        &self,
        listener: &str,
        upstream: &Upstream,
        header: &[u8],
    ) -> io::Result<Stream> {
        let mut stream = dial(upstream.address()).await?;
        self.options.set(&mut stream, Side::Upstream, listener);
        if !header.is_empty() {
            stream.write_all(header).await?;
        }
        Ok(stream)
    }
}

fn client_gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the client went away before an upstream accepted it",
    )
}

/// Returns whether a connection failed because this process or this machine lacks descriptors or
/// memory.
///
/// Every other error is a failure of that one upstream, whatever its cause: the next upstream may
/// well be reachable. Running out of local ports is one of them, because ports are counted for each
/// destination.
pub(super) fn is_own(error: &io::Error) -> bool {
    // ENOSPC comes from epoll_ctl(2): the user already watches as many descriptors as allowed.
    let wants = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::ENOSPC];
    error.raw_os_error().is_some_and(|code| wants.contains(&Errno::from_raw(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a lack of descriptors or memory is a local failure. All other errors count against the
    /// upstream.
    #[test]
    fn only_a_lack_of_descriptors_or_memory_is_local() {
        let is_own = |errno: Errno| is_own(&errno.into());
        for own in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::ENOSPC] {
            assert!(is_own(own), "{own}");
        }
        for upstream in [
            Errno::EADDRNOTAVAIL,
            Errno::EAFNOSUPPORT,
            Errno::EACCES,
            Errno::EPERM,
            Errno::EAGAIN,
            Errno::EINVAL,
            Errno::ENETUNREACH,
            Errno::EHOSTUNREACH,
            Errno::ENETDOWN,
            Errno::ENODEV,
            Errno::EPROTONOSUPPORT,
            Errno::ECONNREFUSED,
            Errno::ETIMEDOUT,
            Errno::ENOENT,
        ] {
            assert!(!is_own(upstream), "{upstream}");
        }
    }
}
