//! What the clients of a storm observed: what was served, and each failure by its kind.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::AddAssign;

/// The outcomes that the clients observed.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Short connections that were served completely.
    pub(crate) short: u64,
    /// Answered requests on persistent connections.
    pub(crate) persistent: u64,
    /// Persistent connections that the server closed cleanly between two requests.
    pub(crate) closed: u64,
    /// Requests on persistent connections that crossed such a close on the wire.
    pub(crate) crossed: u64,
    /// All other failures, counted by kind and by the client's operation.
    pub(crate) losses: BTreeMap<String, u64>,
    /// For every connection, the server's name for the client and the number of verified bytes.
    pub(crate) verified: Vec<(String, u64)>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.short += other.short;
        self.persistent += other.persistent;
        self.closed += other.closed;
        self.crossed += other.crossed;
        for (kind, count) in other.losses {
            *self.losses.entry(kind).or_default() += count;
        }
        self.verified.extend(other.verified);
    }
}

/// A failure that no client may see (refused, reset, unanswered or altered), with the operation.
#[derive(Debug)]
pub(super) struct Loss(String);

impl Loss {
    pub(super) fn of(doing: &str, error: &io::Error) -> Self {
        let kind = error.kind();
        if kind == ErrorKind::ConnectionRefused {
            Self(format!("refused: {doing}"))
        } else if is_end(error) {
            Self(format!("reset: {doing}"))
        } else if matches!(
            kind,
            ErrorKind::UnexpectedEof | ErrorKind::WouldBlock | ErrorKind::TimedOut
        ) {
            Self::unanswered(doing)
        } else {
            Self(format!("{doing}: {error}"))
        }
    }

    pub(super) fn altered(what: &str) -> Self {
        Self(format!("altered: {what}"))
    }

    /// Returns the loss for a reply that did not arrive: the connection ended, or the read timed
    /// out.
    pub(super) fn unanswered(what: &str) -> Self {
        Self(format!("unanswered: {what}"))
    }
}

impl Tally {
    pub(super) fn lose(&mut self, loss: Loss) {
        *self.losses.entry(loss.0).or_default() += 1;
    }
}

/// Returns whether the connection was gone: reset, or closed before the operation began.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
    )
}
