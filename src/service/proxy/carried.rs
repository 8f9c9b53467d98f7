//! The state that another process needs to continue a proxied connection.
//!
//! The state holds the upstream's socket and the unwritten bytes of both directions. It also
//! records which sides have half-closed, and how much of its time limits the connection has used.
//! For a client that has no upstream yet, the new process starts the connection attempts again. The
//! client's addresses and the time that the client has already waited are part of the state.
//!
//! The new process refuses a connection whose upstream is not in its configuration, and the
//! connection stays in the old process. If the upstream's address comes from a host name, only the
//! name must be configured. A changed DNS answer affects new connections only.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::header::Route;
use super::ledgers::ProxyLedgers;
use super::upstream::Upstream;
use super::upstreams::UpstreamPool;
use crate::address::Address;
use crate::carry::{CarriedState, Declined};
use crate::net::{ByteCounts, Peer, RelaySocket, Stream, Traffic};
use crate::plane::{Relay, RelaySnapshot, Used};

/// The name and the version of the format in which the state of a connection moves to the
/// successor. A state is one line of JSON, followed by the unwritten bytes.
const FORMAT: &str = "proxy/1";

/// The stage that a connection has reached when it moves to the successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CarriedStage {
    /// The client has no upstream yet. `waited` is how long the proxy has waited for the client's
    /// PROXY header or for an upstream.
    Arriving {
        identified: Option<Identified>,
        waited: Option<Duration>,
        #[serde(default)]
        tried: Vec<String>,
        #[serde(default)]
        unfinished: Vec<String>,
    },
    /// The client is connected to an upstream. The first file descriptor of the state is the
    /// upstream's socket. The ends of the relay's pipes follow.
    Conversing(Conversing),
}

/// The information about a client that has no upstream yet.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    /// The client's addresses, or `None` until the proxy has looked for them. The inner `route` is
    /// `None` if the proxy could not find the addresses.
    pub(super) identified: Option<Identified>,
    /// The time at which the proxy began to wait for the client's PROXY header or for an upstream.
    pub(super) since: Option<Instant>,
    /// The upstreams that have failed in the current pass over all upstreams.
    pub(super) tried: Vec<Arc<Upstream>>,
    /// The upstreams for which an attempt has begun but not ended in the current pass. A move to
    /// another process aborts the attempt. The new process tries these upstreams last. Otherwise, a
    /// client that moves repeatedly would try the same upstream each time.
    pub(super) unfinished: Vec<Arc<Upstream>>,
}

/// The client addresses that the proxy has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identified {
    pub(super) route: Option<Route>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Conversing {
    /// The label of the upstream, as the log shows it: the address, with the host name if the
    /// upstream has one.
    pub(super) upstream: String,
    /// How many bytes the proxy has read from the upstream.
    received: u64,
    /// How many bytes the proxy has written to the upstream.
    sent: u64,
    /// Whether the upstream has half-closed: it will send nothing more.
    finished: bool,
    pub(super) relay: RelaySnapshot,
    used: Used,
}

/// A conversation between a client and an upstream that another process began and this process
/// continues.
pub(super) struct Resumed {
    /// The upstream to which the client is connected.
    pub(super) upstream: Arc<Upstream>,
    pub(super) stream: Stream,
    pub(super) relay: Relay,
    pub(super) used: Used,
}

/// A connection that has moved here from another process. It continues at the stage that it had
/// reached.
pub(super) enum Begun {
    Arriving(Arriving),
    Conversing(Resumed),
}

/// Builds the state of a client that moves to another process before it has an upstream.
pub(super) fn arriving(arriving: Arriving) -> CarriedState {
    let Arriving { identified, since, tried, unfinished } = arriving;
    let waited = since.map(|since| since.elapsed());
    let [tried, unfinished] = [tried, unfinished]
        .map(|all| all.iter().map(|upstream| upstream.label().to_owned()).collect());
    saved_state(&CarriedStage::Arriving { identified, waited, tried, unfinished }, &[], Vec::new())
}

/// Builds the state of a conversation that moves to another process. The state includes the
/// unwritten bytes, and how much of its time limits the connection has used.
pub(super) fn conversing(
    upstream: String,
    socket: RelaySocket,
    relay: Relay,
    used: Used,
) -> CarriedState {
    let (still, bytes, pipes) = relay.snapshot();
    let conversing = Conversing {
        upstream,
        received: socket.counts().received,
        sent: socket.counts().sent,
        finished: socket.peer_has_finished(),
        relay: still,
        used,
    };
    let descriptors = [socket.into_socket()].into_iter().chain(pipes).collect();
    saved_state(&CarriedStage::Conversing(conversing), &bytes, descriptors)
}

fn saved_state(stage: &CarriedStage, owed: &[u8], descriptors: Vec<OwnedFd>) -> CarriedState {
    // Serialization cannot fail, because every map in the state has strings as keys.
    let mut bytes = serde_json::to_vec(stage).unwrap_or_default();
    bytes.push(b'\n');
    bytes.extend_from_slice(owed);
    CarriedState { descriptors, ..CarriedState::new(FORMAT, bytes) }
}

/// Checks whether a proxy with these upstreams can restore a connection from the state that another
/// process has saved.
///
/// # Errors
/// Returns the reason why the proxy cannot restore the state.
pub(super) fn check(saved_state: &CarriedState, upstreams: &UpstreamPool) -> Result<(), Declined> {
    let (stage, _) = whole(saved_state)?;
    match stage {
        CarriedStage::Conversing(Conversing { upstream, .. })
            if !upstreams.is_configured(&upstream) =>
        {
            Err(format!("{upstream} is no longer an upstream in the new configuration").into())
        }
        CarriedStage::Arriving { .. } | CarriedStage::Conversing(_) => Ok(()),
    }
}

/// Restores the state of a moved connection that [`check`] has accepted. Must be called within a
/// tokio runtime.
///
/// # Errors
/// Fails if the state is incomplete, or if the kernel refuses one of its file descriptors.
pub(super) fn take_up(
    saved_state: CarriedState,
    upstreams: &UpstreamPool,
    ledgers: &ProxyLedgers,
) -> io::Result<Begun> {
    let (stage, owed) = whole(&saved_state).map_err(io::Error::other)?;
    let owed = &saved_state.bytes[owed..];
    let Conversing { upstream, received, sent, finished, relay, used } = match stage {
        CarriedStage::Arriving { identified, waited, tried, unfinished } => {
            let since = waited
                .map(|waited| Instant::now().checked_sub(waited).unwrap_or_else(Instant::now));
            let [tried, unfinished] = [tried, unfinished]
                .map(|all| all.iter().filter_map(|label| upstreams.find(label)).collect());
            return Ok(Begun::Arriving(Arriving { identified, since, tried, unfinished }));
        }
        CarriedStage::Conversing(conversing) => conversing,
    };
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    // Create the upstream if its host name no longer resolves to this address, which can happen
    // after [`check`] has accepted the state.
    let upstream =
        upstreams.find(&upstream).or_else(|| upstreams.adopt(&upstream, &ledgers.known()));
    let upstream = upstream.ok_or_else(missing)?;
    let mut descriptors = saved_state.descriptors.into_iter();
    let socket = descriptors.next().ok_or_else(missing)?;
    let stream = Stream::taken_up(
        socket,
        peer(upstream.address()),
        Traffic::so_far(ByteCounts { received, sent }),
        finished,
    )?;
    Ok(Begun::Conversing(Resumed {
        upstream,
        stream,
        relay: Relay::restore(relay, owed, descriptors)?,
        used,
    }))
}

/// Parses the state of a moved connection and checks that it is complete. Returns the stage of the
/// connection, and the offset at which the unwritten bytes begin.
fn whole(saved_state: &CarriedState) -> Result<(CarriedStage, usize), Declined> {
    if saved_state.format != FORMAT {
        let why = format!(
            "the proxy cannot continue a saved connection of the format {}",
            saved_state.format
        );
        return Err(why.into());
    }
    let (stage, owed) = read(&saved_state.bytes)?;
    let (bytes, descriptors) = match &stage {
        CarriedStage::Arriving { .. } => (0, 0),
        CarriedStage::Conversing(Conversing { relay, .. }) => {
            let (bytes, descriptors) = relay.needs();
            (bytes, 1 + descriptors)
        }
    };
    if (bytes, descriptors) == (owed.len(), saved_state.descriptors.len()) {
        Ok((stage, saved_state.bytes.len() - owed.len()))
    } else {
        Err(format!(
            "the saved connection has {} bytes and {} file descriptors, but its header says \
            otherwise",
            owed.len(),
            saved_state.descriptors.len()
        )
        .into())
    }
}

const fn peer(address: &Address) -> Peer {
    match address {
        Address::Tcp(address) => Peer::Tcp(*address),
        Address::Tcp6Only(address) => Peer::Tcp(SocketAddr::V6(*address)),
        Address::UnixPath(_) | Address::UnixAbstract(_) => Peer::Unix,
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<(CarriedStage, &[u8]), Declined> {
    let end =
        bytes.iter().position(|byte| *byte == b'\n').ok_or("the saved connection has no header")?;
    let stage = serde_json::from_slice(&bytes[..end]).map_err(|error| error.to_string())?;
    Ok((stage, &bytes[end + 1..]))
}
