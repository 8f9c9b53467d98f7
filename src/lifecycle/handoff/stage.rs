//! The stages of a handoff, from the start of the successor to the commit.

use std::time::Duration;

use tokio::time::Instant;

use crate::lifecycle::startup::REPORT_TIME;
use crate::lifecycle::timers::{Timer, deadline, later};

/// The stage of a handoff, with its deadline. The deadline is `None` if the clock cannot represent
/// it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::lifecycle) enum Stage {
    /// The successor must not be started yet, because a predecessor is still moving connections to
    /// this process.
    Delayed(Option<Instant>),
    /// The successor is starting, and must be ready by the deadline.
    Starting(Option<Instant>),
    /// The successor accepts connections. The handoff is committed at the deadline, unless it fails
    /// first.
    Baking(Option<Instant>),
    /// The bake is over. The handoff is not committed before the successor has answered a request,
    /// because a successor that hangs must not take over. The handoff fails at the deadline.
    Checking(Option<Instant>),
    /// The successor's probation has ended. The handoff is committed when the tasks that run in
    /// only one generation have ended here. It fails at the deadline.
    Yielding(Option<Instant>),
    /// The handoff has no deadline: it has not begun, is committed, or the successor was told to
    /// stop.
    #[default]
    Idle,
}

impl Stage {
    /// Returns the deadline of this stage with its purpose, or `None` if the stage has no deadline.
    pub(in crate::lifecycle) fn timer(self) -> Option<(Instant, Timer)> {
        match self {
            Self::Delayed(until) => until.map(|until| (until, Timer::Delay)),
            Self::Starting(until) => until.map(|until| (until, Timer::Ready)),
            Self::Baking(until) => until.map(|until| (until, Timer::Bake)),
            Self::Checking(until) => until.map(|until| (until, Timer::Answer)),
            Self::Yielding(until) => until.map(|until| (until, Timer::Yield)),
            Self::Idle => None,
        }
    }

    /// Gives a successor that is starting at least `time` from now until it must be ready. Removes
    /// the deadline if the clock cannot represent it.
    pub(in crate::lifecycle) fn extend_start(&mut self, time: Duration) {
        if let Self::Starting(until) = self {
            *until = later(*until, deadline(time.saturating_add(REPORT_TIME)));
        }
    }

    /// Returns whether the handoff waits for the end of the tasks that run in only one generation.
    pub(in crate::lifecycle) const fn is_yielding(self) -> bool {
        matches!(self, Self::Yielding(_))
    }

    /// Returns whether the start of the successor is delayed, because a predecessor is still moving
    /// connections to this process.
    pub(in crate::lifecycle) const fn is_delayed(self) -> bool {
        matches!(self, Self::Delayed(_))
    }
}
