//! Bounds the driver's waits: what is awaited has a deadline, and here is when.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// When the present waits end; none of what is not awaited.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// Accept loops that have not run by then are taken for dead.
    pub(super) begin: Option<Instant>,
    /// A handoff that waits for connections to be taken over waits no longer.
    pub(super) start: Option<Instant>,
    /// A successor that is not ready by then is killed.
    pub(super) ready: Option<Instant>,
    /// A handoff that has not ended by then is given up: whoever asked for it wants to wait no
    /// longer.
    pub(super) given: Option<Instant>,
    /// The successor's probation.
    pub(super) bake: Option<Instant>,
    /// Connections that have not ended by then are cut.
    pub(super) drain: Option<Instant>,
    /// Those that were not carried by then are told to come to an end.
    pub(super) carry: Option<Instant>,
}

/// Pends until `deadline`, for ever if there is none. One that has passed is not rounded up to a
/// tick of the clock.
pub(super) async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) if deadline <= Instant::now() => {}
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// `duration` from now; none when the clock cannot hold it.
pub(super) fn deadline(duration: Duration) -> Option<Instant> {
    Instant::now().checked_add(duration)
}
