//! The part of the driver that drains, cuts and exits. [`DrainPhase`] is its state.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::driver::{Driver, Occurrence};
use super::machine::Event;
use super::timers::deadline;
use crate::data_plane::CarryEnd;
use crate::data_plane::DataPlane;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::handoff::{Message, StopMode};

/// How long to wait for cut connections to disappear. Their tasks only have to be dropped.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a retired generation retries to accept again.
const RESUME_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two such retries.
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait for news of a successor's death after its carry channel has closed. When a
/// process dies, one channel closes before the other.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// The deadlines of a drain.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainPhase {
    /// When the remaining connections are cut.
    pub(super) until: Option<Instant>,
    /// When connections that have not been carried are asked to end.
    pub(super) carry_until: Option<Instant>,
    /// Whether the successor may accept more connections.
    pub(super) carries: bool,
}

impl<P: DataPlane> Driver<P> {
    /// Asks every connection to end or to move to the successor, and starts the drain deadline.
    pub(super) fn begin_drain(&mut self) {
        let (why, connections) = (self.state.name(), self.plane.connections().map(|now| now.open));
        tracing::info!(
            event = "drain.started",
            why,
            connections,
            "generation {} is draining",
            self.process.generation
        );
        let channel = self.handoff.as_mut().and_then(|handoff| handoff.carry_channel.take());
        // Carrying gets the first half of the drain timeout. Connections that have not moved by
        // then have the second half to end.
        let carry = channel.as_ref().and_then(|_| deadline(self.config.drain_timeout / 2));
        self.drain = Some(DrainPhase {
            until: deadline(self.config.drain_timeout),
            carry_until: carry,
            carries: true,
        });
        self.plane.drain(channel);
        // The active generation learns from this report what this process has counted. If this
        // process dies, the active generation knows how much was lost.
        self.report_to_successor();
    }

    /// Handles the end of the carry. If the successor seems to be dying, the remaining connections
    /// are not asked to end yet, because this generation may have to accept again.
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

    /// Asks the connections that were not carried to end.
    pub(super) fn drain_uncarried(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.carry_until = None;
        }
        self.plane.drain_uncarried();
    }

    /// Accepts again after a successor's death. If memory or file descriptors are short, it retries
    /// for a while, because no other generation serves.
    ///
    /// # Errors
    /// The last failure.
    pub(super) async fn resume(&mut self) -> Result<(), Error> {
        self.drain = None;
        let until = Instant::now() + RESUME_TIMEOUT;
        let mut has_failed = false;
        loop {
            match self.plane.start(self.listeners.set.as_slice()) {
                Err(error @ Error::System { .. }) if Instant::now() < until => {
                    if !has_failed {
                        tracing::error!(
                            event = "accept.resume_failed", reason = %error,
                            "cannot accept again, retrying: {error}"
                        );
                    }
                    has_failed = true;
                    self.plane.stop_accepting().await;
                    sleep(RESUME_PAUSE).await;
                }
                accepted => {
                    accepted?;
                    tracing::warn!(
                        event = "generation.resumed",
                        "generation {} is accepting again",
                        self.process.generation
                    );
                    return Ok(());
                }
            }
        }
    }

    /// Cuts the connections of this generation. If it is the active one, also cuts those of all
    /// older generations.
    pub(super) async fn cut(&mut self) {
        self.plane.cut();
        if self.head.is_some() {
            self.predecessors.tell_all(&Message::Cut);
        }
        let Self { plane, predecessors, head, .. } = self;
        let gone = async {
            plane.drained().await;
            while head.is_some() && !predecessors.is_empty() {
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
                "connections or older generations remain after the cut: timed out waiting for them"
            );
        }
    }

    /// Ends this generation: kills a successor that is not ready, unlinks the control socket if it
    /// ends here, and reports how the drain ended.
    pub(super) fn exit(&mut self) {
        let successor = self.successor();
        if let Some(successor) = successor.filter(|successor| !successor.is_ready()) {
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
            "generation {} has ended",
            self.process.generation
        );
        self.tell_drained(report);
        // The active generation adds this report to its totals.
        self.report_to_successor();
        // This must come last. When systemd stops a unit, it also ends a running reload command. If
        // that command failed earlier, the unit would count as failed.
        self.refuse_reload("the service was told to stop");
    }

    /// Sends this generation's status report to the successor.
    pub(super) fn report_to_successor(&self) {
        if let Some(successor) = self.successor() {
            successor.answer(self.report());
        }
    }
}
