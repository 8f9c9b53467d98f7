//! Counts the processes of one line: the first is 1, its successor 2, and so on.
//!
//! The ordinal is in every log record, in the environment of a successor and in the messages
//! between generations, so that an operator can tell at a glance which process said what. It is not
//! a process id: those are reused.

use std::fmt;
use std::num::{NonZeroU64, ParseIntError};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The ordinal of a process in its line, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(NonZeroU64);

impl Generation {
    /// The generation of a process that nobody handed over to.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The generation of this one's successor. A line of 2^64 - 1 generations stays at its last
    /// number.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The generation of this one's predecessor; the first is its own.
    #[must_use]
    pub const fn previous(self) -> Self {
        match NonZeroU64::new(self.0.get() - 1) {
            Some(previous) => Self(previous),
            None => self,
        }
    }

    /// The plain number, at least 1.
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
    fn counts_from_one_and_reads_what_it_prints() {
        let second = Generation::FIRST.next();
        assert_eq!(second.get(), 2);
        assert_eq!(second.previous(), Generation::FIRST);
        assert_eq!(Generation::FIRST.previous(), Generation::FIRST);
        assert_eq!(second.to_string().parse(), Ok(second));
        assert!("0".parse::<Generation>().is_err());
    }
}
