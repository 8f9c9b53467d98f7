//! The simulation of the actions of the state machine, for the lifecycle test. Each action changes
//! the simulated processes as it would change real ones.

use super::line::{
    Breach, Deadlines, Id, ModelFailure, ModelLineage, ModelOutcome, ModelPaths, ModelSuccessor,
    Office, Sockets, Word,
};
use super::setting::Setting;
use crate::lifecycle::machine::{Action, State};

impl ModelLineage {
    /// Performs one action of the simulated process `id`, with the effect that it would have in a
    /// real process.
    pub(super) fn perform(&mut self, setting: &Setting, id: Id, action: Action) {
        let process = &mut self.processes[id];
        match action {
            Action::TellReady => self.tell_predecessor(id, Word::Ready),
            Action::TellRollback => self.tell_predecessor(id, Word::Rollback),
            Action::BecomeActive => {
                self.pid_file = Some(id);
                process.office = Office::Active;
                let older = self.open_channels(id);
                let excess = older.len().saturating_sub(setting.generations - 1);
                older[..excess]
                    .iter()
                    .for_each(|channel| self.processes[*channel].up.push_back(Word::Cut));
            }
            Action::NotifyReady => self.main = Some(id),
            Action::StartSuccessor => {
                process.deadlines.ready = true;
                self.give_birth(id);
            }
            Action::StartBake => {
                process.deadlines = Deadlines { bake: true, ..Deadlines::default() }
            }
            Action::ReleaseOlder => {
                let is_over = self.living().all(|(_, process)| process.state == State::Stopping);
                if self.paths == ModelPaths::Exist && is_over {
                    self.paths = ModelPaths::Left;
                }
                self.let_go(id);
            }
            Action::Resign => {
                if self.open_channels(id).is_empty() {
                    self.perform(setting, id, Action::CloseListeners);
                } else {
                    self.let_go(id);
                }
            }
            Action::ForgetSuccessor => {
                if let Some(successor) = &mut process.successor {
                    successor.released = true;
                }
            }
            Action::Commit(commit) => {
                process.deadlines.bake = false;
                process.office = Office::None;
                let Some(ModelSuccessor { id: successor, .. }) = process.successor else {
                    self.breach = Some(Breach::NoSuccessor);
                    return;
                };
                self.pid_file = Some(successor);
                self.main = Some(successor);
                self.settle(successor, ModelOutcome::Committed);
                self.tell_successor(successor, Word::Committed(commit));
            }
            Action::DropSuccessor => {
                process.deadlines =
                    Deadlines { drain: process.deadlines.drain, ..Deadlines::default() };
                let Some(failure) = process.failure.take() else { return };
                let Some(ModelSuccessor { id: successor, .. }) = process.successor.take() else {
                    return;
                };
                self.settle(successor, ModelOutcome::Dropped);
                match failure {
                    ModelFailure::ToldToStop => {
                        let listens = self.processes[successor].predecessor.is_some();
                        if listens && self.processes[id].accepts {
                            self.tell_successor(successor, Word::RolledBack);
                        }
                        self.forget_the_unheard();
                    }
                    ModelFailure::Other => self.die(successor),
                }
            }
            Action::StopSuccessor => {
                process.deadlines.ready = false;
                match process.successor {
                    Some(ModelSuccessor { id: successor, .. }) => {
                        self.tell_successor(successor, Word::Stop)
                    }
                    None => self.breach = Some(Breach::NoSuccessor),
                }
            }
            Action::StopAccepting => process.accepts = false,
            // Do nothing: this action affects only connections, which the simulation leaves out.
            Action::DrainUncarried => {}
            Action::ServeBacklogs => process.sockets = Sockets::Closed,
            Action::LeaveListeners => self.leave_listeners(setting, id),
            Action::CloseListeners => {
                process.accepts = false;
                process.sockets = Sockets::Closed;
                let successor = process.successor.map(|successor| successor.id);
                self.pid_file.take_if(|named| *named == id || Some(*named) == successor);
                self.paths = ModelPaths::Removed;
            }
            Action::TellStopping => {
                for channel in self.open_channels(id) {
                    self.processes[channel].up.push_back(Word::Stopping);
                }
            }
            Action::Drain => process.deadlines.drain = true,
            Action::Resume => {
                process.deadlines.drain = false;
                process.accepts = true;
            }
            Action::Cut if process.office == Office::Active => {
                for channel in self.open_channels(id) {
                    self.processes[channel].up.push_back(Word::Cut);
                }
            }
            Action::Cut => {}
            Action::Exit => self.exit(id),
        }
    }

    /// Closes the listening sockets of process `id` without serving the clients in the backlogs.
    pub(super) fn leave_listeners(&mut self, setting: &Setting, id: Id) {
        let held = std::mem::replace(&mut self.processes[id].sockets, Sockets::Closed);
        let is_held = self.living().any(|(_, process)| process.sockets == Sockets::Held);
        let is_last = held == Sockets::Held && !is_held;
        if is_last && self.was_up() && !self.is_hurt(setting) {
            self.breach = Some(Breach::BacklogLost);
        }
    }

    fn exit(&mut self, id: Id) {
        let process = &self.processes[id];
        let after = process.successor.map(|successor| successor.id);
        if !process.told && after.is_none_or(|channel| self.holders(channel).next().is_none()) {
            self.breach = Some(Breach::Desertion);
        }
        if let Some(ModelSuccessor { id: successor, ready: false, .. }) = process.successor {
            self.die(successor);
        }
        self.die(id);
    }
}
