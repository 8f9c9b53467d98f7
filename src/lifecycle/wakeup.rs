//! The part of the event loop ([`Driver`]) that waits for events from all sources, such as
//! messages, signals and deadlines. It calls the handler of each event.

use std::sync::Arc;

use super::active_role::{ActiveRole, Duty};
use super::driver::{Driver, Occurrence};
use super::handoff::{ANSWER_TIMEOUT, Barrier, Handoff};
use super::life::LifeRequest;
use super::machine::{Event, State};
use super::pid_file::PidFile;
use super::signals::Signals;
use super::timers::{Timer, due};
use crate::control::{Answer, Request};
use crate::data_plane::{Awaited, DataPlane, PlaneEvent};
use crate::error::{Error, HandoffFailure};
use crate::handoff::{PredecessorEvent, Successor, SuccessorEvent};

/// The reason why the event loop has woken up.
enum Wakeup {
    Predecessor(PredecessorEvent),
    Successor(SuccessorEvent),
    Signal(Event),
    Plane(PlaneEvent),
    Due(Timer),
    Asked(Request, Answer),
    Server(LifeRequest),
    Yielded,
    MainProcessKnown,
    Duty(Duty),
}

impl<P: DataPlane> Driver<P> {
    /// Waits for the next event for the state machine. Messages from other generations are read
    /// before signals, because the effect of a signal depends on whether a handoff was committed or
    /// has failed.
    ///
    /// # Errors
    /// Returns the error that ends this generation.
    pub(super) async fn next_occurrence(&mut self) -> Result<Occurrence, Error> {
        loop {
            if let Some(occurrence) = self.raised.pop_front() {
                if let Some(occurrence) = self.after_alone_tasks(occurrence) {
                    return Ok(self.after_announcement(occurrence));
                }
                continue;
            }
            let (awaited, timer) = (self.awaited(), self.next_timer());
            let life = Arc::clone(&self.life.state);
            let is_yielding = |handoff: &Handoff| handoff.stage.is_yielding();
            let yields =
                self.life.alone_wait.is_some() || self.handoff.as_ref().is_some_and(is_yielding);
            let (successor, barrier) = match &mut self.handoff {
                Some(handoff) => (handoff.successor.as_mut(), handoff.barrier.as_ref()),
                None => (None, None),
            };
            let wakeup = tokio::select! {
                biased;
                event = self.predecessors.next() => Wakeup::Predecessor(event),
                event = next_of_successor(successor) => Wakeup::Successor(event),
                event = next_signal(self.process.signals.as_mut()) => Wakeup::Signal(event),
                request = self.life.next() => Wakeup::Server(request),
                () = life.yielded(), if yields => Wakeup::Yielded,
                () = end_of_barrier(barrier) => Wakeup::MainProcessKnown,
                event = self.plane.next(awaited) => Wakeup::Plane(event),
                timer = due(timer) => Wakeup::Due(timer),
                (request, answer) = self.operators.control.next() => Wakeup::Asked(request, answer),
                duty = next_duty(self.active.as_mut()) => Wakeup::Duty(duty),
            };
            let occurrence = self.woke(wakeup).await?;
            self.raised.extend(occurrence);
        }
    }

    async fn woke(&mut self, wakeup: Wakeup) -> Result<Option<Occurrence>, Error> {
        Ok(match wakeup {
            Wakeup::Predecessor(event) => self.heard_predecessor(event),
            Wakeup::Successor(event) => self.heard_successor(event).await,
            Wakeup::Signal(event) => Some(event.into()),
            Wakeup::Plane(event) => self.handle_plane_event(event)?,
            Wakeup::Due(timer) => self.expired(timer).await?,
            Wakeup::Asked(request, answer) => self.asked(request, answer),
            Wakeup::Server(request) => self.server_requested(request)?,
            Wakeup::Yielded => Some(self.alone_tasks_ended()),
            Wakeup::MainProcessKnown => {
                self.barrier_passed();
                None
            }
            Wakeup::Duty(duty) => {
                self.do_duty(duty);
                None
            }
        })
    }

    fn handle_plane_event(&mut self, event: PlaneEvent) -> Result<Option<Occurrence>, Error> {
        match event {
            PlaneEvent::Started => Ok(self.started()),
            PlaneEvent::Died(error) => self.part_died(error).map(|()| None),
            PlaneEvent::CarryEnded(end) => Ok(self.carry_ended(end)),
            PlaneEvent::TakenOver => {
                self.launch_successor();
                Ok(None)
            }
            // The successor may have ended at this moment. Its loss is then the next event.
            PlaneEvent::Drained if !self.may_be_drained() => Ok(None),
            PlaneEvent::Drained => Ok(Some(Event::Drained.into())),
        }
    }

    /// Handles a deadline that has passed. Returns an event for the state machine, or `None` if no
    /// event follows.
    async fn expired(&mut self, timer: Timer) -> Result<Option<Occurrence>, Error> {
        Ok(Some(match timer {
            Timer::Startup => {
                self.part_died(self.plane.not_started(self.liveness.limit()))?;
                return Ok(None);
            }
            Timer::Resume { until } => {
                self.accept_again(until).await?;
                return Ok(None);
            }
            Timer::Delay => HandoffFailure::NotStarted { limit: self.config.drain_timeout }.into(),
            Timer::Ready => {
                let limit = self.handoff.as_ref().map(|handoff| handoff.ready_limit);
                HandoffFailure::TimedOut { limit: limit.unwrap_or_default() }.into()
            }
            Timer::Operator => self.out_of_time().into(),
            Timer::Bake => {
                self.check_successor();
                return Ok(None);
            }
            Timer::Answer => HandoffFailure::Unresponsive { limit: ANSWER_TIMEOUT }.into(),
            Timer::Yield => HandoffFailure::NotYielded { limit: self.config.alone_timeout }.into(),
            Timer::Duties => {
                self.alone_tasks_expired()?;
                return Ok(None);
            }
            Timer::Drain => Event::DrainExpired.into(),
            Timer::Carry => Event::CarryEnded.into(),
            Timer::Status => {
                self.answer_status();
                return Ok(None);
            }
            Timer::PidFile => {
                self.pid_file.as_mut().into_iter().for_each(PidFile::retry);
                return Ok(None);
            }
        }))
    }

    /// Returns the earliest deadline of this generation, or `None` if it has none.
    fn next_timer(&self) -> Option<(tokio::time::Instant, Timer)> {
        let (handoff, drain) = (self.handoff.as_ref(), self.drain.as_ref());
        let timers = [
            self.liveness.timer(),
            handoff
                .and_then(|handoff| handoff.stage.timer())
                .filter(|_| self.life.alone_wait.is_none()),
            self.life.alone_wait.and_then(|wait| wait.until).map(|at| (at, Timer::Duties)),
            handoff
                .filter(|_| self.life.alone_wait.is_none())
                .and_then(|handoff| handoff.given_up_at())
                .map(|at| (at, Timer::Operator)),
            drain.and_then(|drain| drain.until).map(|at| (at, Timer::Drain)),
            drain.and_then(|drain| drain.carry_until).map(|at| (at, Timer::Carry)),
            self.operators.status.deadline().map(|at| (at, Timer::Status)),
            self.pid_file.as_ref().and_then(PidFile::due).map(|at| (at, Timer::PidFile)),
        ];
        timers.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Returns which events of the server the event loop waits for in the current state.
    fn awaited(&self) -> Awaited {
        let is_retiring = matches!(self.state, State::Retiring { .. });
        Awaited {
            start: self.liveness.is_awaited(),
            death: self.liveness.is_whole(),
            carry_end: is_retiring && self.drain.as_ref().is_some_and(|drain| drain.carries),
            taken_over: self.handoff.as_ref().is_some_and(|handoff| handoff.stage.is_delayed()),
            drained: self.may_be_drained() && self.life.alone_wait.is_none(),
        }
    }

    /// Returns whether this process may end when it has no connections.
    ///
    /// A retired generation first waits until the service manager treats the successor as the main
    /// process. If the successor has ended, the event loop handles its loss first.
    ///
    /// While the service stops, this process first waits until a successor that is not ready has
    /// ended. The active generation also waits until all older generations have ended, because
    /// systemd and containers kill all other processes when the main process ends.
    fn may_be_drained(&self) -> bool {
        let successor = self.successor();
        let has_unready_successor = successor.is_some_and(|successor| !successor.is_ready());
        match self.state {
            State::Retiring { .. } => {
                let awaits = self.handoff.as_ref().is_some_and(|one| one.barrier.is_some());
                !awaits && !successor.is_some_and(Successor::is_gone)
            }
            State::Stopping => {
                !has_unready_successor && (self.active.is_none() || self.predecessors.is_empty())
            }
            State::Starting { .. }
            | State::Probation { .. }
            | State::Serving
            | State::HandingOff { .. }
            | State::Baking { .. }
            | State::Stopped => false,
        }
    }
}

/// Waits for the next signal. Waits forever if this process does not handle signals. Cancel safe.
async fn next_signal(signals: Option<&mut Signals>) -> Event {
    match signals {
        Some(signals) => signals.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for the next periodic duty of the active generation. Waits forever if this process is not
/// active. Cancel safe.
async fn next_duty(active: Option<&mut ActiveRole>) -> Duty {
    match active {
        Some(active) => active.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until the service manager treats the successor as the main process. Waits forever if this
/// process does not wait for that. Cancel safe.
async fn end_of_barrier(barrier: Option<&Barrier>) {
    match barrier {
        Some(barrier) => barrier.passed().await,
        None => std::future::pending().await,
    }
}

/// Waits for the next message from the successor. Waits forever if no successor exists. Cancel
/// safe.
async fn next_of_successor(successor: Option<&mut Successor>) -> SuccessorEvent {
    match successor {
        Some(successor) => successor.next().await,
        None => std::future::pending().await,
    }
}
