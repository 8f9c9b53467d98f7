//! A test that simulates a service with several generations, and tries every possible order of
//! their events. In every state that it reaches, it checks that the service keeps its promises.
//!
//! The simulation begins with one process. Three reload requests, two SIGTERMs, a SIGQUIT and two
//! SIGKILLs may each reach any living process at any time. Three reload requests create up to four
//! processes. A successor may fail or hang, a deadline may pass, and a drain may end, whenever that
//! is possible. The test visits about 130 000 states without a service manager and 75 000 with
//! one. With a fourth reload request, it visits 1 300 000 and 630 000 states, which takes about
//! twenty seconds (see `the_promise_holds_for_longer`). If a state breaks a promise, the test
//! reports the shortest path to that state.
//!
//! To test the claims themselves, each fault in this table was put into the function `step`. The
//! right column names the claim that then failed:
//!
//! | fault | found by |
//! |---|---|
//! | Retiring + Terminate: `on_death` remains `Resume` | I8 |
//! | Probation + ReloadRequested: starts a successor at once | no impossible situation |
//! | Baking + SuccessorLost: retires | I1 |
//! | Probation + Terminate: does not report the rollback | probation and baking belong together |
//! | Serving + Terminate: does not tell the older generations | I1 |
//! | Stopping + Committed (`Stay`): does not tell the older generations | I1 |
//! | Retiring + SuccessorRolledBack: does not tell the older generations | I1 |
//! | Baking + CutNow, Probation + CutNow: exits before it has read all messages | I5 |
//! | Stopping + Committed: does not release the older generations | I1 |
//! | Retiring + SuccessorLost, told to stop: does not resign | I1 |
//! | HandingOff + SuccessorLost: does not drop the successor | I6 |
//! | Baking + Terminate, Baking + BakeOver: no commit | I6 |
//! | Stopping + ReloadRequested: hands off | I2 |
//! | Stopping + PredecessorLost: does not close the sockets | a rolled-back generation |
//! | a pending reload is never cleared | I7 |
//! | Probation, Starting + PredecessorLost: ignored | probation and baking belong together |
//! | a resumed generation, or an orphan, does not become active | the pid file |
//!
//! The simulation leaves out file descriptors and connections, messages of another version, and
//! invalid messages. It also leaves out signals that arrive before a process has installed its
//! signal handlers. Its service manager always accepts a new main process.

mod effect;
mod line;
mod setting;
mod turn;

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use self::line::{
    Breach, Deadlines, Heard, Id, ModelLineage, ModelOutcome, ModelPaths, ModelProcess, Sockets,
    Word,
};
use self::setting::{Setting, SignalBudget};
use self::turn::Turn;
use super::{OnSuccessorDeath, State};

const BUDGET: SignalBudget = SignalBudget { hangups: 3, stops: 2, cuts: 1, crashes: 2 };

#[test]
fn the_promise_holds() {
    explore(Setting { supervised: false, generations: 3, budget: BUDGET });
}

/// Lets at most two generations live at once, so that a handoff cuts the connections of an older
/// one.
#[test]
fn the_promise_holds_when_the_oldest_are_cut() {
    explore(Setting {
        supervised: false,
        generations: 2,
        budget: SignalBudget { crashes: 1, ..BUDGET },
    });
}

#[test]
fn the_promise_holds_under_a_service_manager() {
    explore(Setting { supervised: true, generations: 3, budget: BUDGET });
}

/// Simulates up to four reload requests, with and without a service manager. The other tests use at
/// most three requests.
#[test]
fn the_promise_holds_for_longer() {
    for supervised in [false, true] {
        explore(Setting {
            supervised,
            generations: 3,
            budget: SignalBudget { hangups: 4, ..BUDGET },
        });
    }
}

/// A claim about the simulated service: its text, and a function that returns whether it is true.
type Claim = (&'static str, fn(&Setting, &ModelLineage) -> bool);

/// The claims that must be true in every state that the test reaches.
const ALWAYS: &[Claim] = &[
    ("I1: in a quiet state a process accepts, or the lineage was ended", |setting, line| {
        !line.is_quiet() || line.accepts() || line.is_over(setting)
    }),
    ("I1: without a crash or a stop, a process accepts at every instant", |setting, line| {
        line.accepts()
            || !line.was_up()
            || line.is_hurt(setting)
            || line.left.stops < setting.budget.stops
    }),
    ("I1: a generation that was not told to stop ends only if a newer one lives", |_, line| {
        line.breach != Some(Breach::Desertion)
    }),
    ("I2: at most one process is not ready yet", |_, line| {
        line.living().filter(|(_, process)| process.is_starting()).count() <= 1
    }),
    ("I2: a process accepts exactly when its state says so", |_, line| {
        line.living().all(|(_, process)| process.accepts == process.state.accepts())
    }),
    ("I6: every state has exactly its own deadlines", |_, line| {
        line.living().all(|(_, process)| process.has_its_deadline())
    }),
    ("I7: a handoff ends at most once", |_, line| line.breach != Some(Breach::SecondOutcome)),
    ("I7: every handoff ends, unless its predecessor ends first", |_, line| {
        line.processes.iter().all(|process| line.is_settled(process))
    }),
    ("I7: no reload request starts two handoffs", |setting, line| {
        line.processes.len() <= 1 + usize::from(setting.budget.hangups - line.left.hangups)
    }),
    ("I8: a process told to stop does not accept, and has a drain deadline", |_, line| {
        line.living().filter(|(_, process)| process.told).all(|(_, process)| process.only_ends())
    }),
    ("a rolled-back generation soon holds no listening sockets", |_, line| {
        let keeps = |process: &ModelProcess| {
            process.state == State::Stopping && process.sockets == Sockets::Held
        };
        !line.is_quiet() || !line.living().any(|(_, process)| keeps(process))
    }),
    ("a stopping active generation ends last, unless its deadline passes", |_, line| {
        line.breach != Some(Breach::LeftBehind)
    }),
    ("at most one active generation", |_, line| {
        !line.is_quiet() || line.active_generations().count() <= 1
    }),
    ("a successor on probation has a baking predecessor, and the reverse", |_, line| {
        !line.is_quiet() || line.living().all(|(_, process)| line.is_vouched_for(process))
    }),
    ("the pid file names the active generation", |_, line| {
        !line.is_quiet() || line.active_generations().all(|id| line.pid_file == Some(id))
    }),
    ("I5: without a crash, up to four processes leave no path at the end", |setting, line| {
        line.paths != ModelPaths::Exist
            || line.processes.len() > 4
            || !line.has_ended_by_itself(setting)
    }),
    ("I5: without a crash or a cut, the paths exist while a process accepts", |setting, line| {
        let is_served = line.is_quiet() && line.accepts() && !line.is_hurt(setting);
        !is_served || line.paths == ModelPaths::Exist
    }),
    ("without a crash, two generations leave no pid file", |setting, line| {
        line.pid_file.is_none()
            || line.processes.len() > 2
            || line.paths == ModelPaths::Left
            || !line.has_ended_by_itself(setting)
    }),
    ("the living main process of the service manager is the active generation", |setting, line| {
        !setting.supervised
            || !line.is_quiet()
            || line.active_generations().all(|id| line.is_main(id))
    }),
    ("no driver reaches an impossible situation", |_, line| line.breach.is_none()),
];

/// The claims that must be true in at least one state. They show that the test also reaches rare
/// situations.
const SOMETIMES: &[Claim] = &[
    ("three generations live", |_, line| line.living().count() == 3),
    ("an orphan becomes active", |_, line| {
        line.active_generations().any(|id| id > 0 && line.processes[id].outcome.is_none())
    }),
    ("a commit crosses a rollback", |_, line| {
        line.living().any(|(id, process)| {
            process.told
                && matches!(line.next_word(id), Some(Heard::Predecessor(Word::Committed(_))))
        })
    }),
    ("two generations wait to accept again", |_, line| {
        line.living().filter(|(_, process)| process.waits_for_recall()).count() == 2
    }),
    ("a resumed generation hands off again", |setting, line| {
        setting.supervised || line.active_generations().any(|id| line.has_recalled(id))
    }),
];

/// Visits every reachable state of the model once, in breadth-first order, and checks all claims.
fn explore(setting: Setting) {
    let fingerprint = |line: &ModelLineage| {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        hasher.finish()
    };
    let first = ModelLineage::first(&setting);
    let mut known = HashSet::from([fingerprint(&first)]);
    // For every visited state, `ways` holds the index of the previous state, and the turn (event
    // and actions) that led from there.
    let mut ways: Vec<(usize, Option<Turn>)> = vec![(0, None)];
    let mut left = VecDeque::from([(0, first)]);
    let mut unseen = SOMETIMES.to_vec();
    while let Some((place, line)) = left.pop_front() {
        for (claim, holds) in ALWAYS {
            assert!(
                holds(&setting, &line),
                "{claim}: broken after\n{}\n{line:#?}",
                way(&ways, place)
            );
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
    assert!(unseen.is_empty(), "never true in {} states: {unseen:?}", ways.len());
}

/// Returns a text with the turns that lead from the first state to the state at index `place`, one
/// per line.
fn way(ways: &[(usize, Option<Turn>)], mut place: usize) -> String {
    let mut turns = VecDeque::new();
    while let (before, Some(turn)) = ways[place] {
        turns.push_front(format!("  {turn:?}\n"));
        place = before;
    }
    turns.into_iter().collect()
}

impl ModelLineage {
    /// Returns whether nothing is in progress: all messages have been read, and no process is
    /// starting.
    fn is_quiet(&self) -> bool {
        self.living().all(|(id, process)| !process.is_starting() && self.next_word(id).is_none())
    }

    fn accepts(&self) -> bool {
        self.living().any(|(_, process)| process.accepts)
    }

    pub(super) fn was_up(&self) -> bool {
        self.main.is_some()
    }

    /// Returns whether the test has killed a process, or has told a process to cut its connections.
    pub(super) fn is_hurt(&self, setting: &Setting) -> bool {
        self.left.crashes < setting.budget.crashes || self.left.cuts < setting.budget.cuts
    }

    /// Returns whether no process has to accept connections: the service is not up yet, or has
    /// ended. The service has ended if all processes were told to stop. A service manager also ends
    /// the service when the main process has ended or was told to stop.
    fn is_over(&self, setting: &Setting) -> bool {
        let main_is_gone =
            self.main.is_none_or(|main| !self.processes[main].alive || self.processes[main].told);
        !self.was_up()
            || setting.supervised && main_is_gone
            || self.living().all(|(_, process)| process.told)
    }

    /// Returns the living processes whose state is that of an active generation.
    fn active_generations(&self) -> impl Iterator<Item = Id> {
        let is_active = |state| {
            matches!(state, State::Serving | State::HandingOff { .. } | State::Baking { .. })
        };
        self.living().filter(move |(_, process)| is_active(process.state)).map(|(id, _)| id)
    }

    /// Returns whether all processes have ended without being killed by the test.
    fn has_ended_by_itself(&self, setting: &Setting) -> bool {
        self.living().next().is_none() && self.left.crashes == setting.budget.crashes
    }

    fn is_main(&self, id: Id) -> bool {
        self.main.is_none_or(|main| main == id || !self.processes[main].alive)
    }

    fn is_vouched_for(&self, process: &ModelProcess) -> bool {
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

    /// Returns whether the handoff to `process` has an outcome or does not need one. No outcome is
    /// needed while the handoff is in progress, or if the predecessor is gone or was told to stop.
    fn is_settled(&self, process: &ModelProcess) -> bool {
        let Some(parent) = process.parent.map(|parent| &self.processes[parent]) else {
            return true;
        };
        let under_way = matches!(parent.state, State::HandingOff { .. } | State::Baking { .. });
        process.outcome.is_some() || under_way || parent.told || !parent.alive
    }

    /// Returns whether process `id` has lost a successor after the commit, and has since started
    /// another handoff.
    fn has_recalled(&self, id: Id) -> bool {
        let taken_back = |heir: &ModelProcess| {
            heir.parent == Some(id) && heir.outcome == Some(ModelOutcome::TakenBack)
        };
        self.processes[id].successor.is_some() && self.processes.iter().any(taken_back)
    }
}

impl ModelProcess {
    fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    /// Returns whether the process has stopped accepting, but will accept again if its successor
    /// dies.
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
        let stays_retired = State::Retiring { on_death: OnSuccessorDeath::Stay };
        let ends = self.state == State::Stopping || self.state == stays_retired;
        ends && !self.accepts && self.deadlines.drain
    }
}
