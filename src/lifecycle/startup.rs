//! The part of the driver that sees whether the accept loops have started, and whether they live.
//!
//! A generation says that it is ready when every accept loop has run, not when it was started. A
//! generation that lost a worker or an accept loop would lose a part of its clients for as long as
//! it lives. So it ends with the reason.

use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Driver, Occurrence};
use super::machine::{Event, State};
use super::timers::deadline;
use crate::data_plane::DataPlane;
use crate::error::Error;
use crate::handoff::Message;

/// Whether the accept loops have started, and what has died of them.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// Present until the data plane serves.
    starting: Option<Starting>,
    /// Why this generation ends in an error once its connections have ended.
    death: Option<Error>,
}

/// The start of the data plane, and its deadline.
#[derive(Debug)]
struct Starting {
    until: Option<Instant>,
}

impl Liveness {
    /// Notes that the data plane starts, and may take as long as `limit`.
    pub(super) fn begin(&mut self, limit: Duration) {
        self.starting = Some(Starting { until: deadline(limit) });
    }

    /// Returns whether the data plane is starting.
    pub(super) const fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// Returns when the data plane must serve.
    pub(super) fn until(&self) -> Option<Instant> {
        self.starting.as_ref().and_then(|starting| starting.until)
    }

    /// Returns whether no part has died so far.
    pub(super) const fn is_whole(&self) -> bool {
        self.death.is_none()
    }

    /// Takes what has died, if anything has.
    pub(super) const fn take_death(&mut self) -> Option<Error> {
        self.death.take()
    }
}

impl<P: DataPlane> Driver<P> {
    /// Every accept loop has run.
    pub(super) fn started(&mut self) -> Option<Occurrence> {
        self.liveness.starting = None;
        // It may have been told to stop meanwhile.
        matches!(self.state, State::Starting { .. }).then(|| {
            let listeners = self.listeners.set.as_slice().iter();
            let listeners = listeners.map(|one| format!("{}={}", one.name(), one.address()));
            let listeners = listeners.collect::<Vec<_>>().join(" ");
            tracing::info!(
                event = "generation.accepting",
                listeners,
                "generation {} is accepting",
                self.process.generation
            );
            Event::Live.into()
        })
    }

    /// Handles the death of a worker or an accept loop.
    ///
    /// A generation that accepts ends at once, as in a crash: the generation before or after it
    /// takes over. A generation that drains lets its other connections finish.
    ///
    /// # Errors
    /// The death, when the generation ends of it.
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
                    "connections were lost with a worker: {error}"
                );
                self.liveness.death = Some(error);
                return Ok(());
            }
        }
        Err(error)
    }
}
