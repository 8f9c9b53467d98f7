//! Holds the processes of a line and the channels between them, as `handoff` has them.
//!
//! A channel is named after the process that it was made for. Its far end is its parent's until
//! that lets go; its near end that process hands on to all that are born after it. Words come in
//! order, and the end of a channel after them, once nobody holds the other end.

use std::collections::VecDeque;

use crate::lifecycle::machine::{Birth, Commit, State};

/// A process, by the order of birth. Not the ordinal: a successor that fails and the next one share
/// that.
pub(super) type Id = usize;

/// All processes that ever lived, and what they have left behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    pub(super) processes: Vec<Process>,
    /// Whom the pid file names.
    pub(super) pid_file: Option<Id>,
    /// Whom the service manager takes for the main process.
    pub(super) main: Option<Id>,
    /// What may still befall the line.
    pub(super) left: Fates,
    /// What no driver could bear, if it has happened.
    pub(super) breach: Option<Breach>,
}

/// How often what comes from outside may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fates {
    /// SIGHUP.
    pub(super) hangups: u8,
    /// SIGTERM.
    pub(super) stops: u8,
    /// SIGQUIT.
    pub(super) cuts: u8,
    /// SIGKILL.
    pub(super) crashes: u8,
}

/// A line's surroundings.
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
    /// Whether connections are accepted, by what the actions did and not by what the state says.
    pub(super) accepts: bool,
    /// Whether it was told to stop.
    pub(super) told: bool,
    pub(super) office: Office,
    pub(super) deadlines: Deadlines,
    /// How the handoff to it ended, by its predecessor's account.
    pub(super) outcome: Option<Outcome>,
    /// Who started it, and holds the other end of its channel unless it has let go.
    pub(super) parent: Option<Id>,
    /// Who it waits for to retire, until that has said so or is lost.
    pub(super) predecessor: Option<Id>,
    /// The channels to older generations of which it holds the near end, the oldest first. A
    /// channel is named after the process that it was made for.
    pub(super) older: Vec<Id>,
    pub(super) successor: Option<Successor>,
    pub(super) failure: Option<Failure>,
    /// Unread words of the predecessor, and to it: its own and those of all that hold a copy of its
    /// channel.
    pub(super) down: VecDeque<Word>,
    pub(super) up: VecDeque<Word>,
}

/// Whether a process has the line: it was the last to take it, by what the actions did and not by
/// what the state says.
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
    /// It had taken over, and was lost.
    TakenBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Successor {
    pub(super) id: Id,
    pub(super) ready: bool,
    /// What becomes of it matters no more; but it may say that there are too many.
    pub(super) released: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Failure {
    ToldToStop,
    Other,
}

/// What is said on a channel; the end of it is heard after all words.
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

/// A word, by who it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Heard {
    /// The predecessor.
    Predecessor(Word),
    /// The successor, or one after it.
    Successor(Word),
}

/// What a step of the machine must never lead a driver into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Breach {
    /// A handoff that has ended, ended again.
    SecondOutcome,
    /// A generation that nobody told to stop ended, and nobody is left after it.
    Desertion,
    /// A head that was told to stop ended by itself, and generations before it live.
    LeftBehind,
    /// The end of a channel was heard and the channel kept: it would be heard for ever.
    BusyLoop,
    /// A successor was born while a word to its predecessor was unread; it would read it, for it
    /// has a copy of the channel.
    WordForTheWrongReader,
    /// A successor was started while there was one.
    TwoSuccessors,
    /// An action that is about a successor was asked for, and there is none.
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

    /// Whether `channel` leads to somebody who listens.
    fn is_open(&self, channel: Id) -> bool {
        let Some(parent) = self.processes[channel].parent else { return false };
        let parent = &self.processes[parent];
        parent.alive && parent.successor.is_some_and(|successor| successor.id == channel)
    }

    /// Who can speak on `channel`.
    pub(super) fn holders(&self, channel: Id) -> impl Iterator<Item = &Process> {
        self.living()
            .map(|(_, process)| process)
            .filter(move |process| process.older.contains(&channel))
    }

    /// What `id` hears next from its neighbours.
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

    /// Ends `id`. What only it could read, say or tell of is gone, so that lines with the same
    /// future are the same.
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

    /// Empties the channels at whose other end nobody is left.
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

    /// Whether a process that has no connections any more is still needed: for a successor that was
    /// told to stop, or, as the head that is told to stop, for those before it.
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
