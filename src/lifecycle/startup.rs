//! The part of the driver that sees to it that what accepts has begun, and has not died.
//!
//! A generation says that it is ready when every accept loop has run, and not when it has been
//! started. One of which a worker or an accept loop has died would lose a part of its clients for
//! as long as it lives, so it ends with the reason.

use tokio_util::task::TaskTracker;

use super::data_plane::Plane;
use super::driver::Driver;
use super::machine::{Event, State};
use crate::error::Error;
use crate::handoff::Message;

impl<P: Plane> Driver<P> {
    /// Every accept loop has run.
    pub(super) fn begun(&mut self) -> Option<Event> {
        (self.beginning, self.deadlines.begin) = (None, None);
        // It may have been told to stop meanwhile.
        matches!(self.state, State::Starting { .. }).then(|| {
            let listeners = self
                .listeners
                .as_slice()
                .iter()
                .map(|one| format!("{}={}", one.name(), one.address()));
            let listeners = listeners.collect::<Vec<_>>().join(" ");
            tracing::info!(
                event = "generation.accepting",
                listeners,
                "generation {} is accepting",
                self.generation
            );
            Event::Live
        })
    }

    /// A part of what serves has died. A generation that accepts ends at once, as it would in a
    /// crash: who is before or after it takes the line. One that drains loses nobody more by
    /// letting the others finish.
    pub(super) fn part_died(&mut self, error: Error) -> Result<(), Error> {
        self.deadlines.begin = None;
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
                    "a part of the connections is lost: {error}"
                );
                self.died = Some(error);
                return Ok(());
            }
        }
        Err(error)
    }
}

/// Waits until every accept loop has run; for ever if none is being started.
pub(super) async fn begin(beginning: Option<&TaskTracker>) {
    match beginning {
        Some(beginning) => beginning.wait().await,
        None => std::future::pending().await,
    }
}
