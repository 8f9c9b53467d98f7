//! The part of the driver that checks whether the accept loops have started, and that handles the
//! death of a worker or an accept loop.
//!
//! A generation reports that it is ready only after every accept loop has run. If a worker or an
//! accept loop dies, the generation ends with an error. Otherwise it would not serve some of its
//! clients any more.

use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Driver, Occurrence};
use super::machine::{Birth, Event, State};
use super::timers::deadline;
use crate::data_plane::DataPlane;
use crate::error::Error;
use crate::handoff::Message;

/// How much earlier than its predecessor expects a successor gives up its start.
pub(super) const REPORT_TIME: Duration = Duration::from_millis(500);

/// The health of the data plane, the part that serves clients: whether it has started, and whether
/// a part of it has died.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// The start of the data plane, with its deadline. `None` once the data plane accepts
    /// connections.
    starting: Option<StartDeadline>,
    /// The error of a worker or an accept loop that has died during a drain. The generation returns
    /// it when its connections have ended.
    death: Option<Error>,
}

/// A start of the data plane that is in progress.
#[derive(Debug)]
struct StartDeadline {
    until: Option<Instant>,
}

impl Liveness {
    /// Records that the data plane is starting, and that it must accept connections within `limit`.
    ///
    /// A predecessor kills this process at the same limit. So a successor ends a little earlier,
    /// and reports what it was waiting for.
    pub(super) fn begin(&mut self, limit: Duration, birth: Birth) {
        let limit = match birth {
            Birth::Successor => limit - REPORT_TIME.min(limit / 10),
            Birth::First | Birth::Orphan => limit,
        };
        self.starting = Some(StartDeadline { until: deadline(limit) });
    }

    /// Gives the data plane at least `time` from now until it must accept connections.
    pub(super) fn extend(&mut self, time: Duration) {
        if let Some(StartDeadline { until: Some(until) }) = &mut self.starting {
            *until = deadline(time).map_or(*until, |later| later.max(*until));
        }
    }

    /// Stops to wait for the data plane, because it is told to stop.
    pub(super) fn stop_waiting(&mut self) {
        self.starting = None;
    }

    /// Returns whether the data plane is starting.
    pub(super) const fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// Returns the deadline for the start of the data plane, or `None` if it is not starting or has
    /// no deadline.
    pub(super) fn until(&self) -> Option<Instant> {
        self.starting.as_ref().and_then(|starting| starting.until)
    }

    /// Returns whether no part of the data plane is known to have died.
    pub(super) const fn is_whole(&self) -> bool {
        self.death.is_none()
    }

    /// Takes the error if a part of the data plane has died.
    pub(super) const fn take_death(&mut self) -> Option<Error> {
        self.death.take()
    }
}

impl<P: DataPlane> Driver<P> {
    /// Completes the start of the data plane, at the beginning of the generation or after its
    /// successor has died. Called when every accept loop has run.
    pub(super) fn started(&mut self) -> Option<Occurrence> {
        self.liveness.starting = None;
        if !matches!(self.state, State::Starting { .. }) {
            tracing::warn!(
                event = "generation.resumed",
                "the successor died, so generation {} accepts connections again",
                self.process.generation
            );
            self.say_how_it_stands();
            return None;
        }
        let listeners = self.listeners.set.as_slice().iter();
        let listeners = listeners.map(|one| format!("{}={}", one.name(), one.address()));
        let listeners = listeners.collect::<Vec<_>>().join(" ");
        tracing::info!(
            event = "generation.accepting",
            listeners,
            "generation {} is accepting connections",
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
        if let Some(starting) = &mut self.liveness.starting {
            starting.until = None;
        }
        match self.state {
            State::Starting { .. } | State::Probation { .. } => {
                self.predecessors.tell_predecessor(&Message::Failed { reason: error.to_string() });
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
                    "a part of the server has failed, draining its remaining connections: {error}"
                );
                self.liveness.death = Some(error);
                return Ok(());
            }
        }
        Err(error)
    }
}
