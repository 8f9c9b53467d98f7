//! The part of the event loop ([`Driver`]) that checks whether the accept loops have started. It
//! also handles the death of a worker or an accept loop.
//!
//! A generation reports that it is ready only after every accept loop has run. If a worker or an
//! accept loop dies, the generation ends with an error. Otherwise it would not serve some of its
//! clients any more.

use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Driver, Occurrence};
use super::machine::{Birth, Event, State};
use super::timers::{Timer, deadline, later};
use crate::data_plane::DataPlane;
use crate::error::Error;

/// A successor gives up its start this long before the predecessor's deadline, to report the
/// reason.
pub(super) const REPORT_TIME: Duration = Duration::from_millis(500);

/// The health of the server: whether it has started, and whether a worker or an accept loop has
/// died.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    start: Start,
    /// The longest time that the server had to start.
    limit: Duration,
    /// The error of a worker, an accept loop or a successor that has died during a drain. The
    /// generation returns this error when its connections have ended.
    death: Option<Error>,
}

/// The progress of starting the server, the part of this process that serves clients.
#[derive(Clone, Copy, Debug, Default)]
enum Start {
    /// The server accepts connections, or was not told to accept any.
    #[default]
    Over,
    /// The accept loops were started, but have not run yet. The generation ends at the deadline, if
    /// there is one.
    Awaited { until: Option<Instant> },
    /// The successor has died, and an attempt to accept again has failed for lack of memory or
    /// descriptors. The next attempt is at `next`. If an attempt fails after `until`, the
    /// generation ends.
    Failed { next: Instant, until: Instant },
}

impl Liveness {
    /// Records that the server is starting, and that it must accept connections within `limit`.
    ///
    /// The predecessor kills a successor that is not ready after this time. So a successor ends a
    /// little earlier, and reports what it was waiting for.
    pub(super) fn begin(&mut self, limit: Duration, birth: Birth) {
        self.limit = limit;
        let limit = match birth {
            Birth::Successor => limit - REPORT_TIME.min(limit / 10),
            Birth::First | Birth::Orphan => limit,
        };
        self.start = Start::Awaited { until: deadline(limit) };
    }

    /// Gives the server at least `time` from now until it must accept connections. Removes the
    /// deadline if the clock cannot represent it.
    pub(super) fn extend(&mut self, time: Duration) {
        if let Start::Awaited { until } = &mut self.start {
            *until = later(*until, deadline(time));
            self.limit = self.limit.max(time);
        }
    }

    /// Returns the longest time that the server had to start.
    pub(super) const fn limit(&self) -> Duration {
        self.limit
    }

    /// Records that the server could not accept connections again. The next attempt is after
    /// `pause`, and no attempt is made after `until`. Returns whether this was the first attempt.
    pub(super) fn retry(&mut self, pause: Duration, until: Instant) -> bool {
        let is_first = !matches!(self.start, Start::Failed { .. });
        self.start = Start::Failed { next: Instant::now() + pause, until };
        is_first
    }

    /// Stops waiting for the start of the server, because the server is told to stop.
    pub(super) fn stop_waiting(&mut self) {
        self.start = Start::Over;
    }

    /// Returns whether the server does not accept connections yet.
    pub(super) const fn is_starting(&self) -> bool {
        !matches!(self.start, Start::Over)
    }

    /// Returns whether the accept loops were started, but have not run yet.
    pub(super) const fn is_awaited(&self) -> bool {
        matches!(self.start, Start::Awaited { .. })
    }

    /// Returns the next deadline of the start, or `None` if there is none.
    pub(super) fn timer(&self) -> Option<(Instant, Timer)> {
        match self.start {
            Start::Over => None,
            Start::Awaited { until } => until.map(|until| (until, Timer::Startup)),
            Start::Failed { next, until } => Some((next, Timer::Resume { until })),
        }
    }

    /// Returns whether all workers and accept loops are alive, as far as this process knows.
    pub(super) const fn is_whole(&self) -> bool {
        self.death.is_none()
    }

    /// Records that the successor has died after the commit. This generation returns an error when
    /// its connections have ended.
    pub(super) fn successor_died(&mut self, reason: String) {
        let what = "the new process".to_owned();
        self.death.get_or_insert(Error::Died { what, reason });
    }

    /// Takes the error of a worker or an accept loop that has died, if any.
    pub(super) const fn take_death(&mut self) -> Option<Error> {
        self.death.take()
    }
}

impl<P: DataPlane> Driver<P> {
    /// Returns how long the server may take to start. If this generation accepts connections again
    /// because its successor has died, the server may also have to finish its stop first.
    pub(super) fn start_limit(&self) -> Duration {
        let ready = self.config.ready_timeout;
        let is_first = matches!(self.state, State::Starting { .. });
        if is_first { ready } else { ready.saturating_add(self.plane.stop_limit()) }
    }

    /// Records that the server has started, because every accept loop runs. This happens at the
    /// beginning of the generation, and once more if the successor dies and this generation accepts
    /// connections again.
    pub(super) fn started(&mut self) -> Option<Occurrence> {
        self.liveness.start = Start::Over;
        if !matches!(self.state, State::Starting { .. }) {
            tracing::warn!(
                event = "generation.resumed",
                "the new process died, so this process (generation {}) accepts connections again",
                self.process.generation
            );
            self.report_status();
            return None;
        }
        let listeners = self.listeners.set.as_slice().iter();
        let listeners = listeners.map(|one| format!("{}={}", one.name(), one.address()));
        let listeners = listeners.collect::<Vec<_>>().join(" ");
        tracing::info!(
            event = "generation.accepting",
            listeners,
            "this process (generation {}) is accepting connections",
            self.process.generation
        );
        Some(Event::Live.into())
    }

    /// Handles the death of a worker or an accept loop.
    ///
    /// A generation that accepts connections, or is about to, ends at once, as if it had crashed,
    /// so that another generation takes over. A generation that only drains continues, so that its
    /// other connections can end.
    ///
    /// # Errors
    /// Returns the given error if the generation ends because of it.
    pub(super) fn part_died(&mut self, error: Error) -> Result<(), Error> {
        if let Start::Awaited { until } = &mut self.liveness.start {
            *until = None;
        }
        match self.state {
            State::Starting { .. } | State::Probation { .. } => {
                self.refuse(&error);
            }
            State::Serving | State::HandingOff { .. } | State::Baking { .. } => {
                self.refuse_reload(&error.to_string());
                if let Some(pid_file) = &mut self.pid_file {
                    pid_file.remove(None);
                }
            }
            State::Retiring { .. } | State::Stopping | State::Stopped => {
                tracing::error!(
                    event = "worker.died", reason = %error,
                    "a part of the server has failed while this process drains its remaining \
                    connections: {error}"
                );
                self.liveness.death = Some(error);
                return Ok(());
            }
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that asks for more time is not told that it had only the configured time.
    #[test]
    fn the_reported_limit_includes_an_extension() {
        let limits = [1, 60].map(|configured| {
            let mut liveness = Liveness::default();
            liveness.begin(Duration::from_secs(configured), Birth::First);
            liveness.extend(Duration::from_secs(4));
            liveness.limit().as_secs()
        });
        assert_eq!(limits, [4, 60]);
    }
}
