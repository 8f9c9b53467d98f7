//! Some tasks of a server must run in only one process at a time (see `Life::alone`). This part of
//! the event loop waits for their end before a handoff is committed and before this process ends.
//!
//! Meanwhile, the event loop handles all other events, such as signals, messages and deadlines.

use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Driver, Occurrence};
use super::handoff::Stage;
use super::life::DROP_TIMEOUT;
use super::machine::{Event, State};
use super::signals::Signals;
use super::timers::deadline;
use crate::data_plane::DataPlane;
use crate::error::Error;

/// An event that is delayed until the tasks that run in only one generation have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct AloneWait {
    /// The event to handle once the tasks have ended.
    event: Event,
    pub(super) until: Option<Instant>,
    /// Whether the tasks were dropped, because they did not end in time.
    is_dropped: bool,
}

impl<P: DataPlane> Driver<P> {
    /// Tells the tasks that run in only one generation to end, because the probation of the
    /// successor has ended. The handoff is committed when these tasks have ended.
    pub(super) fn end_alone_tasks(&mut self) {
        self.life.end_alone_tasks();
        if let Some(handoff) = &mut self.handoff {
            handoff.stage = Stage::Yielding(deadline(self.config.alone_timeout));
        }
    }

    /// Returns `occurrence` if it can be handled now. Otherwise delays its event until the tasks
    /// that run in only one generation have ended. A stop or a cut during the successor's probation
    /// commits the handoff. It is delayed, because the successor could otherwise start a task that
    /// still runs here. The end of a drain is delayed too, because it ends this process.
    pub(super) fn after_alone_tasks(&mut self, occurrence: Occurrence) -> Option<Occurrence> {
        let event = occurrence.event;
        let limit = match (self.state, event) {
            // A cut gives the tasks no more time (see `await_alone_tasks`), so do not wait.
            (_, Event::Drained) if self.life.state.cut.is_cancelled() => return Some(occurrence),
            (State::Baking { .. }, Event::CutNow) => Duration::ZERO,
            (State::Baking { .. }, Event::Terminate)
            | (State::Retiring { .. } | State::Stopping, Event::Drained) => {
                self.config.alone_timeout
            }
            _ => return Some(occurrence),
        };
        self.life.end_alone_tasks();
        if !self.life.state.has_alone_tasks() {
            self.life.alone_wait = None;
            return Some(occurrence);
        }
        if event == Event::Drained {
            // Clear the deadline of the drain, because the drain is over, and the tasks may need
            // more time.
            self.drain.iter_mut().for_each(|drain| drain.until = None);
        }
        let is_later = |wait: &AloneWait| wait.event != Event::CutNow && event == Event::CutNow;
        if self.life.alone_wait.as_ref().is_none_or(is_later) {
            self.life.alone_wait =
                Some(AloneWait { event, until: deadline(limit), is_dropped: false });
        }
        None
    }

    /// Handles the end of the last task that runs in only one generation. Returns the event that
    /// was delayed until then.
    pub(super) fn alone_tasks_ended(&mut self) -> Occurrence {
        self.life.alone_wait.take().map_or(Event::BakeOver, |wait| wait.event).into()
    }

    /// Drops the tasks that run in only one generation, because they did not end in time.
    ///
    /// # Errors
    /// Returns [`Error::AloneBlocks`] if the tasks still run although they were already dropped.
    /// This process must then end before a successor may start them.
    pub(super) fn alone_tasks_expired(&mut self) -> Result<(), Error> {
        let Some(wait) = &mut self.life.alone_wait else { return Ok(()) };
        if wait.is_dropped {
            return Err(Error::AloneBlocks);
        }
        wait.is_dropped = true;
        wait.until = deadline(DROP_TIMEOUT);
        let is_cut = wait.event == Event::CutNow;
        let limit = if is_cut { Duration::ZERO } else { self.config.alone_timeout };
        self.life.drop_alone_tasks(limit);
        Ok(())
    }

    /// Handles the failure of a handoff: the tasks that run in only one generation may start again.
    /// But if a stop was delayed until these tasks end, the stop is handled now.
    pub(super) fn release_waiting_event(&mut self) {
        match self.life.alone_wait.take() {
            Some(wait) => self.raised.push_back(wait.event.into()),
            None => self.life.keep_alone_tasks(),
        }
    }

    /// Ends the tasks that run in only one generation, because this generation ends. Returns
    /// `lived`, the result of the generation. Tasks are left only if the generation ends with an
    /// error or was cut.
    ///
    /// If a task blocks its thread, ends the process at once. Otherwise this generation would close
    /// its channels first, and a successor would start the task while it still runs here.
    #[expect(clippy::disallowed_methods, reason = "no destructor may run before the task ends")]
    pub(super) async fn await_alone_tasks(
        &mut self,
        lived: Result<(), Error>,
    ) -> Result<(), Error> {
        let has_waited = matches!(lived, Err(Error::AloneBlocks));
        let is_cut = self.life.state.cut.is_cancelled();
        let limit = if is_cut || has_waited { Duration::ZERO } else { self.config.alone_timeout };
        self.life.end_alone_tasks();
        let state = &self.life.state;
        tokio::select! {
            biased;
            () = state.yielded() => return lived,
            () = tokio::time::sleep(limit) => {}
            () = told_to_end(self.process.signals.as_mut()) => {}
        }
        self.life.drop_alone_tasks(limit);
        let dropped = tokio::time::timeout(DROP_TIMEOUT, state.yielded()).await;
        if dropped.is_err() && self.process.signals.is_some() {
            let error = Error::AloneBlocks;
            tracing::error!(
                event = "alone.blocked", reason = %error,
                "ended the process at once: {error}"
            );
            std::process::exit(error.exit() as i32);
        }
        lived
    }
}

/// Waits for a signal that ends this process. Cancel safe.
async fn told_to_end(signals: Option<&mut Signals>) {
    let Some(signals) = signals else { return std::future::pending().await };
    while !matches!(signals.next().await, Event::Terminate | Event::CutNow) {}
}
