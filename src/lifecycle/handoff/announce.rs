//! The last step before a commit: the pid file and the service manager name the successor.
//!
//! The step comes before the commit, because it may fail. The service manager stops the service
//! when the process that it treats as the main process ends. So if it cannot be told that the
//! successor is the main process, this process must not hand over.

use std::io;

use crate::data_plane::DataPlane;
use crate::error::HandoffFailure;
use crate::handoff::Successor;
use crate::lifecycle::driver::{Driver, Occurrence};
use crate::lifecycle::machine::{Event, State};
use crate::lifecycle::pid_file::log_failure;

impl<P: DataPlane> Driver<P> {
    /// Returns the event to handle next. If `occurrence` commits a handoff, announces the successor
    /// first. If that fails, the failure of the handoff comes first, and then `occurrence`.
    pub(in crate::lifecycle) fn after_announcement(
        &mut self,
        occurrence: Occurrence,
    ) -> Occurrence {
        let commits =
            matches!(occurrence.event, Event::BakeOver | Event::Terminate | Event::CutNow);
        if !commits || !matches!(self.state, State::Baking { .. }) {
            return occurrence;
        }
        match self.announce() {
            Ok(()) => occurrence,
            Err(source) => {
                self.raised.push_front(occurrence);
                HandoffFailure::NotAnnounced { source }.into()
            }
        }
    }

    /// Writes the successor's pid to the pid file, and tells the service manager that the successor
    /// is the main process. The pid file comes first, because a script may read it as soon as the
    /// service manager reports the end of the reload.
    ///
    /// # Errors
    /// Returns the reason why the service manager still treats this process as the main process.
    /// The pid file then names this process again.
    fn announce(&mut self) -> io::Result<()> {
        let pid = self.successor().and_then(Successor::pid);
        if let (Some(pid_file), Some(pid)) = (&mut self.pid_file, pid) {
            pid_file.hand_over(pid).unwrap_or_else(|error| log_failure(&error));
        }
        let Some(active) = &self.active else { return Ok(()) };
        let status = format!("generation {} serving", self.process.generation.next());
        let told = active.hand_over(pid, &status);
        if let (Err(_), Some(pid_file)) = (&told, &mut self.pid_file) {
            pid_file.name(std::process::id()).unwrap_or_else(|error| log_failure(&error));
        }
        told
    }
}
