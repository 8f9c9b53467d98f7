//! Tests of properties that hold for all states and events of the state machine. They do not use
//! the handwritten table of `machine/tests.rs`.

use std::collections::HashSet;

use super::{EVENTS, STATES, retiring};
use crate::lifecycle::machine::Action::{
    CloseListeners, Cut, Resume, StartSuccessor, StopAccepting,
};
use crate::lifecycle::machine::Birth::{First, Successor};
use crate::lifecycle::machine::Event::{CutNow, Live, Terminate};
use crate::lifecycle::machine::OnSuccessorDeath::Stay;
use crate::lifecycle::machine::State::{self, Stopped, Stopping};
use crate::lifecycle::machine::step;

#[test]
fn the_table_has_exactly_the_reachable_states() {
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
fn every_state_obeys_a_stop() {
    let heeded = closure(&[Stopping, retiring(Stay)]);
    for state in STATES {
        let (told, _) = step(state, Terminate);
        assert!(heeded.contains(&told), "{state:?} x Terminate leads to {told:?}");
        let (cut, actions) = step(state, CutNow);
        let is_over = cut == Stopped || heeded.contains(&cut) && actions.contains(&Cut);
        assert!(is_over, "{state:?} x CutNow leads to {cut:?} with {actions:?}");
    }
}

/// A generation stops accepting only with the action `StopAccepting` or `CloseListeners`. It begins
/// to accept only with the action `Resume` or the event `Live`.
#[test]
fn accepting_begins_and_ends_only_with_an_action() {
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

/// Returns `states`, and all states that can be reached from them by any sequence of events.
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
