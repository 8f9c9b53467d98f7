//! The part of the driver that drains, cuts and ends, and [`DrainPhase`]: what exists only
//! meanwhile.

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

/// How long a cut connection may take to be gone: its task only has to be dropped.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a retired generation tries to accept again.
const RESUME_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two such tries.
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait for the death of a successor that has stopped taking connections. A process
/// that dies closes one channel before the other.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// The deadlines of a drain.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainPhase {
    /// When the connections that are left are cut.
    pub(super) until: Option<Instant>,
    /// When the connections that were not carried by then are told to end.
    pub(super) carry_until: Option<Instant>,
    /// Whether the successor may still take connections.
    pub(super) carries: bool,
}

impl<P: DataPlane> Driver<P> {
    /// Tells every connection to end or to move to the successor, and starts the drain deadline.
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
        // Connections that are not carried in the first half have the second half to end.
        let carry = channel.as_ref().and_then(|_| deadline(self.config.drain_timeout / 2));
        self.drain = Some(DrainPhase {
            until: deadline(self.config.drain_timeout),
            carry_until: carry,
            carries: true,
        });
        self.plane.drain(channel);
        // The active generation then knows what this process has counted, and what would be lost
        // with it.
        self.report_to_successor();
    }

    /// The successor takes no more connections. If it is about to be heard dead, the connections
    /// that were not carried wait for that: this generation may accept again.
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

    /// Tells the connections to end that were not carried.
    pub(super) fn drain_uncarried(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.carry_until = None;
        }
        self.plane.drain_uncarried();
    }

    /// Accepts again after a successor's death. While the system lacks memory or descriptors this is
    /// tried again for a while, because no other generation serves.
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

    /// Cuts the connections of this generation, and of all older ones if they end with it.
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
                "connections or older generations outlived being cut"
            );
        }
    }

    /// Reports how the drain ended to everybody who waits for it.
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
        // The active generation adds it to what it knows.
        self.report_to_successor();
        // Not earlier: when systemd stops a unit it also ends the command that asked, and the
        // command's failure would be the unit's.
        self.refuse_reload("the service was told to stop");
    }

    /// Tells the successor how this generation stands.
    pub(super) fn report_to_successor(&self) {
        if let Some(successor) = self.successor() {
            successor.answer(self.report());
        }
    }
}
