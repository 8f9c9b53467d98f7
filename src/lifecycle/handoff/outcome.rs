//! The log records about the outcome of a handoff.

use crate::data_plane::DataPlane;
use crate::error::HandoffFailure;
use crate::generation::Generation;
use crate::handoff::{Commit, OnSuccessorDeath};
use crate::lifecycle::driver::Driver;
use crate::lifecycle::machine::State;
use crate::lifecycle::unlogged;

impl<P: DataPlane> Driver<P> {
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
