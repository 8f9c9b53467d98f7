//! The part of the event loop ([`Driver`]) that asks connections to end before the process exits,
//! and cuts those that do not end in time. [`DrainPhase`] holds the state of a drain.

use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Driver, Occurrence};
use super::machine::{Birth, Event};
use super::timers::deadline;
use crate::carry::CarryEnd;
use crate::data_plane::DataPlane;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::handoff::{Message, StopMode};

/// How long to wait until the tasks of cut connections have ended. A second is enough, because the
/// runtime only has to drop these tasks.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a successor that is not ready may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a generation tries to accept connections again after its successor has died.
const RESUME_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two attempts to accept connections again after the successor has died.
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait for signs of the successor's death after it has closed the channel through
/// which connections move. The kernel does not close all channels of a dead process at the same
/// moment.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// The deadlines of a drain that is in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainPhase {
    /// When the remaining connections are cut. `None` if the clock cannot represent the deadline.
    pub(super) until: Option<Instant>,
    /// The time at which connections that have not moved to the successor are asked to end. `None`
    /// if no connection can move to a successor, or if they have already been asked.
    pub(super) carry_until: Option<Instant>,
    /// Whether connections may still move to the successor.
    pub(super) carries: bool,
}

impl<P: DataPlane> Driver<P> {
    /// Asks every connection to end or to move to the successor, and sets the drain deadline.
    pub(super) fn begin_drain(&mut self) {
        let connections = self.plane.connections().map(|now| now.open);
        self.liveness.stop_waiting();
        let channel = self.handoff.as_mut().and_then(|handoff| handoff.carry_channel.take());
        // Connections may move to the successor during the first half of the drain timeout.
        // Connections that have not moved by then have the second half to end.
        let carry = channel.as_ref().and_then(|_| deadline(self.config.drain_timeout / 2));
        self.drain = Some(DrainPhase {
            until: deadline(self.config.drain_timeout),
            carry_until: carry,
            carries: true,
        });
        self.life.drain();
        self.plane.drain(channel);
        // Write this log record only after the server has begun to count how connections end. So
        // the report of the drain includes every connection that ends after this record.
        tracing::info!(
            event = "drain.started",
            why = self.state.name(),
            connections,
            "this process (generation {}) is draining",
            self.process.generation
        );
        // Report the counters of this process to the active generation now. If this process dies,
        // the active generation then knows how many connections were lost.
        self.report_to_successor();
    }

    /// Asks the remaining connections to end, because no more connections move to the successor. If
    /// the successor may be dead, waits a moment first, in case this generation has to resume
    /// serving.
    pub(super) fn carry_ended(&mut self, end: CarryEnd) -> Option<Occurrence> {
        let drain = self.drain.as_mut()?;
        drain.carries = false;
        match end {
            CarryEnd::AllWent => Some(Event::CarryEnded.into()),
            CarryEnd::ReceiverGone => {
                let soon = deadline(LAST_WORD_TIMEOUT);
                drain.carry_until = [drain.carry_until, soon].into_iter().flatten().min();
                None
            }
        }
    }

    /// Asks the connections that have not moved to the successor to end.
    pub(super) fn drain_uncarried(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.carry_until = None;
        }
        self.plane.drain_uncarried();
    }

    /// Begins to accept connections again after the successor has died. If that fails, this process
    /// ends with an error.
    ///
    /// # Errors
    /// Returns the same errors as [`Driver::accept_again`].
    pub(super) async fn resume(&mut self) -> Result<(), Error> {
        self.drain = None;
        self.life.resume();
        drop(self.liveness.take_death());
        self.accept_again(Instant::now() + RESUME_TIMEOUT).await
    }

    /// Tries to accept connections again after the successor has died. If memory or file
    /// descriptors are lacking, the driver keeps trying until `until`, because no other process
    /// accepts connections.
    ///
    /// # Errors
    /// Returns the error of the last attempt.
    pub(super) async fn accept_again(&mut self, until: Instant) -> Result<(), Error> {
        match self.plane.start(self.listeners.set.as_slice()) {
            Ok(()) => self.liveness.begin(self.start_limit(), Birth::First),
            Err(error @ Error::System { .. }) if Instant::now() < until => {
                if self.liveness.retry(RESUME_PAUSE, until) {
                    tracing::error!(
                        event = "accept.resume_failed", reason = %error,
                        "the new process died, but this process cannot accept connections again \
                        yet, retrying: {error}"
                    );
                }
                self.plane.stop_accepting().await;
            }
            Err(error) => self.part_died(error)?,
        }
        Ok(())
    }

    /// Cuts the connections of this generation, and ends its drain. If it is the active generation,
    /// it also tells all older generations to cut their connections.
    pub(super) async fn cut(&mut self) {
        if self.life.state.cut.is_cancelled() {
            return;
        }
        self.life.cut();
        self.plane.cut();
        if self.active.is_some() {
            self.predecessors.tell_all(&Message::Cut);
        }
        let Self { plane, predecessors, active, .. } = self;
        let gone = async {
            plane.drained().await;
            while active.is_some() && !predecessors.is_empty() {
                predecessors.next().await;
            }
        };
        if tokio::time::timeout(CUT_TIMEOUT, gone).await.is_err() {
            let connections = self.plane.connections().map(|now| now.open);
            let generations = self.predecessors.count();
            tracing::warn!(
                event = "drain.outlived",
                connections,
                generations,
                "stopped waiting, although some connections or older processes did not end after \
                the connections were cut"
            );
        }
        // Set the deadline of the drain to now. The drain then ends even if a connection is left.
        if let Some(drain) = &mut self.drain {
            drain.until = Some(Instant::now());
        }
    }

    /// Performs the last step of this generation: reports how its drain ended. Also ends a
    /// successor that is not ready yet, and removes the path of the control socket if no other
    /// generation needs it.
    pub(super) async fn exit(&mut self) {
        let successor = self.handoff.as_mut().and_then(|handoff| handoff.successor.as_mut());
        if let Some(successor) = successor.filter(|successor| !successor.is_ready()) {
            // The successor was told to stop. Wait, because it still removes the paths that it
            // bound.
            successor.ended(STOP_TIMEOUT).await;
            successor.end(StopMode::Kill);
        }
        if self.listeners.control_ends {
            if let Some(control) = self.listeners.set.take_control() {
                control.unlink();
            }
        }
        let report = self.plane.report();
        let DrainReport { ended, carried, cut } = report;
        tracing::info!(
            event = "generation.ended",
            ended,
            carried,
            cut,
            "this process (generation {}) has ended",
            self.process.generation
        );
        self.tell_drained(report);
        // The active generation adds the counters in this last report to its totals.
        self.report_to_successor();
        // Refuse a pending reload request last, because the refusal makes the reload command fail.
        // When systemd stops a unit, it also stops a running reload command. If the command failed
        // before that, systemd would mark the unit as failed.
        self.refuse_reload("the service is stopping");
    }

    /// Sends this generation's status report to the successor.
    pub(super) fn report_to_successor(&self) {
        if let Some(successor) = self.successor() {
            successor.answer(self.report());
        }
    }
}
