//! Snapshots of a relay, which moves bytes between a client and an upstream. With a snapshot,
//! another process can continue the relay. A snapshot records how many bytes are unwritten, and
//! which sides have half-closed.
//!
//! Unwritten bytes in memory move to the other process as a part of the connection's state.
//! Unwritten bytes in a pipe stay there, and the pipe itself moves. A snapshot does not record
//! whether a direction was using splice(2), because the other process makes this decision itself.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::direction::{Direction, HeldBytes, Rest};
use super::relay::Relay;
use crate::net::Pipe;

/// A snapshot of the two directions of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelaySnapshot {
    up: PendingBytes,
    down: PendingBytes,
}

/// A snapshot of one direction. The unwritten bytes of both directions follow the snapshots, first
/// those of `up`. The pipes are attached in the same order, each with its read end first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PendingBytes {
    /// No bytes are unwritten, and the source has not half-closed.
    Even,
    /// The number of unwritten bytes in memory. The bytes themselves follow the snapshot.
    Bytes(usize),
    /// The number of unwritten bytes in a pipe. The pipe itself moves with the snapshot.
    Piped(usize),
    /// The end of the stream must still be passed on to the sink.
    End,
    /// The end of the stream has been passed on to the sink.
    Over,
}

impl RelaySnapshot {
    /// Returns how many bytes and how many file descriptors must accompany this snapshot.
    pub(crate) fn needs(self) -> (usize, usize) {
        let ways = [self.up, self.down];
        let needs = ways.map(|way| match way {
            PendingBytes::Bytes(count) => (count, 0),
            PendingBytes::Piped(_) => (0, 2),
            PendingBytes::Even | PendingBytes::End | PendingBytes::Over => (0, 0),
        });
        (needs[0].0.saturating_add(needs[1].0), needs[0].1 + needs[1].1)
    }
}

impl Relay {
    /// Turns the relay into a snapshot, its unwritten bytes, and the ends of its pipes.
    pub(crate) fn snapshot(self) -> (RelaySnapshot, Vec<u8>, Vec<OwnedFd>) {
        let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
        let up = detach(self.up, &mut bytes, &mut descriptors);
        let down = detach(self.down, &mut bytes, &mut descriptors);
        (RelaySnapshot { up, down }, bytes, descriptors)
    }

    /// Restores a relay from a snapshot. The caller provides as many bytes and file descriptors as
    /// [`RelaySnapshot::needs`] returns. The method ignores extra bytes and descriptors.
    ///
    /// # Errors
    /// Fails if bytes or file descriptors are missing, or if the kernel refuses a pipe.
    pub(crate) fn restore(
        RelaySnapshot { up, down }: RelaySnapshot,
        mut bytes: &[u8],
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> std::io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let up = take_up(up, &mut bytes, &mut descriptors)?;
        let down = take_up(down, &mut bytes, &mut descriptors)?;
        Ok(Self { up, down })
    }
}

fn detach(
    direction: Direction,
    bytes: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> PendingBytes {
    match direction.held {
        HeldBytes::Nothing => PendingBytes::Even,
        HeldBytes::Bytes(rest) => {
            let owed = &rest.bytes[rest.written..];
            bytes.extend_from_slice(owed);
            PendingBytes::Bytes(owed.len())
        }
        HeldBytes::Piped(pipe) => {
            let held = pipe.held();
            // This `else` is never taken, because a pipe has both ends until it is dropped.
            let Some((read, write)) = pipe.into_ends() else { return PendingBytes::Even };
            descriptors.extend([read, write]);
            PendingBytes::Piped(held)
        }
        HeldBytes::End => PendingBytes::End,
        HeldBytes::Over => PendingBytes::Over,
    }
}

fn take_up(
    way: PendingBytes,
    bytes: &mut &[u8],
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> std::io::Result<Direction> {
    let missing = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let held = match way {
        PendingBytes::Even => HeldBytes::Nothing,
        PendingBytes::Bytes(count) => {
            let (owed, others) = bytes.split_at_checked(count).ok_or_else(missing)?;
            *bytes = others;
            HeldBytes::Bytes(Box::new(Rest { bytes: owed.to_vec(), written: 0 }))
        }
        PendingBytes::Piped(count) => {
            let (Some(read), Some(write)) = (descriptors.next(), descriptors.next()) else {
                return Err(missing());
            };
            HeldBytes::Piped(Box::new(Pipe::taken_up(read, write, count)?))
        }
        PendingBytes::End => HeldBytes::End,
        PendingBytes::Over => HeldBytes::Over,
    };
    Ok(Direction { held })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A restored relay holds the same unwritten bytes as the original. Restoring fails if bytes
    /// are missing.
    #[test]
    fn unwritten_bytes_survive_a_snapshot() {
        let owing = |bytes: &[u8], written| {
            HeldBytes::Bytes(Box::new(Rest { bytes: bytes.to_vec(), written }))
        };
        let relay = Relay {
            up: Direction { held: owing(b"xup", 1) },
            down: Direction { held: owing(b"down", 0) },
        };
        let (still, bytes, descriptors) = relay.snapshot();
        assert_eq!((still.needs(), &bytes[..], descriptors.len()), ((6, 0), &b"updown"[..], 0));
        let again = Relay::restore(still, &bytes, descriptors).unwrap();
        assert_eq!((again.snapshot().0, bytes.len()), (still, 6));
        assert!(Relay::restore(still, b"updow", []).is_err());
    }

    /// A restored relay has the same pipes as the original, and does not half-close a side twice.
    #[test]
    fn ends_and_pipes_survive_a_snapshot() {
        let pipe = Pipe::take().unwrap();
        let relay = Relay {
            up: Direction { held: HeldBytes::Over },
            down: Direction { held: HeldBytes::Piped(Box::new(pipe)) },
        };
        let (still, bytes, descriptors) = relay.snapshot();
        assert_eq!((still.needs(), bytes.len(), descriptors.len()), ((0, 2), 0, 2));
        let words = serde_json::to_string(&still).unwrap();
        let still = serde_json::from_str(&words).unwrap();
        assert!(Relay::restore(still, &bytes, []).is_err());
        let again = Relay::restore(still, &bytes, descriptors).unwrap();
        assert!(again.owes());
    }
}
