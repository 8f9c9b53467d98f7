//! Performs what the machine has decided: the part of the driver that acts.
//!
//! Each action is a call or a few; what an event means, and in which order actions come, is decided
//! in `machine`. What is about a successor is in `handover`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::data_plane::Plane;
use super::driver::Driver;
use super::machine::Action;
use super::timers::deadline;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::handoff::{Fate, Message, Successor};
use crate::net::Listener;

/// How long a cut connection may take to be gone: its task has only to be dropped.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long and how often a retired generation tries to accept again.
const RESUME_TIMEOUT: Duration = Duration::from_secs(10);
const RESUME_PAUSE: Duration = Duration::from_millis(100);

impl<P: Plane> Driver<P> {
    /// Performs one action.
    pub(super) async fn perform(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::TellReady => {
                let (closed, replaced) =
                    (self.listeners.unclaimed().to_vec(), self.listeners.replaced().to_vec());
                self.predecessors.tell_predecessor(&Message::Ready { closed, replaced });
            }
            Action::TellRollback => {
                // Who goes on counts it.
                self.predecessors.tell_predecessor(&Message::Report(Box::new(self.report())));
                self.predecessors.tell_predecessor(&Message::Rollback);
                // The predecessor goes on with its own listeners; those that were bound here end
                // here.
                self.given_up = self.listeners.bound_here().to_vec();
            }
            Action::TakeTheLine => self.take_the_line()?,
            Action::NotifyReady => {
                let status = self.status().to_string();
                if let Some(head) = &mut self.head {
                    head.ready(status);
                }
            }
            Action::StartSuccessor => self.start_successor(),
            Action::StartBake => {
                self.deadlines.ready = None;
                self.deadlines.bake = deadline(self.config.bake);
            }
            Action::Commit(hangup) => self.commit(|successor| successor.commit(hangup)),
            Action::CommitForGood(hangup) => {
                self.commit(|successor| successor.commit_for_good(hangup))
            }
            Action::DropSuccessor => self.drop_successor().await,
            Action::ForgetSuccessor => {
                if let Some(successor) = &mut self.successor {
                    successor.release();
                }
            }
            Action::LetGo => self.predecessors.let_go(),
            Action::LeaveTheLine if self.predecessors.count() > 0 => self.predecessors.let_go(),
            Action::StopSuccessor => {
                self.deadlines.ready = None;
                if let Some(successor) = &self.successor {
                    successor.end(Fate::Stop);
                }
            }
            Action::StopAccepting => {
                self.plane.stop_accepting().await;
                let (given_up, control) =
                    self.listeners.remove(&std::mem::take(&mut self.given_up));
                given_up.iter().chain(&control).for_each(Listener::unlink);
                let replaced: Vec<_> =
                    given_up.iter().filter(|listener| listener.is_replaced()).cloned().collect();
                replaced.iter().for_each(Listener::divert);
                // Whoever may have to accept again holds them still.
                let sockets: Vec<_> =
                    given_up.iter().filter_map(|listener| listener.cookie().ok()).collect();
                if !sockets.is_empty() {
                    self.predecessors.tell_all(&Message::GivenUp { sockets });
                }
                self.plane.sweep(&given_up);
                self.plane.accept_late(replaced);
            }
            Action::CloseListeners | Action::LeaveTheLine => {
                self.plane.stop_accepting().await;
                let all = self.listeners.take();
                // The path goes first, so that nobody comes who will not be accepted; but what the
                // service manager keeps has to be found again when it starts us anew.
                if !self.notifier.is_supervised() {
                    all.iter().for_each(Listener::unlink);
                }
                self.plane.sweep(&all);
                self.control_ends = true;
                if let Some(pid_file) = &mut self.pid_file {
                    pid_file.remove(self.successor.as_ref().and_then(Successor::pid));
                }
            }
            Action::TellStopping => {
                self.predecessors.tell_all(&Message::Stopping);
                let status = self.status().to_string();
                if let Some(head) = &mut self.head {
                    head.stopping(status);
                }
            }
            Action::Drain => {
                let (why, connections) =
                    (self.state.name(), self.plane.connections().map(|now| now.open));
                tracing::info!(
                    event = "drain.started",
                    why,
                    connections,
                    "generation {} is draining",
                    self.generation
                );
                let to_successor = self.to_successor.take();
                self.deadlines.drain = deadline(self.config.drain_timeout);
                // Half of it is left to those that are not carried by then, to come to an end.
                self.deadlines.carry =
                    to_successor.as_ref().and_then(|_| deadline(self.config.drain_timeout / 2));
                self.is_alone = false;
                self.plane.drain(to_successor);
                // Whoever is the head from now on knows what would be lost with this process, and
                // what it has counted.
                if let Some(successor) = &self.successor {
                    successor.answer(self.report());
                }
            }
            Action::TellTheRest => {
                self.deadlines.carry = None;
                self.plane.tell_the_rest();
            }
            Action::Resume => {
                self.deadlines.drain = None;
                self.deadlines.carry = None;
                self.accept_again().await?;
                tracing::warn!(
                    event = "generation.resumed",
                    "generation {} is accepting again",
                    self.generation
                );
            }
            Action::Cut => self.cut().await,
            Action::Exit => self.exit(),
        }
        Ok(())
    }

    /// Accepts again after a successor's death. A system that lacks memory or descriptors is asked
    /// again for a while, because no other generation serves.
    async fn accept_again(&mut self) -> Result<(), Error> {
        let until = Instant::now() + RESUME_TIMEOUT;
        let mut has_failed = false;
        loop {
            match self.plane.accept(self.listeners.as_slice()) {
                Err(error @ Error::System { .. }) if Instant::now() < until => {
                    if !has_failed {
                        tracing::error!(
                            event = "accept.resume_failed", reason = %error,
                            "cannot accept again yet: {error}"
                        );
                    }
                    has_failed = true;
                    self.plane.stop_accepting().await;
                    sleep(RESUME_PAUSE).await;
                }
                accepted => return accepted,
            }
        }
    }

    /// Cuts what is left of this generation; and of all before it, if they end with this one.
    async fn cut(&mut self) {
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
            let (connections, generations) =
                (self.plane.connections().map(|now| now.open), self.predecessors.count());
            tracing::warn!(
                event = "drain.outlived",
                connections,
                generations,
                "connections or older generations outlived being cut"
            );
        }
    }

    fn exit(&mut self) {
        if let Some(successor) = self.successor.as_ref().filter(|successor| !successor.is_ready()) {
            successor.end(Fate::Kill);
        }
        if self.control_ends {
            if let Some(control) = self.listeners.take_control() {
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
            self.generation
        );
        self.tell_drained(report);
        // The head adds it to what it knows.
        if let Some(successor) = &self.successor {
            successor.answer(self.report());
        }
        // Not before: systemd, which stops a unit, ends the command that asked as well, and its own
        // failure would be the unit's.
        self.refuse_reload("the service was told to stop");
    }
}
