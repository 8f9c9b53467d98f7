//! Tests what is true of all states and events at once, whatever the table says of a single one.

use std::collections::HashSet;

use super::{EVENTS, STATES, retiring};
use crate::lifecycle::machine::Action::{CloseListeners, Resume, StartSuccessor, StopAccepting};
use crate::lifecycle::machine::Birth::{First, Successor};
use crate::lifecycle::machine::Event::{CutNow, Live, Terminate};
use crate::lifecycle::machine::OnSuccessorDeath::Stay;
use crate::lifecycle::machine::State::{self, Stopped, Stopping};
use crate::lifecycle::machine::step;

#[test]
fn the_table_has_every_state_that_can_be_reached() {
    let born = [State::born(First), State::born(Successor)];
    assert_eq!(closure(&born), STATES.into_iter().collect());
}

#[test]
fn a_state_that_was_told_to_stop_never_accepts_again() {
    for state in closure(&[Stopping, retiring(Stay)]) {
        assert!(!state.accepts(), "{state:?}");
        for event in EVENTS {
            let (_, actions) = step(state, event);
            assert!(
                !actions.contains(&Resume) && !actions.contains(&StartSuccessor),
                "{state:?} x {event:?}"
            );
        }
    }
}

#[test]
fn a_stop_is_heeded_by_every_state() {
    let heeded = closure(&[Stopping, retiring(Stay)]);
    for state in STATES {
        let (told, _) = step(state, Terminate);
        assert!(heeded.contains(&told), "{state:?} x Terminate leads to {told:?}");
        assert_eq!(step(state, CutNow).0, Stopped, "{state:?} x CutNow");
    }
}

#[test]
fn accepting_ends_and_begins_with_an_action_and_never_without() {
    for state in STATES {
        for event in EVENTS {
            let (to, actions) = step(state, event);
            let ends = actions.contains(&StopAccepting) || actions.contains(&CloseListeners);
            let begins = actions.contains(&Resume) || event == Live;
            if state.accepts() && !to.accepts() {
                assert!(ends && !begins, "{state:?} x {event:?}: {actions:?}");
            } else if !state.accepts() && to.accepts() {
                assert!(begins && !ends, "{state:?} x {event:?}: {actions:?}");
            } else if state.accepts() {
                assert!(!begins && !ends || event == Live, "{state:?} x {event:?}: {actions:?}");
            }
        }
    }
}

/// All states to which any events lead from `states`, and these themselves.
fn closure(states: &[State]) -> HashSet<State> {
    let mut known: HashSet<State> = states.iter().copied().collect();
    let mut left = states.to_vec();
    while let Some(state) = left.pop() {
        for event in EVENTS {
            let (to, _) = step(state, event);
            if known.insert(to) {
                left.push(to);
            }
        }
    }
    known
}
