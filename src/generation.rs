//! The number of a process in its lineage: the first is generation 1, its successor 2, and so on.
//!
//! A lineage is the chain of processes in which each hands over to the next. The number is in every
//! log record, in the environment of a successor and in the messages between generations. So an
//! operator sees at a glance which process wrote a record. Process ids would not do, because they
//! are reused.

use std::fmt;
use std::num::{NonZeroU64, ParseIntError};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a process in its lineage, starting at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(NonZeroU64);

impl Generation {
    /// The generation of a process that has no predecessor.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Returns the generation of the successor. The largest number is its own successor.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the generation of the predecessor. The first generation is its own predecessor.
    #[must_use]
    pub const fn previous(self) -> Self {
        match NonZeroU64::new(self.0.get() - 1) {
            Some(previous) => Self(previous),
            None => self,
        }
    }

    /// Returns the number, which is at least 1.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Generation {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_count_from_one_and_parse_back() {
        let second = Generation::FIRST.next();
        assert_eq!(second.get(), 2);
        assert_eq!(second.previous(), Generation::FIRST);
        assert_eq!(Generation::FIRST.previous(), Generation::FIRST);
        assert_eq!(second.to_string().parse(), Ok(second));
        assert!("0".parse::<Generation>().is_err());
    }
}
