//! This part of the event loop ([`Driver`]) handles requests from the server, for example to stop
//! the service. The server makes these requests through its [`Life`] handle.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::driver::{Driver, Occurrence};
use super::handoff::milliseconds;
use super::life::{Life, LifeRequest};
use super::machine::{Birth, Event, State};
use crate::carry::CarriedState;
use crate::data_plane::DataPlane;
use crate::error::Error;
use crate::handoff::Message;
use crate::sys;

impl<P: DataPlane> Driver<P> {
    /// Handles a request of the server. Returns an event for the state machine, or `None` if no
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
                // Ignore the request, because the server function has been called again in the
                // meantime.
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
                if matches!(self.state, State::Probation { .. }) {
                    self.life.rollback = Some("its server function has returned".to_owned());
                }
                tracing::warn!(
                    event = "server.returned",
                    "the server function has returned without a request to stop, so the service \
                    stops"
                );
                Some(Event::Terminate.into())
            }
            LifeRequest::Stop => Some(Event::Terminate.into()),
            LifeRequest::Reload if self.process.signals.is_none() => {
                let reason = "the server runs inside a test, which does not support reloads";
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

    /// Gives the server more time to become ready. Also tells the process that waits for this
    /// server, which is the predecessor or the service manager.
    fn extend_own_start(&mut self, time: Duration) {
        self.liveness.extend(time);
        if !matches!(self.state, State::Starting { .. }) {
            return;
        }
        self.predecessors.tell_predecessor(&Message::Extend { milliseconds: milliseconds(time) });
        if !self.predecessors.has_predecessor() {
            self.process.notifier.extend(time);
        }
    }

    /// Rolls the handoff back, so that the predecessor keeps serving.
    ///
    /// # Errors
    /// Returns the reason as an error if no predecessor serves and this generation is not ready.
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
                    "rolled the handoff back, so the old process keeps serving: {reason}"
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
                    "ignored a request to roll the handoff back, because it is already complete: \
                    {reason}"
                );
                Ok(None)
            }
        }
    }

    /// Stores the state that the predecessor's server has offered to the server of this process.
    pub(super) fn receive_state(&mut self, format: String, file: OwnedFd) {
        match sys::memory_file::read(file, Life::OFFER_MAX as u64) {
            Ok(bytes) => {
                self.life.receive(CarriedState { format, bytes, descriptors: Vec::new() });
            }
            Err(error) => tracing::error!(
                event = "offer.failed", reason = %error,
                "cannot read the saved state of the server from the old process, so this process \
                starts without it: {error}"
            ),
        }
    }
}
