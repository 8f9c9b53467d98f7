//! The deadlines of a generation, as one source of events.
//!
//! Every deadline lives with what it bounds (a handoff, a drain, a status request), so it cannot
//! outlive that. The driver waits for the earliest one.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What a deadline bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Accept loops that have not run by then are taken for dead.
    Startup,
    /// A handoff that waits for carried connections waits no longer.
    Delay,
    /// A successor that is not ready by then is killed.
    Ready,
    /// The operator who asked for the handoff waits no longer: it is given up.
    Operator,
    /// The successor's probation is over.
    Bake,
    /// Connections that have not ended by then are cut.
    Drain,
    /// Connections that were not carried by then are told to end.
    Carry,
    /// Operators who asked for the status are answered with what is known.
    Status,
    /// The pid file is written again.
    PidFile,
}

/// Pends until a deadline, for ever without one. A deadline that has passed is not rounded up to a
/// tick of the clock. Cancel safe.
pub(super) async fn due(next: Option<(Instant, Timer)>) -> Timer {
    match next {
        Some((deadline, timer)) if deadline <= Instant::now() => timer,
        Some((deadline, timer)) => {
            sleep_until(deadline).await;
            timer
        }
        None => std::future::pending().await,
    }
}

/// Returns `duration` from now, or none when the clock cannot hold it.
pub(super) fn deadline(duration: Duration) -> Option<Instant> {
    Instant::now().checked_add(duration)
}
