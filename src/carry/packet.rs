//! The packets that transfer connections to the successor, and the packets that answer them. A
//! packet begins with a line of JSON. In a packet that transfers a connection, the connection's
//! saved state follows.
//!
//! Unknown fields are ignored, so that later versions can add fields. The predecessor announces its
//! version of this format before the first packet. A successor that does not support the version
//! closes the channel.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::error::Malformed;

/// The version of the packet format that this build uses.
pub(crate) const VERSION: u32 = 1;

/// The maximum size of a packet in bytes. It fits into the default send buffer of a socket
/// (`net.core.wmem_default`).
pub(super) const PACKET_MAX: usize = 128 * 1024;

/// The maximum length of the reason for a refusal, in characters. Longer reasons are truncated.
const REASON_MAX: usize = 1000;

/// The header of a packet that transfers a connection. The bytes of the saved state follow the
/// header. File descriptors are attached to the packet: first the client's socket, then the
/// descriptors of the saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PacketHead {
    /// The id of the connection. The answer contains the same id. The sender gives each connection
    /// a different id.
    pub(super) id: u64,
    /// The name of the listener that accepted the connection.
    pub(crate) listener: String,
    /// The address of the client, or `None` on a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
    /// The age of the connection in milliseconds.
    pub(crate) age_ms: u64,
    /// The number of bytes read from the client so far.
    pub(crate) received: u64,
    /// The number of bytes written to the client so far.
    pub(crate) sent: u64,
    /// Whether the client has half-closed the connection and the sender of the packet has already
    /// read the end of the stream.
    pub(crate) peer_finished: bool,
    /// The sender's connection limit for this listener, or `None` if the sender has no limit for
    /// it.
    #[serde(default)]
    pub(crate) max_connections: Option<NonZeroUsize>,
    /// The name and version of the format of the saved state.
    pub(super) format: String,
}

/// The successor's answer to a packet that transfers a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CarryAnswer {
    /// The connection belongs to the successor from now on.
    Taken,
    /// The successor refuses the connection. The text is the reason.
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    id: u64,
    #[serde(flatten)]
    answer: CarryAnswer,
}

/// Encodes a packet that transfers a connection with its saved state.
pub(super) fn connection(head: &PacketHead, bytes: &[u8]) -> Vec<u8> {
    let mut packet = line(head);
    packet.extend_from_slice(bytes);
    packet
}

/// Encodes a packet with the answer for the connection with this id.
pub(super) fn answer(id: u64, answer: CarryAnswer) -> Vec<u8> {
    let answer = match answer {
        CarryAnswer::Taken => answer,
        CarryAnswer::Refused(why) => CarryAnswer::Refused(why.chars().take(REASON_MAX).collect()),
    };
    line(&Answered { id, answer })
}

/// Parses a packet that transfers a connection. Returns its header and the bytes of the saved
/// state.
///
/// # Errors
/// Returns the reason why the packet is invalid.
pub(super) fn read_connection(packet: &[u8]) -> Result<(PacketHead, &[u8]), Malformed> {
    let end = packet.iter().position(|byte| *byte == b'\n').ok_or("the packet has no header")?;
    let head = serde_json::from_slice(&packet[..end]).map_err(|error| error.to_string())?;
    Ok((head, &packet[end + 1..]))
}

/// Parses a packet with an answer. Returns the id of the connection and the answer.
///
/// # Errors
/// Returns the reason why the packet is invalid.
pub(super) fn read_answer(packet: &[u8]) -> Result<(u64, CarryAnswer), Malformed> {
    serde_json::from_slice(packet)
        .map(|Answered { id, answer }| (id, answer))
        .map_err(|error| error.to_string().into())
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Serialization cannot fail, because all map keys are strings.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> PacketHead {
        PacketHead {
            id: 7,
            listener: "web\n\"".to_owned(),
            peer: Some("[::1]:5".parse().unwrap()),
            age_ms: 1,
            received: 2,
            sent: u64::MAX,
            peer_finished: true,
            max_connections: NonZeroUsize::new(9),
            format: "echo/1".to_owned(),
        }
    }

    #[test]
    fn every_packet_reads_back_as_it_was_written() {
        let packet = connection(&head(), b"\n\0{owed}");
        assert_eq!(read_connection(&packet), Ok((head(), &b"\n\0{owed}"[..])));
        for said in [CarryAnswer::Taken, CarryAnswer::Refused("no \"room\"\n".to_owned())] {
            assert_eq!(read_answer(&answer(9, said.clone())), Ok((9, said)));
        }
    }

    #[test]
    fn a_packet_may_grow_and_garbage_is_an_error() {
        let grown = String::from_utf8(connection(&head(), b"")).unwrap().replacen(
            '{',
            "{\"novel\":[1],",
            1,
        );
        assert_eq!(read_connection(grown.as_bytes()), Ok((head(), &b""[..])));
        assert_eq!(
            read_answer(b"{\"id\":1,\"taken\":null,\"novel\":2}\n"),
            Ok((1, CarryAnswer::Taken))
        );
        for garbage in [&b""[..], b"\n", b"{}", b"{}\n", b"\xff\n", b"{\"id\":1}\n"] {
            assert!(
                read_connection(garbage).is_err() && read_answer(garbage).is_err(),
                "{garbage:?}"
            );
        }
        let long = answer(1, CarryAnswer::Refused("x".repeat(1 << 20)));
        assert!(long.len() < 2 * REASON_MAX);
    }
}
