//! Puts a proxied connection into words, so that another process can go on with it: its upstream's
//! socket, what is owed each way, which ends were passed on, and what has been used of its limits.
//!
//! One that has no upstream yet begins anew there, with what was learned of it and the patience
//! that is left. One whose upstream is not in the other's configuration stays where it is: the
//! configuration says that nobody is to be sent there any more. An address of a host name is in it
//! as long as the name is: what the name has now counts for new connections alone.

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
use crate::carry::Parcel;
use crate::net::{Peer, Stream, Traffic};
use crate::service::relay::{Relay, Still};

/// The words' name and version: one line of JSON, and the bytes that are owed.
const FORMAT: &str = "proxy/1";

/// How far a connection has come.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// It has no upstream yet. So long it has waited for what it lacks: its header, or an upstream.
    Arriving {
        identified: Option<Identified>,
        waited: Option<Duration>,
        #[serde(default)]
        tried: Vec<String>,
    },
    /// It has. The socket is the first of the parcel's descriptors, those of pipes follow.
    Conversing(Conversing),
}

/// What is known of a client that has no upstream yet.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    /// Where it came from and where it went, if that has been asked: some have nothing to say to
    /// it.
    pub(super) identified: Option<Identified>,
    /// Since when it waits for what it lacks, its header or an upstream, if it does.
    pub(super) since: Option<Instant>,
    /// Which of the upstreams have had their chance in this round: also one whose answer is still
    /// awaited, or a client that is carried again and again would never come to the others.
    pub(super) tried: Vec<Arc<Upstream>>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identified {
    pub(super) route: Option<Route>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Conversing {
    /// Its label.
    pub(super) upstream: String,
    /// Bytes read from it so far, and written to it.
    received: u64,
    sent: u64,
    /// Whether its end has been read.
    finished: bool,
    pub(super) relay: Still,
    used: Used,
}

/// A conversation that another process has held until now.
pub(super) struct Resumed {
    /// Which of the upstreams it is with.
    pub(super) upstream: Arc<Upstream>,
    pub(super) stream: Stream,
    pub(super) relay: Relay,
    pub(super) used: Used,
}

/// What a connection begins with.
pub(super) enum Begun {
    Arriving(Arriving),
    Conversing(Resumed),
}

/// Puts a client into words that has no upstream yet.
pub(super) fn arriving(Arriving { identified, since, tried }: Arriving) -> Parcel {
    let waited = since.map(|since| since.elapsed());
    let tried = tried.iter().map(|upstream| upstream.label().to_owned()).collect();
    parcel(&Stage::Arriving { identified, waited, tried }, &[], Vec::new())
}

/// Puts a conversation into words: what was not passed on, and what has been used of its limits.
///
/// # Errors
/// When the kernel will not end its watch over the upstream's socket.
pub(super) fn conversing(
    upstream: String,
    stream: Stream,
    relay: Relay,
    used: Used,
) -> io::Result<Parcel> {
    let (still, bytes, pipes) = relay.into_still();
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

fn parcel(stage: &Stage, owed: &[u8], descriptors: Vec<OwnedFd>) -> Parcel {
    // What is written here has no keys but names, and cannot fail.
    let mut bytes = serde_json::to_vec(stage).unwrap_or_default();
    bytes.push(b'\n');
    bytes.extend_from_slice(owed);
    Parcel { descriptors, ..Parcel::new(FORMAT, bytes) }
}

/// Whether a parcel can be taken up with these upstreams.
///
/// # Errors
/// Why not.
pub(super) fn check(parcel: &Parcel, upstreams: &Upstreams) -> Result<(), String> {
    let (stage, _) = whole(parcel)?;
    match stage {
        Stage::Conversing(Conversing { upstream, .. }) if !upstreams.is_configured(&upstream) => {
            Err(format!("{upstream} is no upstream any more"))
        }
        Stage::Arriving { .. } | Stage::Conversing(_) => Ok(()),
    }
}

/// Takes up what was given up, after [`check`] has passed. Must be called in a tokio runtime.
///
/// # Errors
/// When it is not whole, or the kernel refuses it.
pub(super) fn take_up(parcel: Parcel, upstreams: &Upstreams, tally: &Tally) -> io::Result<Begun> {
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
    // Its name may have lost the address since the check.
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
        relay: Relay::from_still(relay, owed, descriptors)?,
        used,
    }))
}

/// Reads a parcel that holds all that it speaks of: the stage, and where the bytes begin that are
/// owed.
fn whole(parcel: &Parcel) -> Result<(Stage, usize), String> {
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
