//! Puts a relay into words between two moves, and makes it go on from them: which ends were passed
//! on, and what is owed.
//!
//! What is owed lies in memory, which is given away as bytes, or in a pipe, which is given away as
//! it is. How a transfer was moved is forgotten: that is found out anew.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::Relay;
use super::direction::{Direction, Held, Rest};
use crate::net::Pipe;

/// A relay that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Still {
    up: Way,
    down: Way,
}

/// One way of it. Bytes follow in the order of the ways, and so do the ends of pipes, the one to
/// read from first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// Nothing is owed.
    Even,
    /// So many bytes are, which follow.
    Bytes(usize),
    /// So many are, in a pipe.
    Piped(usize),
    /// The source's end is.
    End,
    /// The source's end has been passed on.
    Over,
}

impl Still {
    /// How many bytes and how many descriptors it needs to go on.
    pub(crate) fn needs(self) -> (usize, usize) {
        let ways = [self.up, self.down];
        let needs = ways.map(|way| match way {
            Way::Bytes(count) => (count, 0),
            Way::Piped(_) => (0, 2),
            Way::Even | Way::End | Way::Over => (0, 0),
        });
        (needs[0].0.saturating_add(needs[1].0), needs[0].1 + needs[1].1)
    }
}

impl Relay {
    /// Gives up what it owes, and all else that it knows.
    pub(crate) fn into_still(self) -> (Still, Vec<u8>, Vec<OwnedFd>) {
        let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
        let up = give_up(self.up, &mut bytes, &mut descriptors);
        let down = give_up(self.down, &mut bytes, &mut descriptors);
        (Still { up, down }, bytes, descriptors)
    }

    /// Goes on from there. What [`Still::needs`] has to be there; more is passed over.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(crate) fn from_still(
        Still { up, down }: Still,
        mut bytes: &[u8],
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> std::io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let up = take_up(up, &mut bytes, &mut descriptors)?;
        let down = take_up(down, &mut bytes, &mut descriptors)?;
        Ok(Self { up, down })
    }
}

fn give_up(direction: Direction, bytes: &mut Vec<u8>, descriptors: &mut Vec<OwnedFd>) -> Way {
    match direction.held {
        Held::Nothing => Way::Even,
        Held::Bytes(rest) => {
            let owed = &rest.bytes[rest.written..];
            bytes.extend_from_slice(owed);
            Way::Bytes(owed.len())
        }
        Held::Piped(pipe) => {
            let held = pipe.held();
            // It has its ends until it is dropped.
            let Some((read, write)) = pipe.into_ends() else { return Way::Even };
            descriptors.extend([read, write]);
            Way::Piped(held)
        }
        Held::End => Way::End,
        Held::Over => Way::Over,
    }
}

fn take_up(
    way: Way,
    bytes: &mut &[u8],
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> std::io::Result<Direction> {
    let missing = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let held = match way {
        Way::Even => Held::Nothing,
        Way::Bytes(count) => {
            let (owed, others) = bytes.split_at_checked(count).ok_or_else(missing)?;
            *bytes = others;
            Held::Bytes(Box::new(Rest { bytes: owed.to_vec(), written: 0 }))
        }
        Way::Piped(count) => {
            let (Some(read), Some(write)) = (descriptors.next(), descriptors.next()) else {
                return Err(missing());
            };
            Held::Piped(Pipe::taken_up(read, write, count)?)
        }
        Way::End => Held::End,
        Way::Over => Held::Over,
    };
    Ok(Direction { held, streak: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_goes_on_as_it_was_given_up() {
        let owing =
            |bytes: &[u8], written| Held::Bytes(Box::new(Rest { bytes: bytes.to_vec(), written }));
        let relay = Relay {
            up: Direction { held: owing(b"xup", 1), streak: 3 },
            down: Direction { held: owing(b"down", 0), streak: 0 },
        };
        let (still, bytes, descriptors) = relay.into_still();
        assert_eq!((still.needs(), &bytes[..], descriptors.len()), ((6, 0), &b"updown"[..], 0));
        let again = Relay::from_still(still, &bytes, descriptors).unwrap();
        assert_eq!((again.into_still().0, bytes.len()), (still, 6));
        assert!(Relay::from_still(still, b"updow", []).is_err());
    }

    #[test]
    fn ends_and_pipes_go_on_as_well() {
        let pipe = Pipe::take().unwrap();
        let relay = Relay {
            up: Direction { held: Held::Over, streak: 0 },
            down: Direction { held: Held::Piped(pipe), streak: 4 },
        };
        let (still, bytes, descriptors) = relay.into_still();
        assert_eq!((still.needs(), bytes.len(), descriptors.len()), ((0, 2), 0, 2));
        let words = serde_json::to_string(&still).unwrap();
        let still = serde_json::from_str(&words).unwrap();
        assert!(Relay::from_still(still, &bytes, []).is_err());
        let again = Relay::from_still(still, &bytes, descriptors).unwrap();
        assert!(again.owes());
    }
}
