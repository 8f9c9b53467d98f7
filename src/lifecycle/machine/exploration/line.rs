//! The simulated service of the lifecycle test: its processes, and the channels between them, which
//! behave like the channels in the module `handoff`.
//!
//! Each process except the first has a channel to its parent, the process that started it. The
//! channel has the same id as the child. The parent holds the far end until it releases the
//! channel. The child holds the near end, and every process that is started later inherits a copy
//! of the near end. Messages arrive in order. When no process holds one end any more, a reader at
//! the other end sees the end of the channel after the last message.

use std::collections::VecDeque;

use super::setting::{Setting, SignalBudget};
use crate::lifecycle::machine::{Birth, Commit, State};

/// The number of a process, in the order of creation. It differs from the generation number,
/// because a failed successor and the next successor have the same generation number.
pub(super) type Id = usize;

/// The state of the simulated service: all processes that ever lived, the contents of the pid file,
/// and the main process as the service manager sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelLineage {
    pub(super) processes: Vec<ModelProcess>,
    /// The process whose pid is in the pid file.
    pub(super) pid_file: Option<Id>,
    /// Whether the Unix socket paths of the listeners exist.
    pub(super) paths: ModelPaths,
    /// The process that the service manager considers the main process.
    pub(super) main: Option<Id>,
    /// How many more signals of each kind the test may send to the processes.
    pub(super) left: SignalBudget,
    /// The forbidden situation that has occurred, or `None` if none has.
    pub(super) breach: Option<Breach>,
}

/// Whether the Unix socket paths exist. The last process that ends must remove them.
///
/// The paths are `Left` in one case: a successor was told to stop, and its predecessor committed
/// the handoff and ended before it could read the rollback. The successor does not know whether the
/// predecessor has ended or accepts again, so it must not remove the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ModelPaths {
    Exist,
    Removed,
    Left,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelProcess {
    pub(super) state: State,
    pub(super) alive: bool,
    /// Whether the process accepts connections. The flag is not computed from `state`, so that the
    /// test can compare the two.
    pub(super) accepts: bool,
    pub(super) sockets: Sockets,
    /// Whether a signal or a message has told this process to stop.
    pub(super) told: bool,
    pub(super) office: Office,
    pub(super) deadlines: Deadlines,
    /// How the handoff to this process ended, as its predecessor recorded it. `None` while the
    /// handoff is in progress.
    pub(super) outcome: Option<ModelOutcome>,
    /// The process that started this one, or `None` for the first process.
    pub(super) parent: Option<Id>,
    /// The predecessor. `None` once it has committed the handoff or has died, or once this process
    /// has released the channel to it.
    pub(super) predecessor: Option<Id>,
    /// The channels through which this process can send messages to older generations, the oldest
    /// first.
    pub(super) older: Vec<Id>,
    pub(super) successor: Option<ModelSuccessor>,
    pub(super) failure: Option<ModelFailure>,
    /// The unread messages on the channel of this process. `down` holds messages from the
    /// predecessor. `up` holds messages to the predecessor, sent by this process or by later
    /// processes with a copy of the channel.
    pub(super) down: VecDeque<Word>,
    pub(super) up: VecDeque<Word>,
}

/// Whether a process holds the listening sockets. It may hold them without accepting connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sockets {
    Held,
    Closed,
}

/// Whether a process is the active generation. Only actions change this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Office {
    Active,
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Deadlines {
    pub(super) ready: bool,
    pub(super) bake: bool,
    pub(super) drain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ModelOutcome {
    Committed,
    Dropped,
    /// The predecessor committed the handoff, but accepts again because the successor failed
    /// afterwards.
    TakenBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelSuccessor {
    pub(super) id: Id,
    pub(super) ready: bool,
    /// Whether the predecessor has released the successor. If so, the predecessor ignores every
    /// message from the successor except a request to cut all connections.
    pub(super) released: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ModelFailure {
    ToldToStop,
    Other,
}

/// A message on a channel between two processes. `End` stands for the end of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Word {
    Committed(Commit),
    Stop,
    Ready,
    Failed,
    Rollback,
    RolledBack,
    Stopping,
    Cut,
    End,
}

/// A message that a process has received, and where the message came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Heard {
    /// The predecessor has sent the message.
    Predecessor(Word),
    /// The successor, or a process that inherited the successor's channel, has sent the message.
    Successor(Word),
}

/// A situation that the state machine must never cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Breach {
    /// The predecessor has recorded two outcomes for one handoff.
    SecondOutcome,
    /// A generation has ended although it was not told to stop and no newer generation was alive.
    Desertion,
    /// The active generation was told to stop, and has ended before the older generations and
    /// before its drain deadline.
    LeftBehind,
    /// A process has read the end of a channel but has kept the channel. It would read the end
    /// again and again, in an endless loop.
    BusyLoop,
    /// A process started a successor while it had an unread message. The successor inherits the
    /// same channel, so it could read the message first.
    WordForTheWrongReader,
    /// A process started a second successor while its first successor still existed.
    TwoSuccessors,
    /// The last process that held the listening sockets has closed them without serving the clients
    /// in the backlogs.
    BacklogLost,
    /// A process without a successor performed an action that needs a successor.
    NoSuccessor,
}

impl ModelLineage {
    pub(super) fn first(setting: &Setting) -> Self {
        let first = ModelProcess::born(Birth::First, None, Vec::new());
        Self {
            processes: vec![first],
            pid_file: None,
            paths: ModelPaths::Exist,
            main: None,
            left: setting.budget,
            breach: None,
        }
    }

    pub(super) fn living(&self) -> impl Iterator<Item = (Id, &ModelProcess)> {
        self.processes.iter().enumerate().filter(|(_, process)| process.alive)
    }

    /// Returns whether the parent still holds the far end of `channel`, so that it can read
    /// messages from the channel.
    fn is_open(&self, channel: Id) -> bool {
        let Some(parent) = self.processes[channel].parent else { return false };
        let parent = &self.processes[parent];
        parent.alive && parent.successor.is_some_and(|successor| successor.id == channel)
    }

    /// Returns the living processes that hold the near end of `channel` and can send messages to
    /// the parent.
    pub(super) fn holders(&self, channel: Id) -> impl Iterator<Item = &ModelProcess> {
        self.living()
            .map(|(_, process)| process)
            .filter(move |process| process.older.contains(&channel))
    }

    /// Returns the next unread message for process `id`, from its predecessor or its successor.
    pub(super) fn next_word(&self, id: Id) -> Option<Heard> {
        let process = &self.processes[id];
        if let Some(&word) = process.down.front() {
            return Some(Heard::Predecessor(word));
        }
        if process.predecessor.is_some() && !self.is_open(id) {
            return Some(Heard::Predecessor(Word::End));
        }
        let successor = process.successor?.id;
        let end = || self.holders(successor).next().is_none().then_some(Word::End);
        self.processes[successor].up.front().copied().or_else(end).map(Heard::Successor)
    }

    pub(super) fn give_birth(&mut self, id: Id) {
        let channel = self.processes.len();
        let parent = &mut self.processes[id];
        if !parent.down.is_empty() {
            self.breach = Some(Breach::WordForTheWrongReader);
        }
        if parent
            .successor
            .replace(ModelSuccessor { id: channel, ready: false, released: false })
            .is_some()
        {
            self.breach = Some(Breach::TwoSuccessors);
        }
        let older = parent.older.iter().copied().chain([channel]).collect();
        self.processes.push(ModelProcess::born(Birth::Successor, Some(id), older));
    }

    /// Ends the process `id`. Resets every field that has no effect any more. States that differ
    /// only in these fields then count as one state.
    pub(super) fn die(&mut self, id: Id) {
        let process = &mut self.processes[id];
        if !process.alive {
            return;
        }
        let ModelProcess { outcome, parent, .. } = *process;
        let up = std::mem::take(&mut process.up);
        let state = State::Stopped;
        *process = ModelProcess {
            alive: false,
            sockets: Sockets::Closed,
            state,
            outcome,
            up,
            ..ModelProcess::born(Birth::First, parent, Vec::new())
        };
        for heir in self.processes.iter_mut().filter(|heir| heir.parent == Some(id)) {
            heir.outcome = None;
        }
        self.forget_the_unheard();
    }

    /// Deletes messages to parents that no longer hold their end of the channel, because no process
    /// will read them.
    pub(super) fn forget_the_unheard(&mut self) {
        for channel in 0..self.processes.len() {
            if !self.is_open(channel) {
                self.processes[channel].up.clear();
            }
        }
    }

    pub(super) fn settle(&mut self, successor: Id, outcome: ModelOutcome) {
        let settled = &mut self.processes[successor].outcome;
        *settled = match (*settled, outcome) {
            (None, first) => Some(first),
            (Some(ModelOutcome::Committed), ModelOutcome::Dropped) => Some(ModelOutcome::TakenBack),
            _ => {
                self.breach = Some(Breach::SecondOutcome);
                return;
            }
        };
    }

    /// Returns whether process `id` waits until its former successor has read the confirmation of
    /// the rollback, and has closed its listening sockets.
    pub(super) fn awaits_former_successor(&self, id: Id) -> bool {
        self.living().any(|(_, process)| {
            process.parent == Some(id) && process.down.contains(&Word::RolledBack)
        })
    }

    pub(super) fn open_channels(&self, id: Id) -> Vec<Id> {
        self.processes[id].older.iter().copied().filter(|channel| self.is_open(*channel)).collect()
    }

    /// Returns whether a process that was told to stop must stay alive even if it has no
    /// connections. This is the case while its successor is not ready and has not ended yet. An
    /// active generation also stays alive until all older generations have ended.
    pub(super) fn is_needed(&self, id: Id) -> bool {
        let process = &self.processes[id];
        let awaits_successor = process.successor.is_some_and(|successor| !successor.ready);
        let others = process.office == Office::Active && !self.open_channels(id).is_empty();
        process.state == State::Stopping && (awaits_successor || others)
    }

    pub(super) fn let_go(&mut self, id: Id) {
        let process = &mut self.processes[id];
        process.older.clear();
        process.predecessor = None;
        process.down.clear();
        self.forget_the_unheard();
    }

    pub(super) fn tell_predecessor(&mut self, id: Id, word: Word) {
        if self.processes[id].predecessor.is_some() && self.is_open(id) {
            self.processes[id].up.push_back(word);
        }
    }

    pub(super) fn tell_successor(&mut self, successor: Id, word: Word) {
        if self.processes[successor].alive {
            self.processes[successor].down.push_back(word);
        }
    }
}

impl ModelProcess {
    fn born(birth: Birth, parent: Option<Id>, older: Vec<Id>) -> Self {
        Self {
            state: State::born(birth),
            alive: true,
            accepts: false,
            sockets: Sockets::Held,
            told: false,
            office: Office::None,
            deadlines: Deadlines::default(),
            outcome: None,
            parent,
            predecessor: parent.filter(|_| birth == Birth::Successor),
            older,
            successor: None,
            failure: None,
            down: VecDeque::new(),
            up: VecDeque::new(),
        }
    }
}
