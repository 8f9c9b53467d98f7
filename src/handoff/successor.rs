//! With this module, a predecessor starts its successor, communicates with it and keeps track of
//! its state.
//!
//! The successor sends a message when it accepts connections, and the kernel reports the
//! successor's death. The caller decides how long to wait for these events. Once the successor's
//! first message has arrived, this process holds a pidfd of the successor. So a signal cannot reach
//! another process that has reused the pid.

mod messages;

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::channel::Channel;
use super::launch::{LaunchSpec, carry_pair};
use super::message::Message;
use super::packet::Received;
use super::payload::Commit;
use super::status_poll::StatusPoll;
use super::successor_event::{StopMode, SuccessorEvent, SuccessorStage, Uncommitted};
use crate::error::{EndStatus, HandoffFailure};
use crate::report::{Counters, Report};
use crate::sys;
use crate::sys::socket::{channel_pair, retry};

/// How long to wait for the exit status of a successor that has closed its end of the channel.
const DYING: Duration = Duration::from_millis(100);

/// The process that takes over from this process.
#[derive(Debug)]
pub(crate) struct Successor {
    channel: Channel,
    program: PathBuf,
    /// Both ends of the channel over which connections move to the successor. `None` if no
    /// connection will move. The channel is created before the commit, because its creation may
    /// fail and the commit must not fail.
    carrying: Option<(OwnedFd, OwnedFd)>,
    stage: SuccessorStage,
    /// When to stop waiting for the exit status of the successor. `None` until the successor has
    /// closed its end of the channel.
    dying_until: Option<Instant>,
    poll: StatusPoll,
}

impl Successor {
    /// Starts a successor. [`Successor::next`] then reports what happens to it. Must be called in a
    /// tokio runtime. Blocks the thread for the duration of two forks.
    ///
    /// # Errors
    /// [`HandoffFailure::Fork`] if no process could be created.
    pub(crate) fn start(spec: &mut LaunchSpec<'_>) -> Result<Self, HandoffFailure> {
        let failed = |source| HandoffFailure::Fork { source };
        let (ours, theirs) = channel_pair().map_err(failed)?;
        let channel = Channel::to_a_new_process(ours).map_err(failed)?;
        let carrying = spec.forecast.as_ref().map(|_| carry_pair()).transpose().map_err(failed)?;
        let started = spec.launch(&channel, theirs).map_err(failed);
        // Only log this error, and keep the successor. This process may then still hold a copy of
        // the successor's channel end, so no end of file arrives when the successor dies. This does
        // no harm, because the pidfd of the successor reports its death.
        if let Err(error) = spec.slot.clear() {
            tracing::warn!(
                event = "successor.close_failed", reason = %error,
                "cannot close a socket that only the new process needs, but the handoff continues: \
                {error}"
            );
        }
        started?;
        Ok(Self {
            channel,
            program: spec.program.path().to_owned(),
            carrying,
            stage: SuccessorStage::Starting,
            dying_until: None,
            poll: StatusPoll::default(),
        })
    }

    /// Returns the pid of the successor. Returns `None` until its first message has arrived,
    /// because the kernel reports the pid together with that message.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.channel.pid()
    }

    /// Returns whether the successor has reported that it accepts connections.
    pub(crate) fn is_ready(&self) -> bool {
        self.stage != SuccessorStage::Starting
    }

    /// Returns whether the successor and all later generations have ended. [`Successor::next`] then
    /// reports the loss, unless it has already done so.
    pub(crate) fn is_gone(&self) -> bool {
        self.channel.has_hung_up()
    }

    /// Records that the whole service stops after the successor has taken over. From then on, this
    /// process ignores messages that say the successor is ready or has failed.
    pub(crate) fn release(&mut self) {
        self.stage = SuccessorStage::Released;
    }

    /// Asks the successor for its status, if the successor already accepts connections.
    pub(crate) fn ask(&mut self) {
        if self.is_ready() {
            if let Some(question) = self.poll.question() {
                self.tell(&question);
            }
        }
    }

    /// Returns the last known status of the successor.
    pub(crate) const fn poll(&self) -> &StatusPoll {
        &self.poll
    }

    /// Sends the status of this process to the successor.
    pub(crate) fn answer(&self, report: Report) {
        self.tell(&Message::Report(Box::new(report)));
    }

    /// Waits for the next event from the successor. No event follows [`SuccessorEvent::Lost`] or
    /// [`SuccessorEvent::Ended`]. Cancel safe.
    pub(crate) async fn next(&mut self) -> SuccessorEvent {
        loop {
            let received = poll_fn(|cx| self.channel.poll_receive(cx)).await;
            if matches!(received, Received::End) && self.stage != SuccessorStage::Released {
                // Keep the deadline in `self`, because the caller may drop this future and create a
                // new one before the deadline.
                let until = *self.dying_until.get_or_insert_with(|| Instant::now() + DYING);
                let status = EndStatus(self.channel.exit_status(until).await);
                return SuccessorEvent::Lost(match self.stage {
                    SuccessorStage::Starting => HandoffFailure::EndedEarly { status },
                    SuccessorStage::Ready | SuccessorStage::Released => {
                        HandoffFailure::EndedLate { status }
                    }
                });
            }
            if let Some(event) = self.take(received) {
                return event;
            }
        }
    }

    /// Sends the successor the counters of the older generations that have ended. Waits for room in
    /// the channel until the given time.
    pub(crate) async fn counted(&self, counters: Counters, until: Instant) {
        let _ = self.tell_with_room(&Message::Counted(Box::new(counters)), until).await;
    }

    /// Sends the successor the last status report of an older generation that has not ended. Waits
    /// for room in the channel until the given time.
    pub(crate) async fn draining(&self, report: Report, until: Instant) {
        let _ = self.tell_with_room(&Message::Draining(Box::new(report)), until).await;
    }

    /// Passes the state that this process's server offers to the successor. Waits for room in the
    /// channel until the given time.
    pub(crate) async fn offer(&self, format: String, state: &[u8], until: Instant) {
        let message = Message::Offer { format };
        let passed = match retry(|| sys::memory_file::written(state)) {
            Ok(file) => self.channel.with_room(until, |to| to.pass(&message, file.as_fd())).await,
            Err(error) => Err(error),
        };
        if let Err(error) = passed {
            tracing::error!(
                event = "offer.failed", reason = %error,
                "cannot pass the saved state of the server to the new process, which starts \
                without it: {error}"
            );
        }
    }

    /// Offers to move connections to the successor. `version` is the version of the protocol for
    /// moving connections. Waits for room in the channel until the given time. Returns our end of
    /// the channel over which the connections move. Returns `None` if no channel was created or the
    /// offer could not be sent. A successor that takes no connections closes its end of the
    /// channel.
    pub(crate) async fn carry(&mut self, version: u32, until: Instant) -> Option<OwnedFd> {
        let (ours, theirs) = self.carrying.take()?;
        let offer = Message::Carry { version };
        match self.channel.with_room(until, |to| to.pass(&offer, theirs.as_fd())).await {
            // After an error, this process keeps its connections until they end. But if the
            // successor has ended, [`Successor::next`] reports that.
            Err(error) if !self.channel.has_hung_up() => {
                tracing::error!(
                    event = "carry.unavailable", reason = %error,
                    "cannot offer client connections to the new process, so they stay in this \
                    process: {error}"
                );
                None
            }
            Err(_) | Ok(()) => Some(ours),
        }
    }

    /// Tells the successor that it is now the active generation. This commits the handoff. Waits
    /// for room in the channel until the given time.
    ///
    /// # Errors
    /// Returns the reason why the successor has not received the message.
    pub(crate) async fn commit(
        &mut self,
        commit: Commit,
        until: Instant,
    ) -> Result<(), Uncommitted> {
        self.channel.outlive_process();
        self.tell_with_room(&Message::Committed(commit), until).await.map_err(|_| {
            if self.channel.has_hung_up() { Uncommitted::Ended } else { Uncommitted::Hung }
        })
    }

    /// Ends the successor in the given way, unless it has already ended.
    pub(crate) fn end(&self, fate: StopMode) {
        // Send a stop message and a signal. The signal may not reach the successor, because its pid
        // may be unknown or a wrapper script may have forked it. Without the message, the successor
        // would treat the end of the channel as our death and become the active generation. The
        // message alone does not stop a program that is not handoffd, so the signal is needed too.
        self.tell(&Message::Stop);
        let signal = match fate {
            StopMode::Stop => Signal::SIGTERM,
            StopMode::Kill => Signal::SIGKILL,
        };
        let pid = self.pid();
        match self.channel.signal(signal) {
            Some(Ok(())) => {
                tracing::debug!(
                    event = "successor.signalled", successor_pid = pid, %signal,
                    "sent {signal} to the new process"
                )
            }
            Some(Err(error)) => {
                tracing::debug!(
                    event = "successor.ended", successor_pid = pid, %signal, %error,
                    "cannot send {signal} to the new process: {error}"
                );
            }
            None => {}
        }
    }

    /// Tells the successor to stop, so that this process keeps serving. Returns whether the
    /// successor confirms the rollback within the given time.
    pub(crate) async fn gives_back(&mut self, within: Duration) -> bool {
        self.end(StopMode::Stop);
        let said = async {
            loop {
                if let SuccessorEvent::Lost(failure) = self.next().await {
                    return failure.is_rollback();
                }
            }
        };
        tokio::time::timeout(within, said).await.unwrap_or(false)
    }

    /// Confirms the rollback to a successor that drains its connections. Waits until the successor
    /// has closed its copies of the listening sockets, but at most for the given time. So if this
    /// process stops next, its own copies are the last ones, and it can serve the last clients.
    pub(crate) async fn confirm_rollback(&mut self, within: Duration) {
        self.tell(&Message::RolledBack);
        self.closed(Instant::now() + within).await;
    }

    /// Waits until the successor has closed the channel, but at most until the given time.
    async fn closed(&mut self, until: Instant) {
        let closed = async {
            while !matches!(poll_fn(|cx| self.channel.poll_receive(cx)).await, Received::End) {}
        };
        let _ = tokio::time::timeout_at(until, closed).await;
    }

    /// Waits until the process of the successor has ended, but at most for the given time.
    pub(crate) async fn ended(&mut self, within: Duration) {
        let until = Instant::now() + within;
        self.closed(until).await;
        // Also wait for the process itself, because a server that embeds this library closes the
        // channel before its `main` returns.
        self.channel.exit_status(until).await;
    }

    fn tell(&self, message: &Message) {
        if let Err(error) = self.channel.send(message) {
            log_unsent(message, &error);
        }
    }

    /// Sends a message, and waits while the channel is full, but only until the given time.
    async fn tell_with_room(&self, message: &Message, until: Instant) -> io::Result<()> {
        let sent = self.channel.with_room(until, |channel| channel.send(message)).await;
        sent.inspect_err(|error| log_unsent(message, error))
    }
}

fn log_unsent(message: &Message, error: &io::Error) {
    tracing::debug!(
        event = "successor.unreachable", ?message, %error,
        "cannot send a message to the new process: {error}"
    );
}
