//! The carried state of a proxied connection: what another process needs to continue it.
//!
//! The state holds the upstream's socket, the unwritten bytes in both directions, the ends already
//! passed on, and the used part of the limits. A client without an upstream starts over in the new
//! process, with what is known about it and the patience that is left.
//!
//! A connection is refused if its upstream is not in the new configuration, and then stays in the
//! old process. An address of a host name is accepted as long as the name is configured. Changed
//! DNS answers affect new connections only.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::header::Route;
use super::limits::Used;
use super::tally::Tally;
use super::upstream::Upstream;
use super::upstreams::Upstreams;
use crate::address::Address;
use crate::carry::CarriedState;
use crate::net::{Peer, Stream, Traffic};
use crate::service::relay::{Relay, RelaySnapshot};

/// Name and version of the format: one line of JSON, followed by the unwritten bytes.
const FORMAT: &str = "proxy/1";

/// How far a connection has come.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// The client has no upstream yet. `waited` is how long it has waited for its header or for an
    /// upstream.
    Arriving {
        identified: Option<Identified>,
        waited: Option<Duration>,
        #[serde(default)]
        tried: Vec<String>,
    },
    /// The client has an upstream. Its socket is the first descriptor of the carried state; the
    /// ends of pipes follow.
    Conversing(Conversing),
}

/// What is known about a client that has no upstream yet.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    /// Where the client comes from, once that is determined. The answer itself may be empty.
    pub(super) identified: Option<Identified>,
    /// When the client began to wait for its header or for an upstream.
    pub(super) since: Option<Instant>,
    /// The upstreams already tried in this round, including one whose attempt is still pending.
    /// Otherwise a client that is carried repeatedly would never reach the next upstream.
    pub(super) tried: Vec<Arc<Upstream>>,
}

/// The result of identifying a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identified {
    pub(super) route: Option<Route>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Conversing {
    /// The label of the upstream.
    pub(super) upstream: String,
    /// Bytes read from the upstream and written to it so far.
    received: u64,
    sent: u64,
    /// Whether the upstream has half-closed.
    finished: bool,
    pub(super) relay: RelaySnapshot,
    used: Used,
}

/// A conversation that continues here after another process has held it.
pub(super) struct Resumed {
    /// The upstream that the client is connected to.
    pub(super) upstream: Arc<Upstream>,
    pub(super) stream: Stream,
    pub(super) relay: Relay,
    pub(super) used: Used,
}

/// The restored state of a carried connection.
pub(super) enum Begun {
    Arriving(Arriving),
    Conversing(Resumed),
}

/// Packs a client that has no upstream yet.
pub(super) fn arriving(Arriving { identified, since, tried }: Arriving) -> CarriedState {
    let waited = since.map(|since| since.elapsed());
    let tried = tried.iter().map(|upstream| upstream.label().to_owned()).collect();
    parcel(&Stage::Arriving { identified, waited, tried }, &[], Vec::new())
}

/// Packs a conversation: the unwritten bytes, and how much of its limits is used.
///
/// # Errors
/// When the kernel refuses to stop watching the upstream's socket.
pub(super) fn conversing(
    upstream: String,
    stream: Stream,
    relay: Relay,
    used: Used,
) -> io::Result<CarriedState> {
    let (still, bytes, pipes) = relay.snapshot();
    let conversing = Conversing {
        upstream,
        received: stream.received(),
        sent: stream.sent(),
        finished: stream.peer_has_finished(),
        relay: still,
        used,
    };
    let descriptors = [stream.into_socket()?].into_iter().chain(pipes).collect();
    Ok(parcel(&Stage::Conversing(conversing), &bytes, descriptors))
}

fn parcel(stage: &Stage, owed: &[u8], descriptors: Vec<OwnedFd>) -> CarriedState {
    // All map keys are strings here, so serialization cannot fail.
    let mut bytes = serde_json::to_vec(stage).unwrap_or_default();
    bytes.push(b'\n');
    bytes.extend_from_slice(owed);
    CarriedState { descriptors, ..CarriedState::new(FORMAT, bytes) }
}

/// Checks whether a carried state can be restored with these upstreams.
///
/// # Errors
/// The reason why it cannot.
pub(super) fn check(parcel: &CarriedState, upstreams: &Upstreams) -> Result<(), String> {
    let (stage, _) = whole(parcel)?;
    match stage {
        Stage::Conversing(Conversing { upstream, .. }) if !upstreams.is_configured(&upstream) => {
            Err(format!("{upstream} is no upstream any more"))
        }
        Stage::Arriving { .. } | Stage::Conversing(_) => Ok(()),
    }
}

/// Restores a carried state that has passed [`check`]. Must be called in a tokio runtime.
///
/// # Errors
/// When the state is incomplete, or the kernel refuses its descriptors.
pub(super) fn take_up(
    parcel: CarriedState,
    upstreams: &Upstreams,
    tally: &Tally,
) -> io::Result<Begun> {
    let (stage, owed) = whole(&parcel).map_err(io::Error::other)?;
    let owed = &parcel.bytes[owed..];
    let Conversing { upstream, received, sent, finished, relay, used } = match stage {
        Stage::Arriving { identified, waited, tried } => {
            let since = waited
                .map(|waited| Instant::now().checked_sub(waited).unwrap_or_else(Instant::now));
            let tried = tried.iter().filter_map(|label| upstreams.find(label)).collect();
            return Ok(Begun::Arriving(Arriving { identified, since, tried }));
        }
        Stage::Conversing(conversing) => conversing,
    };
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    // The host name may have lost the address since the check.
    let upstream = upstreams.find(&upstream).or_else(|| upstreams.adopt(&upstream, &tally.known()));
    let upstream = upstream.ok_or_else(missing)?;
    let mut descriptors = parcel.descriptors.into_iter();
    let socket = descriptors.next().ok_or_else(missing)?;
    let stream = Stream::taken_up(
        socket,
        peer(upstream.address()),
        Traffic::so_far(received, sent),
        finished,
    )?;
    Ok(Begun::Conversing(Resumed {
        upstream,
        stream,
        relay: Relay::restore(relay, owed, descriptors)?,
        used,
    }))
}

/// Parses a carried state and checks that it is complete. Returns the stage, and the offset of the
/// unwritten bytes.
fn whole(parcel: &CarriedState) -> Result<(Stage, usize), String> {
    if parcel.format != FORMAT {
        return Err(format!("{} is not known here", parcel.format));
    }
    let (stage, owed) = read(&parcel.bytes)?;
    let (bytes, descriptors) = match &stage {
        Stage::Arriving { .. } => (0, 0),
        Stage::Conversing(Conversing { relay, .. }) => {
            let (bytes, descriptors) = relay.needs();
            (bytes, 1 + descriptors)
        }
    };
    if (bytes, descriptors) == (owed.len(), parcel.descriptors.len()) {
        Ok((stage, parcel.bytes.len() - owed.len()))
    } else {
        Err(format!(
            "{} bytes and {} descriptors are not what it speaks of",
            owed.len(),
            parcel.descriptors.len()
        ))
    }
}

const fn peer(address: &Address) -> Peer {
    match address {
        Address::Tcp(address) => Peer::Tcp(*address),
        Address::Tcp6Only(address) => Peer::Tcp(SocketAddr::V6(*address)),
        Address::UnixPath(_) | Address::UnixAbstract(_) => Peer::Unix,
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<(Stage, &[u8]), String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("a parcel without words")?;
    let stage = serde_json::from_slice(&bytes[..end]).map_err(|error| error.to_string())?;
    Ok((stage, &bytes[end + 1..]))
}
