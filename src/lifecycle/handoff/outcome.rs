//! What follows from the outcome of a handoff: its log records, and what this process does if the
//! commit message could not be sent.

use crate::data_plane::DataPlane;
use crate::error::HandoffFailure;
use crate::generation::Generation;
use crate::handoff::{Commit, OnSuccessorDeath, StopMode, SuccessorEvent, Uncommitted};
use crate::lifecycle::driver::Driver;
use crate::lifecycle::handoff::ANSWER_TIMEOUT;
use crate::lifecycle::machine::State;
use crate::lifecycle::unlogged;

impl<P: DataPlane> Driver<P> {
    /// Handles a commit message that the successor has not received. The loss of the successor is
    /// the next event, so the operator learns that the handoff has failed.
    pub(super) async fn lose_uncommitted(&mut self, why: Uncommitted) {
        // Keep all listeners, because this process may have to accept on them again.
        self.listeners.given_up.clear();
        let mut is_lost = false;
        while !is_lost {
            let handoff = self.handoff.as_mut();
            let Some(successor) = handoff.and_then(|handoff| handoff.successor.as_mut()) else {
                return;
            };
            let event = match why {
                // Read the last messages, because they may say why the successor has ended.
                Uncommitted::Ended => successor.next().await,
                Uncommitted::Hung => {
                    successor.end(StopMode::Kill);
                    SuccessorEvent::Lost(HandoffFailure::Unresponsive { limit: ANSWER_TIMEOUT })
                }
            };
            is_lost = matches!(event, SuccessorEvent::Lost(_));
            let occurrence = self.heard_successor(event).await;
            self.raised.extend(occurrence);
        }
    }

    /// Warns if this process was told to stop during the bake (test of the new process), because
    /// the service continues in the new process. No warning is needed if a service manager or an
    /// init stops both.
    pub(super) fn warn_of_stop_in_bake(&self, commit: Commit, successor_pid: Option<u32>) {
        let is_alone = self.process.init.is_none() && !self.process.notifier.is_supervised();
        if let (OnSuccessorDeath::Stay, true, Some(pid)) =
            (commit.on_death, is_alone, successor_pid)
        {
            tracing::warn!(
                event = "handoff.hastened",
                successor_pid = pid,
                "this process was told to stop during the bake, so the new process takes over \
                now; to stop the service, send the signal to process {pid} too"
            );
        }
    }

    /// Logs why a handoff has failed.
    pub(super) fn report_failure(&self, successor: Generation, failure: &HandoffFailure) {
        // If the successor has not taken over, this generation is still the active one.
        let when = if self.active.is_some() {
            "failed"
        } else {
            "failed after the new process had taken over"
        };
        let what = format!("the handoff to generation {successor} {when}: {failure}");
        tracing::error!(
            event = "handoff.failed", %successor, failure = failure.kind(), reason = %failure,
            "{what}"
        );
        // If the program keeps no log, write the failure to standard error. But do not report a
        // handoff that fails because an operator has stopped the service.
        if self.state != State::Stopping {
            unlogged::report(&what);
        }
    }
}
