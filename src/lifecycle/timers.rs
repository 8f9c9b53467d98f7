//! The deadlines of a generation, combined into one source of events.
//!
//! Each deadline is stored with its purpose (a handoff, a drain, a status request) and is removed
//! together with it. The driver waits for the earliest deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The purpose of a deadline, that is, what happens when it has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The accept loops count as dead if they have not run by this deadline.
    Startup,
    /// A handoff fails at this deadline if it still waits for connections that move here from older
    /// generations.
    Delay,
    /// The successor is killed at this deadline if it is not ready.
    Ready,
    /// The handoff fails at this deadline, because the operator who requested it no longer waits.
    Operator,
    /// The successor's probation ends at this deadline, and the handoff is committed.
    Bake,
    /// The remaining connections of a drain are cut at this deadline.
    Drain,
    /// Connections that have not moved to the successor by this deadline are asked to end.
    Carry,
    /// Operators who requested the status get an answer at this deadline, even if reports are
    /// missing.
    Status,
    /// A failed write of the pid file is retried at this time.
    PidFile,
}

/// Waits until the deadline has passed, and returns its purpose. Waits forever if `next` is `None`.
/// If the deadline has already passed, this function returns at once, not at the next tick of the
/// timer. Cancel safe.
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
