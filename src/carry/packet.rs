//! Encodes what the two ends of a carry say: a line of JSON, and after it the bytes of a parcel.
//!
//! Fields that are not known are passed over, so that a packet can grow. The version is agreed upon
//! before the first one: the predecessor offers it, and a successor that does not speak it closes
//! its end.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// The version that is spoken here.
pub(crate) const VERSION: u32 = 1;

/// Bytes in the largest packet: less than `net.core.wmem_default`.
pub(super) const PACKET_MAX: usize = 128 * 1024;

/// Characters of a reason that are sent.
const REASON_MAX: usize = 1000;

/// What is said of a connection, ahead of the bytes of its parcel. Its descriptors come with it:
/// the client's socket first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// By which it is answered: unique among all that one process sends.
    pub(super) id: u64,
    /// The name of the listener by which it came.
    pub(crate) listener: String,
    /// Who the client is; none on a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
    /// How long it has been there.
    pub(crate) age_ms: u64,
    /// Bytes read from the client so far.
    pub(crate) received: u64,
    /// Bytes written to it.
    pub(crate) sent: u64,
    /// Whether the client's end has been read.
    pub(crate) peer_finished: bool,
    /// How many the listener might have at once; none if as many as came.
    #[serde(default)]
    pub(crate) max_connections: Option<NonZeroUsize>,
    /// The format of its parcel.
    pub(super) format: String,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// It is the successor's from now on.
    Taken,
    /// It is not; why.
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    id: u64,
    #[serde(flatten)]
    answer: Answer,
}

/// The packet of a connection.
pub(super) fn connection(head: &Head, bytes: &[u8]) -> Vec<u8> {
    let mut packet = line(head);
    packet.extend_from_slice(bytes);
    packet
}

/// The packet of an answer.
pub(super) fn answer(id: u64, answer: Answer) -> Vec<u8> {
    let answer = match answer {
        Answer::Taken => answer,
        Answer::Refused(why) => Answer::Refused(why.chars().take(REASON_MAX).collect()),
    };
    line(&Answered { id, answer })
}

/// Reads the packet of a connection: its head, and the bytes.
///
/// # Errors
/// Why it is none.
pub(super) fn read_connection(packet: &[u8]) -> Result<(Head, &[u8]), String> {
    let end = packet.iter().position(|byte| *byte == b'\n').ok_or("a packet without a head")?;
    let head = serde_json::from_slice(&packet[..end]).map_err(|error| error.to_string())?;
    Ok((head, &packet[end + 1..]))
}

/// Reads the packet of an answer.
///
/// # Errors
/// Why it is none.
pub(super) fn read_answer(packet: &[u8]) -> Result<(u64, Answer), String> {
    serde_json::from_slice(packet)
        .map(|Answered { id, answer }| (id, answer))
        .map_err(|error| error.to_string())
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // What is written here has no keys but names, and cannot fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
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
        for said in [Answer::Taken, Answer::Refused("no \"room\"\n".to_owned())] {
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
        assert_eq!(read_answer(b"{\"id\":1,\"taken\":null,\"novel\":2}\n"), Ok((1, Answer::Taken)));
        for garbage in [&b""[..], b"\n", b"{}", b"{}\n", b"\xff\n", b"{\"id\":1}\n"] {
            assert!(
                read_connection(garbage).is_err() && read_answer(garbage).is_err(),
                "{garbage:?}"
            );
        }
        let long = answer(1, Answer::Refused("x".repeat(1 << 20)));
        assert!(long.len() < 2 * REASON_MAX);
    }
}
