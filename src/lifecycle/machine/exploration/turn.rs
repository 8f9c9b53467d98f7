//! The turns of the lifecycle test. In each turn, one simulated process handles one event. The test
//! passes the event to the state machine (`step`), and performs the actions that it returns.
//!
//! A process may handle a signal, a deadline or the start of its accept loops before an unread
//! message. This covers the case in which the message arrives a moment later. The end of a drain is
//! handled only when no message is unread. Testing the other order would find nothing new, because
//! a process sends no message when its drain ends.
//!
//! The test may kill a process between two turns, or between two actions of a turn.

use std::fmt;

use super::line::{
    Breach, Deadlines, Heard, Id, ModelFailure, ModelLineage, ModelSuccessor, Office, Word,
};
use super::setting::Setting;
use crate::lifecycle::machine::{Action, Event, State, step};

/// The event that a simulated process handles in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// The process reads a message from another process of the simulated service.
    Hears(Heard),
    /// The process receives a signal that asks for a reload, a stop or a cut.
    Signal(Event),
    /// An event inside the process: its accept loops run, a deadline has passed, or its last
    /// connection has ended.
    Own(Event),
    /// The process cannot start to serve clients. It reports this failure to its predecessor, and
    /// ends.
    Fails,
    /// SIGKILL kills the process.
    Crash,
}

/// One turn of a simulated process: an event and the actions that follow. If `dies_after` is
/// `Some(n)`, SIGKILL kills the process after `n` actions.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    pub(super) of: Id,
    pub(super) cause: Cause,
    pub(super) dies_after: Option<usize>,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {:?}", self.of, self.cause)?;
        self.dies_after.map_or(Ok(()), |count| write!(f, ", killed after {count} actions"))
    }
}

impl ModelLineage {
    /// Returns every turn that could come next in the simulation, for all living processes.
    pub(super) fn turns(&self, setting: &Setting) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (of, _) in self.living() {
            for cause in self.causes(of) {
                turns.push(Turn { of, cause, dies_after: None });
                if self.left.crashes > 0 {
                    let counts = self.fatal_counts(setting, of, cause).into_iter();
                    turns.extend(counts.map(|count| Turn { of, cause, dies_after: Some(count) }));
                }
            }
        }
        turns
    }

    /// Returns every event that could make process `id` act next.
    fn causes(&self, id: Id) -> Vec<Cause> {
        let process = &self.processes[id];
        let mut causes = Vec::new();
        let starting = matches!(process.state, State::Starting { .. });
        if starting && process.parent.is_some() {
            causes.push(Cause::Fails);
        }
        if self.left.crashes > 0 {
            causes.push(Cause::Crash);
        }
        if self.awaits_former_successor(id) {
            causes.retain(|cause| *cause == Cause::Crash);
            return causes;
        }
        let word = self.next_word(id);
        causes.extend(word.map(Cause::Hears));
        let Deadlines { ready, bake, drain } = process.deadlines;
        let drains = matches!(process.state, State::Retiring { .. } | State::Stopping);
        let signals = [
            (self.left.hangups > 0, Event::ReloadRequested),
            (self.left.stops > 0, Event::Terminate),
            (self.left.cuts > 0, Event::CutNow),
        ];
        let own = [
            (starting, Event::Live),
            (ready, Event::SuccessorLost),
            (bake, Event::BakeOver),
            (drain && word.is_none(), Event::DrainExpired),
            (drains && word.is_none() && !self.is_needed(id), Event::Drained),
        ];
        let may = |(may, event): (bool, Event)| may.then_some(event);
        causes.extend(signals.into_iter().filter_map(may).map(Cause::Signal));
        causes.extend(own.into_iter().filter_map(may).map(Cause::Own));
        causes
    }

    /// Returns the state of the simulated service after `turn`.
    pub(super) fn after(&self, setting: &Setting, turn: Turn) -> Self {
        let mut line = self.clone();
        let Turn { of, cause, dies_after } = turn;
        let actions = line.meet(setting, of, cause);
        let is_active = line.processes[of].office == Office::Active;
        if cause == Cause::Own(Event::Drained) && is_active && !line.open_channels(of).is_empty() {
            line.breach = Some(Breach::LeftBehind);
        }
        // A generation that rolled back a handoff must not end with the last sockets. Leave out one
        // case: if its predecessor stops while the successor starts, the predecessor closes its
        // sockets.
        let parent = line.processes[of].parent.map(|parent| line.processes[parent].state);
        let has_drained = cause == Cause::Own(Event::Drained);
        if has_drained
            && self.processes[of].state == State::Stopping
            && parent != Some(State::Stopping)
        {
            line.leave_listeners(setting, of);
        }
        for action in &actions[..dies_after.unwrap_or(actions.len())] {
            line.perform(setting, of, *action);
        }
        if dies_after.is_some() || cause == Cause::Crash {
            line.left.crashes -= 1;
            line.die(of);
        }
        if cause == Cause::Fails {
            line.tell_predecessor(of, Word::Failed);
            line.die(of);
        }
        // Do not check the channel of a released successor: a process keeps it until it has read
        // the end of the channel a second time.
        let is_released = line.processes[of].successor.is_some_and(|successor| successor.released);
        let heard_the_end =
            cause == Cause::Hears(Heard::Successor(Word::End)) && line.processes[of].alive;
        if heard_the_end && !is_released && line.next_word(of).map(Cause::Hears) == Some(cause) {
            line.breach = Some(Breach::BusyLoop);
        }
        line
    }

    /// Returns the points in a turn at which to test a crash, each as the number of actions before
    /// it. Leaves out points where a crash has the same effect as a crash before or after the turn.
    fn fatal_counts(&self, setting: &Setting, of: Id, cause: Cause) -> Vec<usize> {
        let speaks = |action: &Action| match action {
            Action::TellReady
            | Action::TellRollback
            | Action::BecomeActive
            | Action::StartSuccessor
            | Action::Commit(_)
            | Action::DropSuccessor
            | Action::ForgetSuccessor
            | Action::ServeBacklogs
            | Action::LeaveListeners
            | Action::ReleaseOlder
            | Action::Resign
            | Action::StopSuccessor
            | Action::TellStopping
            | Action::Cut => true,
            Action::NotifyReady
            | Action::StartBake
            | Action::StopAccepting
            | Action::CloseListeners
            | Action::Drain
            | Action::DrainUncarried
            | Action::Resume
            | Action::Exit => false,
        };
        let actions = self.clone().meet(setting, of, cause);
        (1..actions.len())
            .filter(|&count| speaks(&actions[count - 1]) && actions[count..].iter().any(speaks))
            .collect()
    }

    /// Passes the event `cause` to the state machine of process `of`. Sets the new state of the
    /// process, and returns the actions to perform.
    fn meet(&mut self, setting: &Setting, of: Id, cause: Cause) -> Vec<Action> {
        let event = match cause {
            Cause::Crash | Cause::Fails => None,
            Cause::Hears(Heard::Predecessor(word)) => self.hear_predecessor(of, word),
            Cause::Hears(Heard::Successor(word)) => self.hear_successor(setting, of, word),
            Cause::Signal(event) => {
                let left = if event == Event::ReloadRequested {
                    &mut self.left.hangups
                } else if event == Event::CutNow {
                    &mut self.left.cuts
                } else {
                    &mut self.left.stops
                };
                *left -= 1;
                Some(event)
            }
            Cause::Own(event) => {
                let process = &mut self.processes[of];
                process.accepts |= event == Event::Live;
                if event == Event::SuccessorLost {
                    process.failure = Some(ModelFailure::Other);
                }
                Some(event)
            }
        };
        let Some(event) = event else { return Vec::new() };
        let process = &mut self.processes[of];
        process.told |= matches!(event, Event::Terminate | Event::CutNow | Event::ServiceStopping);
        let (state, actions) = step(process.state, event);
        process.state = state;
        actions
    }

    fn hear_predecessor(&mut self, id: Id, word: Word) -> Option<Event> {
        let process = &mut self.processes[id];
        process.down.pop_front();
        process.predecessor?;
        match word {
            Word::Committed(commit) => {
                process.predecessor = None;
                Some(Event::Committed(commit))
            }
            Word::Stop => Some(Event::Terminate),
            Word::End => {
                process.predecessor = None;
                process.older.retain(|channel| *channel != id);
                Some(Event::PredecessorLost)
            }
            Word::RolledBack => Some(Event::RollbackConfirmed),
            Word::Ready | Word::Failed | Word::Rollback | Word::Stopping | Word::Cut => None,
        }
    }

    fn hear_successor(&mut self, setting: &Setting, id: Id, word: Word) -> Option<Event> {
        let ModelSuccessor { id: successor, released, .. } = self.processes[id].successor?;
        self.processes[successor].up.pop_front();
        if released {
            if word == Word::End {
                self.processes[id].successor = None;
                self.forget_the_unheard();
            }
            return (word == Word::Cut).then_some(Event::CutNow);
        }
        let failure = match word {
            Word::Ready => {
                self.processes[id].successor.as_mut()?.ready = true;
                return Some(Event::SuccessorReady);
            }
            Word::Stopping => return Some(Event::ServiceStopping),
            Word::Cut => return Some(Event::CutNow),
            Word::Rollback => ModelFailure::ToldToStop,
            Word::Failed | Word::End => ModelFailure::Other,
            Word::Committed(_) | Word::RolledBack | Word::Stop => return None,
        };
        let process = &mut self.processes[id];
        if matches!(process.state, State::Retiring { .. }) && setting.supervised {
            return Some(Event::ServiceStopping);
        }
        process.failure = Some(failure);
        Some(if failure == ModelFailure::ToldToStop {
            Event::SuccessorRolledBack
        } else {
            Event::SuccessorLost
        })
    }
}
