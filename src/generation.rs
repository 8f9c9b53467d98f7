//! The generation number of a process: the first process has number 1, its successor number 2, and
//! so on.
//!
//! Each process hands over to the next, and this chain of processes is called a lineage. Every log
//! record contains the generation number, so that an operator sees which process wrote the record.
//! A process id is not enough, because the kernel reuses it. A successor receives its number
//! through its environment, and generations identify each other by number in their messages.

use std::fmt;
use std::num::{NonZeroU64, ParseIntError};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The number of a process in its lineage (the chain of processes that hand over to each other).
/// The first process has number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(NonZeroU64);

impl Generation {
    /// The generation number of a process that has no predecessor.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Returns the generation number of the successor. For the largest possible number, returns the
    /// same number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the generation number of the predecessor. For the first generation, returns the same
    /// number.
    #[must_use]
    pub const fn previous(self) -> Self {
        match NonZeroU64::new(self.0.get() - 1) {
            Some(previous) => Self(previous),
            None => self,
        }
    }

    /// Returns the generation number as an integer, which is at least 1.
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
