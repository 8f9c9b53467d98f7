//! The model of a lineage: its processes, and the channels between them as `handoff` has them.
//!
//! A channel is named after the process that it was created for. The parent of that process holds
//! the far end until it releases it. The process holds the near end, and every later process
//! inherits a copy. Messages arrive in order. The end of a channel follows them, once no process
//! holds the other end.

use std::collections::VecDeque;

use crate::lifecycle::machine::{Birth, Commit, State};

/// A process, numbered in the order of creation. It differs from the generation number, because a
/// failed successor and the next one share a generation number.
pub(super) type Id = usize;

/// All processes that ever lived, and their effects on the outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) processes: Vec<Process>,
    /// The process that the pid file names.
    pub(super) pid_file: Option<Id>,
    /// The process that the service manager considers the main process.
    pub(super) main: Option<Id>,
    /// The outside events that may still happen.
    pub(super) left: Fates,
    /// An impossible situation that has occurred, if any.
    pub(super) breach: Option<Breach>,
}

/// How many times each outside event may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fates {
    /// SIGHUP: a reload request.
    pub(super) hangups: u8,
    /// SIGTERM.
    pub(super) stops: u8,
    /// SIGQUIT.
    pub(super) cuts: u8,
    /// SIGKILL.
    pub(super) crashes: u8,
}

/// The surroundings of a lineage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) supervised: bool,
    /// `max_generations`.
    pub(super) generations: usize,
    pub(super) fates: Fates,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) state: State,
    pub(super) alive: bool,
    /// Whether the process accepts connections, according to its actions (not its state).
    pub(super) accepts: bool,
    /// Whether the process was told to stop.
    pub(super) told: bool,
    pub(super) office: Office,
    pub(super) deadlines: Deadlines,
    /// How the handoff to this process ended, as its predecessor sees it.
    pub(super) outcome: Option<Outcome>,
    /// The process that started this one. It holds the other end of the channel until it releases
    /// it.
    pub(super) parent: Option<Id>,
    /// The predecessor, until it has retired or is lost.
    pub(super) predecessor: Option<Id>,
    /// The channels to older generations whose near end this process holds, oldest first.
    pub(super) older: Vec<Id>,
    pub(super) successor: Option<Successor>,
    pub(super) failure: Option<Failure>,
    /// Unread messages on the channel of this process. `down` has those of the predecessor. `up`
    /// has those to the predecessor, from this process and from all later holders of the channel.
    pub(super) down: VecDeque<Word>,
    pub(super) up: VecDeque<Word>,
}

/// Whether a process has the active role, according to its actions (not its state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Office {
    Head,
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Deadlines {
    pub(super) ready: bool,
    pub(super) bake: bool,
    pub(super) drain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Committed,
    Dropped,
    /// The successor had taken over, and was lost.
    TakenBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Successor {
    pub(super) id: Id,
    pub(super) ready: bool,
    /// Whether the successor has been released: its fate no longer matters, but it may still send a
    /// cut.
    pub(super) released: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Failure {
    ToldToStop,
    Other,
}

/// A message on a channel. `End` is the end of the channel, after all messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Word {
    Committed(Commit),
    Stop,
    Ready,
    Failed,
    Rollback,
    Stopping,
    Cut,
    End,
}

/// A received message, by its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Heard {
    /// From the predecessor.
    Predecessor(Word),
    /// From the successor, or from a later generation.
    Successor(Word),
}

/// A situation that the state machine must never cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Breach {
    /// A handoff ended twice.
    SecondOutcome,
    /// A generation that was not told to stop ended, and no newer one lives.
    Desertion,
    /// An active generation that was told to stop ended by itself before the older generations.
    LeftBehind,
    /// A process received the end of a channel and kept the channel: it would receive the end
    /// forever.
    BusyLoop,
    /// A successor was started while a message to its predecessor was unread. The successor has a
    /// copy of that channel, and would read the message.
    WordForTheWrongReader,
    /// A second successor was started while the first one existed.
    TwoSuccessors,
    /// An action needed a successor, and none existed.
    NoSuccessor,
}

impl Line {
    pub(super) fn first(setting: &Setting) -> Self {
        let first = Process::born(Birth::First, None, Vec::new());
        Self {
            processes: vec![first],
            pid_file: None,
            main: None,
            left: setting.fates,
            breach: None,
        }
    }

    pub(super) fn living(&self) -> impl Iterator<Item = (Id, &Process)> {
        self.processes.iter().enumerate().filter(|(_, process)| process.alive)
    }

    /// Returns whether the far end of `channel` is held by a living process.
    fn is_open(&self, channel: Id) -> bool {
        let Some(parent) = self.processes[channel].parent else { return false };
        let parent = &self.processes[parent];
        parent.alive && parent.successor.is_some_and(|successor| successor.id == channel)
    }

    /// Returns the processes that can send on `channel`.
    pub(super) fn holders(&self, channel: Id) -> impl Iterator<Item = &Process> {
        self.living()
            .map(|(_, process)| process)
            .filter(move |process| process.older.contains(&channel))
    }

    /// Returns the next message for `id` from its neighbours.
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
            .replace(Successor { id: channel, ready: false, released: false })
            .is_some()
        {
            self.breach = Some(Breach::TwoSuccessors);
        }
        let older = parent.older.iter().copied().chain([channel]).collect();
        self.processes.push(Process::born(Birth::Successor, Some(id), older));
    }

    /// Ends the process `id`. Erases everything that no longer affects the future, so that
    /// equivalent lineages are equal.
    pub(super) fn die(&mut self, id: Id) {
        let process = &mut self.processes[id];
        if !process.alive {
            return;
        }
        let Process { outcome, parent, .. } = *process;
        let up = std::mem::take(&mut process.up);
        let state = State::Stopped;
        *process = Process {
            alive: false,
            state,
            outcome,
            up,
            ..Process::born(Birth::First, parent, Vec::new())
        };
        for heir in self.processes.iter_mut().filter(|heir| heir.parent == Some(id)) {
            heir.outcome = None;
        }
        self.forget_the_unheard();
    }

    /// Clears the channels whose far end no process holds.
    pub(super) fn forget_the_unheard(&mut self) {
        for channel in 0..self.processes.len() {
            if !self.is_open(channel) {
                self.processes[channel].up.clear();
            }
        }
    }

    pub(super) fn settle(&mut self, successor: Id, outcome: Outcome) {
        let settled = &mut self.processes[successor].outcome;
        *settled = match (*settled, outcome) {
            (None, first) => Some(first),
            (Some(Outcome::Committed), Outcome::Dropped) => Some(Outcome::TakenBack),
            _ => {
                self.breach = Some(Breach::SecondOutcome);
                return;
            }
        };
    }

    pub(super) fn open_channels(&self, id: Id) -> Vec<Id> {
        self.processes[id].older.iter().copied().filter(|channel| self.is_open(*channel)).collect()
    }

    /// Returns whether a process without connections must continue to live. It waits for a
    /// successor that was told to stop. As the active generation that was told to stop, it waits
    /// for older generations.
    pub(super) fn is_needed(&self, id: Id) -> bool {
        let process = &self.processes[id];
        let awaits_successor = process.successor.is_some_and(|successor| !successor.ready);
        let others = process.office == Office::Head && !self.open_channels(id).is_empty();
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

impl Process {
    fn born(birth: Birth, parent: Option<Id>, older: Vec<Id>) -> Self {
        Self {
            state: State::born(birth),
            alive: true,
            accepts: false,
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
