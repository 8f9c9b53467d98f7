//! Explores every interleaving of three and more generations of `step`, and holds the promise in
//! every state reached.
//!
//! A line begins with one process. Three hangups, two SIGTERMs, a SIGQUIT and two SIGKILLs may meet
//! any living process at any instant; three hangups make up to four processes. A successor may fail
//! or hang, a deadline pass, a drain end, whenever it can. That is some 58 000 states without a
//! service manager and 36 000 with one, up to 24 turns deep. A fourth pending makes it 520 000 and
//! 260 000, some ten seconds: `the_promise_holds_for_longer`. A state in which the promise is
//! broken is reported with the shortest way there.
//!
//! What this is worth was tried by breaking `step` on purpose. Found, and by what:
//!
//! | broken | found by |
//! |---|---|
//! | Retiring + Terminate: on_death stays possible | I8 |
//! | Probation + PendingReload: starts a successor at once | no driver is led astray |
//! | Baking + SuccessorLost: retires | I1 |
//! | Probation + Terminate: tells no rollback | who bakes has a successor on probation |
//! | Serving + Terminate, Stopping + Committed (Stay), Retiring + SuccessorRolledBack: do not tell the older ones | I1 |
//! | Stopping + Committed: does not let go; Retiring + SuccessorLost, told to stop: does not leave the line | I1 |
//! | HandingOff + SuccessorLost: does not drop it; Baking + Terminate, + BakeOver: no commit | I6 |
//! | Stopping + PendingReload: hands off | I2 |
//! | a remembered pending is never forgotten | I7 |
//! | Probation, Starting + PredecessorLost: ignored | who is on probation has a predecessor that bakes |
//! | a recalled generation, or an orphan, does not take the line | the pid file names the head |
//!
//! Not in it: descriptors and connections; messages of another version; garbage; a signal that is
//! lost because its process has no handler yet; a service manager that refuses the main process
//! that it is told of.

mod line;
mod turn;

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use self::line::{Breach, Deadlines, Fates, Heard, Id, Line, Outcome, Process, Setting, Word};
use self::turn::Turn;
use super::{OnSuccessorDeath, State};

const FATES: Fates = Fates { hangups: 3, stops: 2, cuts: 1, crashes: 2 };

#[test]
fn the_promise_holds() {
    explore(Setting { supervised: false, generations: 3, fates: FATES });
}

#[test]
fn the_promise_holds_when_the_oldest_are_cut_short() {
    explore(Setting { supervised: false, generations: 2, fates: Fates { crashes: 1, ..FATES } });
}

#[test]
fn the_promise_holds_under_a_service_manager() {
    explore(Setting { supervised: true, generations: 3, fates: FATES });
}

#[test]
fn the_promise_holds_for_longer() {
    for supervised in [false, true] {
        explore(Setting { supervised, generations: 3, fates: Fates { hangups: 4, ..FATES } });
    }
}

/// A claim about a line in its setting.
type Claim = (&'static str, fn(&Setting, &Line) -> bool);

/// What holds in every state.
const ALWAYS: &[Claim] = &[
    ("I1: when all is quiet, somebody accepts, or the line was ended", |setting, line| {
        !line.is_quiet() || line.accepts() || line.is_over(setting)
    }),
    ("I1: without a crash or a stop, somebody accepts at every instant", |setting, line| {
        line.accepts()
            || !line.was_up()
            || line.is_hurt(setting)
            || line.left.stops < setting.fates.stops
    }),
    ("I1: a generation that nobody told to stop ends only when somebody follows it", |_, line| {
        line.breach != Some(Breach::Desertion)
    }),
    ("I2: at most one process is not ready yet", |_, line| {
        line.living().filter(|(_, process)| process.is_starting()).count() <= 1
    }),
    ("I2: whose successor has failed accepts, having never stopped", |_, line| {
        line.living().all(|(_, process)| process.accepts == process.state.accepts())
    }),
    ("I6: every wait has its deadline, and only that", |_, line| {
        line.living().all(|(_, process)| process.has_its_deadline())
    }),
    ("I7: a handoff ends once", |_, line| line.breach != Some(Breach::SecondOutcome)),
    ("I7: a handoff ends, unless who began it does", |_, line| {
        line.processes.iter().all(|process| line.is_settled(process))
    }),
    ("I7: no pending starts two handoffs", |setting, line| {
        line.processes.len() <= 1 + usize::from(setting.fates.hangups - line.left.hangups)
    }),
    ("I8: who was told to stop does not accept, and has a deadline to end by", |_, line| {
        line.living().filter(|(_, process)| process.told).all(|(_, process)| process.only_ends())
    }),
    ("who stops as the head outlives those before it, unless its time is over", |_, line| {
        line.breach != Some(Breach::LeftBehind)
    }),
    ("one head at most", |_, line| !line.is_quiet() || line.heads().count() <= 1),
    (
        "who is on probation has a predecessor that bakes, and who bakes a successor on probation",
        |_, line| {
            !line.is_quiet() || line.living().all(|(_, process)| line.is_vouched_for(process))
        },
    ),
    ("the pid file names the head", |_, line| {
        !line.is_quiet() || line.heads().all(|head| line.pid_file == Some(head))
    }),
    ("the service manager's main process, while it lives, is the head", |setting, line| {
        !setting.supervised || !line.is_quiet() || line.heads().all(|head| line.is_main(head))
    }),
    ("no driver is led astray", |_, line| line.breach.is_none()),
];

/// What holds in some state: that the above is about something.
const SOMETIMES: &[Claim] = &[
    ("three generations live", |_, line| line.living().count() == 3),
    ("an orphan becomes the head", |_, line| {
        line.heads().any(|head| head > 0 && line.processes[head].outcome.is_none())
    }),
    ("a commit crosses a rollback", |_, line| {
        line.living().any(|(id, process)| {
            process.told
                && matches!(line.next_word(id), Some(Heard::Predecessor(Word::Committed(_))))
        })
    }),
    ("two wait to be recalled", |_, line| {
        line.living().filter(|(_, process)| process.waits_for_recall()).count() == 2
    }),
    ("a recalled generation hands off again", |setting, line| {
        setting.supervised || line.heads().any(|head| line.has_recalled(head))
    }),
];

/// Visits every state once, those that fewer turns lead to first.
fn explore(setting: Setting) {
    let fingerprint = |line: &Line| {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        hasher.finish()
    };
    let first = Line::first(&setting);
    let mut known = HashSet::from([fingerprint(&first)]);
    // Every state that was reached, by the place of the one before it, and the turn between them.
    let mut ways: Vec<(usize, Option<Turn>)> = vec![(0, None)];
    let mut left = VecDeque::from([(0, first)]);
    let mut unseen = SOMETIMES.to_vec();
    while let Some((place, line)) = left.pop_front() {
        for (claim, holds) in ALWAYS {
            assert!(holds(&setting, &line), "{claim}: not after\n{}\n{line:#?}", way(&ways, place));
        }
        unseen.retain(|(_, holds)| !holds(&setting, &line));
        for turn in line.turns(&setting) {
            let next = line.after(&setting, turn);
            if known.insert(fingerprint(&next)) {
                left.push_back((ways.len(), next));
                ways.push((place, Some(turn)));
            }
        }
    }
    let unseen: Vec<_> = unseen.iter().map(|(claim, _)| claim).collect();
    assert!(unseen.is_empty(), "in none of {} states: {unseen:?}", ways.len());
}

/// The turns that lead to the state at `place`, one a line.
fn way(ways: &[(usize, Option<Turn>)], mut place: usize) -> String {
    let mut turns = VecDeque::new();
    while let (before, Some(turn)) = ways[place] {
        turns.push_front(format!("  {turn:?}\n"));
        place = before;
    }
    turns.into_iter().collect()
}

impl Line {
    /// Whether nothing is under way: no word is unread, and nobody is being born.
    fn is_quiet(&self) -> bool {
        self.living().all(|(id, process)| !process.is_starting() && self.next_word(id).is_none())
    }

    fn accepts(&self) -> bool {
        self.living().any(|(_, process)| process.accepts)
    }

    fn was_up(&self) -> bool {
        self.main.is_some()
    }

    /// Whether a process was ended that was not asked to end in order.
    fn is_hurt(&self, setting: &Setting) -> bool {
        self.left.crashes < setting.fates.crashes || self.left.cuts < setting.fates.cuts
    }

    /// Whether nobody is left who should accept: all were told to stop, or a service manager is
    /// ending the service, as it does when the main process ends.
    fn is_over(&self, setting: &Setting) -> bool {
        let main_is_gone =
            self.main.is_none_or(|main| !self.processes[main].alive || self.processes[main].told);
        !self.was_up()
            || setting.supervised && main_is_gone
            || self.living().all(|(_, process)| process.told)
    }

    /// Those who serve and are not on probation.
    fn heads(&self) -> impl Iterator<Item = Id> {
        let head = |state| {
            matches!(state, State::Serving | State::HandingOff { .. } | State::Baking { .. })
        };
        self.living().filter(move |(_, process)| head(process.state)).map(|(id, _)| id)
    }

    fn is_main(&self, id: Id) -> bool {
        self.main.is_none_or(|main| main == id || !self.processes[main].alive)
    }

    fn is_vouched_for(&self, process: &Process) -> bool {
        let state_of = |id: Id| self.processes[id].state;
        match process.state {
            State::Probation { .. } => {
                process.parent.is_some_and(|id| matches!(state_of(id), State::Baking { .. }))
            }
            State::HandingOff { .. } | State::Baking { .. } => process
                .successor
                .is_some_and(|after| matches!(state_of(after.id), State::Probation { .. })),
            State::Starting { .. }
            | State::Serving
            | State::Retiring { .. }
            | State::Stopping
            | State::Stopped => true,
        }
    }

    /// Whether the handoff to `process` has ended, is under way, or is nobody's any more.
    fn is_settled(&self, process: &Process) -> bool {
        let Some(parent) = process.parent.map(|parent| &self.processes[parent]) else {
            return true;
        };
        let under_way = matches!(parent.state, State::HandingOff { .. } | State::Baking { .. });
        process.outcome.is_some() || under_way || parent.told || !parent.alive
    }

    /// Whether `head` had retired once, and hands off again.
    fn has_recalled(&self, head: Id) -> bool {
        let taken_back =
            |heir: &Process| heir.parent == Some(head) && heir.outcome == Some(Outcome::TakenBack);
        self.processes[head].successor.is_some() && self.processes.iter().any(taken_back)
    }
}

impl Process {
    fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    /// Whether it will accept again when nobody is left after it.
    fn waits_for_recall(&self) -> bool {
        matches!(self.state, State::Retiring { on_death: OnSuccessorDeath::Resume })
    }

    fn has_its_deadline(&self) -> bool {
        let its_own = match self.state {
            State::HandingOff { .. } => Deadlines { ready: true, ..Deadlines::default() },
            State::Baking { .. } => Deadlines { bake: true, ..Deadlines::default() },
            State::Retiring { .. } | State::Stopping => {
                Deadlines { drain: true, ..Deadlines::default() }
            }
            State::Starting { .. } | State::Probation { .. } | State::Serving | State::Stopped => {
                Deadlines::default()
            }
        };
        self.deadlines == its_own
    }

    fn only_ends(&self) -> bool {
        let ends = matches!(
            self.state,
            State::Stopping | State::Retiring { on_death: OnSuccessorDeath::Stay }
        );
        ends && !self.accepts && self.deadlines.drain
    }
}
