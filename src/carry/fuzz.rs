//! Fuzzing entry points for the packets that transfer connections between processes. The fuzz
//! targets in `fuzz/` call these functions.

use super::packet::{self, CarryAnswer};
use super::state::CarriedState;

/// Parses a packet that transfers a connection, and checks that the packet survives another round
/// of encoding and parsing. Returns the connection's saved state, without file descriptors.
pub(crate) fn connection(packet: &[u8]) -> Option<CarriedState> {
    let (head, bytes) = packet::read_connection(packet).ok()?;
    assert_eq!(
        packet::read_connection(&packet::connection(&head, bytes)),
        Ok((head.clone(), bytes))
    );
    Some(CarriedState::new(&head.format, bytes.to_vec()))
}

/// Parses a packet with the successor's answer, and checks that the answer survives another round
/// of encoding and parsing. Returns whether the packet is valid.
pub(crate) fn answer(packet: &[u8]) -> bool {
    let Ok((id, answer)) = packet::read_answer(packet) else { return false };
    let again = packet::read_answer(&packet::answer(id, answer.clone()));
    match (&answer, &again) {
        // Compare only the beginning of the reason, because the encoder truncates a long reason.
        (CarryAnswer::Refused(why), Ok((same, CarryAnswer::Refused(cut)))) => {
            assert!(*same == id && why.starts_with(cut))
        }
        _ => assert_eq!(again, Ok((id, answer))),
    }
    true
}

#[cfg(test)]
pub(crate) use seeds::{answers, packet};

#[cfg(test)]
mod seeds {
    use super::*;
    use crate::carry::packet::PacketHead;
    use std::num::NonZeroUsize;

    /// Encodes a packet that transfers a connection with the given saved state.
    pub(crate) fn packet(saved_state: &CarriedState) -> Vec<u8> {
        let head = PacketHead {
            id: 7,
            listener: "web".to_owned(),
            peer: Some("[::1]:5".parse().unwrap()),
            age_ms: 1,
            received: 2,
            sent: 3,
            peer_finished: false,
            max_connections: NonZeroUsize::new(9),
            format: saved_state.format.clone(),
        };
        packet::connection(&head, &saved_state.bytes)
    }

    pub(crate) fn answers() -> Vec<(String, Vec<u8>)> {
        let grown = b"{\"id\":1,\"taken\":null,\"novel\":2}\n".to_vec();
        let refused = packet::answer(9, CarryAnswer::Refused("no \"room\"\n".to_owned()));
        let taken = packet::answer(8, CarryAnswer::Taken);
        vec![
            ("taken".to_owned(), taken),
            ("refused".to_owned(), refused),
            ("grown".to_owned(), grown),
        ]
    }
}
