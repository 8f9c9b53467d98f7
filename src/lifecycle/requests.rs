//! The part of the driver that fulfils the requests of the server's [`Life`],
//! and that lets the tasks which run in only one generation end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::driver::{Driver, Occurrence};
use super::handoff::{Stage, milliseconds};
use super::life::{Life, LifeRequest};
use super::machine::{Birth, Event, State};
use super::timers::deadline;
use crate::carry::CarriedState;
use crate::data_plane::DataPlane;
use crate::error::Error;
use crate::handoff::Message;
use crate::sys;

impl<P: DataPlane> Driver<P> {
    /// Fulfils a request of the server. Returns an event for the state machine, or `None` if no
    /// event follows.
    ///
    /// # Errors
    /// Returns the server's error if it ends this generation.
    pub(super) fn server_requested(
        &mut self,
        request: LifeRequest,
    ) -> Result<Option<Occurrence>, Error> {
        Ok(match request {
            LifeRequest::ExtendStart(time) => {
                self.extend_own_start(time);
                None
            }
            LifeRequest::RollBack(reason) => self.roll_back(reason)?,
            LifeRequest::Failed(term, _) | LifeRequest::Returned(term)
                if !term.is(&self.life.state.term.borrow()) =>
            {
                // The server has been called again in the meantime.
                None
            }
            LifeRequest::Failed(_, reason) => {
                self.part_died(Error::Server { reason })?;
                None
            }
            LifeRequest::Returned(_) if matches!(self.state, State::Starting { .. }) => {
                let reason = "it has returned before it was ready".to_owned();
                self.part_died(Error::Server { reason })?;
                None
            }
            LifeRequest::Returned(_) => {
                tracing::warn!(
                    event = "server.returned",
                    "the server has returned although nothing told it to: stopping the service"
                );
                Some(Event::Terminate.into())
            }
            LifeRequest::Stop => Some(Event::Terminate.into()),
            LifeRequest::Reload if self.process.signals.is_none() => {
                let reason = "the server runs without an inheritance";
                tracing::warn!(
                    event = "reload.ignored",
                    reason,
                    "ignored a reload request: {reason}"
                );
                None
            }
            LifeRequest::Reload => Some(Event::ReloadRequested.into()),
        })
    }

    /// Gives the server more time to become ready, and tells everyone who waits for it.
    fn extend_own_start(&mut self, time: Duration) {
        if !matches!(self.state, State::Starting { .. }) {
            return;
        }
        self.liveness.extend(time);
        self.predecessors.tell_predecessor(&Message::Extend { milliseconds: milliseconds(time) });
        if !self.predecessors.has_predecessor() {
            self.process.notifier.extend(time);
        }
    }

    /// Gives the handoff back to the predecessor.
    ///
    /// # Errors
    /// Returns the reason if no predecessor serves and this generation is not ready.
    fn roll_back(&mut self, mut reason: String) -> Result<Option<Occurrence>, Error> {
        if reason.is_empty() {
            "the server gave no reason".clone_into(&mut reason);
        }
        match self.state {
            State::Starting { birth: Birth::First | Birth::Orphan, .. } => {
                Err(Error::Server { reason })
            }
            State::Starting { .. } | State::Probation { .. } => {
                tracing::warn!(
                    event = "handoff.given_back",
                    reason,
                    "gave the handoff back to the predecessor: {reason}"
                );
                self.life.rollback = Some(reason);
                Ok(Some(Event::Terminate.into()))
            }
            State::Serving
            | State::HandingOff { .. }
            | State::Baking { .. }
            | State::Retiring { .. }
            | State::Stopping
            | State::Stopped => {
                tracing::warn!(
                    event = "rollback.ignored",
                    reason,
                    "cannot give the handoff back, because it is already committed: {reason}"
                );
                Ok(None)
            }
        }
    }

    /// Ends the tasks that run in only one generation, because the probation of the successor has
    /// ended. The handoff is committed when they have ended.
    pub(super) fn yield_duties(&mut self) {
        self.life.yield_duties();
        if let Some(handoff) = &mut self.handoff {
            handoff.stage = Stage::Yielding(deadline(self.config.alone_timeout));
        }
    }

    /// Ends the tasks that run in only one generation before a commit. They have usually ended,
    /// unless this generation was told to stop during the bake.
    ///
    /// # Errors
    /// Returns [`Error::AloneBlocks`] if a task cannot be ended. This process must then end before
    /// the successor may become active.
    pub(super) async fn yield_at_once(&mut self) -> Result<(), Error> {
        let has_ended = self.life.end_duties(self.config.alone_timeout).await;
        if has_ended { Ok(()) } else { Err(Error::AloneBlocks) }
    }

    /// Ends the tasks that run in only one generation at the end of this generation. Returns
    /// `lived`, the result of the generation.
    ///
    /// If a task blocks its thread, ends the process at once. Otherwise this generation would close
    /// its channels first, and a successor would start the task while it still runs here.
    #[expect(clippy::disallowed_methods, reason = "no destructor may run before the task ends")]
    pub(super) async fn end_duties(&mut self, lived: Result<(), Error>) -> Result<(), Error> {
        let has_waited = matches!(lived, Err(Error::AloneBlocks));
        let is_cut = self.life.state.cut.is_cancelled();
        let limit = if is_cut || has_waited { Duration::ZERO } else { self.config.alone_timeout };
        if !self.life.end_duties(limit).await && self.process.signals.is_some() {
            let error = Error::AloneBlocks;
            tracing::error!(
                event = "alone.blocked", reason = %error,
                "ended the process: {error}"
            );
            std::process::exit(error.exit() as i32);
        }
        lived
    }

    /// Stores the state that the predecessor's server has offered to this one.
    pub(super) fn receive_state(&mut self, format: String, file: OwnedFd) {
        match sys::memory_file::read(file, Life::OFFER_MAX as u64) {
            Ok(bytes) => {
                self.life.receive(CarriedState { format, bytes, descriptors: Vec::new() });
            }
            Err(error) => tracing::error!(
                event = "offer.failed", reason = %error,
                "cannot read the state that the predecessor's server has offered, beginning \
                without it: {error}"
            ),
        }
    }
}
