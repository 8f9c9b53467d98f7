//! The deadlines of a generation, combined into one source of events.
//!
//! Each deadline is stored with the thing that it limits (a handoff, a drain, a status request), so
//! it cannot outlive that thing. The driver waits for the earliest one.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The purpose of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The accept loops must have run. Otherwise they count as dead.
    Startup,
    /// A handoff that waits until connections have been carried here fails.
    Delay,
    /// A successor that is not ready is killed.
    Ready,
    /// The operator who requested the handoff stops waiting, so the handoff fails.
    Operator,
    /// The successor's probation is over.
    Bake,
    /// The remaining connections are cut.
    Drain,
    /// Connections that have not been carried are asked to end.
    Carry,
    /// Operators who requested the status are answered with what is known.
    Status,
    /// A failed write of the pid file is retried.
    PidFile,
}

/// Waits until the deadline, forever if it is `None`. A deadline in the past completes at once, not
/// at the next tick of the timer. Cancel safe.
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

/// Returns the instant `duration` from now, or `None` if the clock cannot represent it.
pub(super) fn deadline(duration: Duration) -> Option<Instant> {
    Instant::now().checked_add(duration)
}
