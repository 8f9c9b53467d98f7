//! A single timer for all deadlines of a generation.
//!
//! Each deadline is stored in the value to which it belongs, such as a handoff, a drain or a status
//! request. So the deadline disappears together with that value. The event loop waits for the
//! earliest deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The purpose of a deadline, that is, what happens when it has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// If the accept loops have not run by this deadline, the generation fails to start.
    Startup,
    /// The next attempt to accept connections again after the successor has died. The generation
    /// ends if an attempt after `until` fails.
    Resume { until: Instant },
    /// A successor is started only when no more connections are moving here from an older
    /// generation. If that takes until this deadline, the handoff fails.
    Delay,
    /// The successor is killed at this deadline if it is not ready.
    Ready,
    /// The handoff fails at this deadline, because the operator who requested the reload stops
    /// waiting then.
    Operator,
    /// The bake ends at this deadline. The handoff is then committed, unless the successor hangs.
    Bake,
    /// The handoff fails at this deadline if the successor has not answered at the end of the bake.
    Answer,
    /// The handoff fails at this deadline if a task that runs in only one generation has not ended.
    Yield,
    /// The tasks that run in only one generation are dropped at this deadline, because this
    /// generation was told to stop. The process ends if they still run at the next deadline.
    Duties,
    /// The drain ends at this deadline. Connections that are still open are cut.
    Drain,
    /// Connections that have not moved to the successor by this deadline are asked to end.
    Carry,
    /// Operators who requested the status get an answer at this deadline, even if some generations
    /// have not sent their reports.
    Status,
    /// A failed write of the pid file is retried at this time.
    PidFile,
}

/// Waits until the deadline has passed, and returns its purpose. Waits forever if `next` is `None`.
/// If the deadline has already passed, this function returns without waiting for tokio's timer.
/// Cancel safe.
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

/// Returns the later of two deadlines. `None` means no deadline, which is later than any other.
pub(super) fn later(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.zip(other).map(|(one, other)| one.max(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest extension removes the deadline, instead of being ignored.
    #[test]
    fn no_deadline_is_the_latest_deadline() {
        let (soon, late) = (deadline(Duration::from_secs(1)), deadline(Duration::from_secs(2)));
        assert_eq!(later(soon, late), late);
        assert_eq!(later(late, soon), late);
        assert_eq!(later(soon, deadline(Duration::MAX)), None);
        assert_eq!(later(None, soon), None);
    }
}
