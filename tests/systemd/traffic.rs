//! Clients of a lab that keep calling while the test acts.
//!
//! They pause between two connections. Several labs run at the same time, and clients without a
//! pause would take the processors from all of them.

use crate::lab::{ADDRESS, Lab};
use crate::support::callers::call_once;
use crate::support::{Callers, Storm};

/// The pause before each connection, in milliseconds.
const PACE: u64 = 2;
/// How many clients call.
const CALLERS: usize = 2;

/// Starts a storm of clients of the shipped unit.
pub(crate) fn storm(lab: &Lab, short: usize, persistent: usize) -> Storm {
    lab.inside(|| Storm::start_paced(ADDRESS, short, persistent, PACE))
}

/// Starts callers of an echo service at `address` in the lab.
pub(crate) fn callers(lab: &Lab, address: &str) -> Callers {
    lab.inside(|| Callers::start_paced(address, CALLERS, PACE, call_once))
}

/// Starts callers of an HTTP server at `address` in the lab.
pub(crate) fn http_callers(lab: &Lab, address: &str) -> Callers {
    lab.inside(|| Callers::start_paced(address, CALLERS, PACE, |client| client.get().map(drop)))
}
