//! Tests that compare the state machine with a handwritten table of all states and events.
//!
//! Each row of the table describes one state. For each event that has an effect, the row lists the
//! next state and the actions in order. It also lists the events that have no effect. Each row must
//! list every event exactly once, so that no combination is forgotten.

mod combinations;
mod everywhere;

use self::combinations::*;
use super::{Action, Birth, Event, OnSuccessorDeath, State, step};
use Action::*;
use Birth::{First, Orphan, Successor};
use Event::{
    BakeOver, CarryEnded, Committed, CutNow, DrainExpired, Drained, Live, PredecessorLost,
    RollbackConfirmed, ServiceStopping, SuccessorLost, SuccessorReady, SuccessorRolledBack,
    Terminate,
};
use OnSuccessorDeath::Stay;
use State::{Serving, Stopped, Stopping};

/// One cell of the test table: an event, the next state and the actions.
type TableCell<'a> = (Event, State, &'a [Action]);

/// Checks one row of the table. For each event in `moves`, `step` must return the listed state and
/// actions. The `ignored` events must neither change the state nor cause an action.
fn row(state: State, moves: &[TableCell<'_>], ignored: &[Event]) {
    let named: Vec<Event> =
        moves.iter().map(|cell| cell.0).chain(ignored.iter().copied()).collect();
    assert_eq!(named.len(), EVENTS.len(), "the row of {state:?} lists {} events", named.len());
    for event in EVENTS {
        assert!(named.contains(&event), "the row of {state:?} misses {event:?}");
    }
    for &(event, to, actions) in moves {
        assert_eq!(step(state, event), (to, actions.to_vec()), "{state:?} x {event:?}");
    }
    for &event in ignored {
        assert_eq!(step(state, event), (state, vec![]), "{state:?} x {event:?} must be ignored");
    }
}

#[test]
fn the_first_generation_becomes_active_and_notifies_ready() {
    for pending in [NONE, ONE] {
        let live: TableCell<'_> = match pending {
            NONE => (Live, Serving, &[BecomeActive, NotifyReady]),
            ONE => (Live, handing_off(NONE), &[BecomeActive, NotifyReady, StartSuccessor]),
        };
        let moves = [
            live,
            (HANGUP, starting(First, ONE), &[]),
            (PredecessorLost, starting(Orphan, pending), &[]),
            (Terminate, Stopping, &[TellStopping, CloseListeners, Drain]),
            (CutNow, Stopped, &[TellStopping, CloseListeners, Drain, Cut, Exit]),
        ];
        row(starting(First, pending), &moves, &TOO_EARLY);
    }
}

/// A starting successor sends one of two messages to its predecessor: that it now accepts
/// connections, or that it was told to stop and will never accept.
#[test]
fn a_starting_successor_reports_readiness_or_a_rollback() {
    for pending in [NONE, ONE] {
        let moves: [TableCell<'_>; 5] = [
            (Live, probation(pending), &[TellReady]),
            (HANGUP, starting(Successor, ONE), &[]),
            (PredecessorLost, starting(Orphan, pending), &[]),
            (Terminate, Stopped, &[TellRollback, StopAccepting, Exit]),
            (CutNow, Stopped, &[TellRollback, StopAccepting, Exit]),
        ];
        row(starting(Successor, pending), &moves, &TOO_EARLY);
    }
}

/// An orphan is a successor whose predecessor died during the start. It becomes active as soon as
/// it accepts. It does not tell the service manager that the service is up, because an earlier
/// generation has done so.
#[test]
fn an_orphan_becomes_active_without_notifying_ready() {
    for pending in [NONE, ONE] {
        let live: TableCell<'_> = match pending {
            NONE => (Live, Serving, &[BecomeActive]),
            ONE => (Live, handing_off(NONE), &[BecomeActive, StartSuccessor]),
        };
        let moves = [
            live,
            (HANGUP, starting(Orphan, ONE), &[]),
            (PredecessorLost, starting(Orphan, pending), &[]),
            (Terminate, Stopping, &[TellStopping, CloseListeners, Drain]),
            (CutNow, Stopped, &[TellStopping, CloseListeners, Drain, Cut, Exit]),
        ];
        row(starting(Orphan, pending), &moves, &TOO_EARLY);
    }
}

#[test]
fn on_probation_a_reload_waits_and_a_stop_rolls_back() {
    let late = [
        Live,
        RollbackConfirmed,
        SuccessorReady,
        BakeOver,
        SuccessorLost,
        SuccessorRolledBack,
        ServiceStopping,
        CarryEnded,
        Drained,
        DrainExpired,
    ];
    let stops: [TableCell<'_>; 2] = [
        (Terminate, Stopping, &[TellRollback, StopAccepting, Drain]),
        (CutNow, Stopping, &[TellRollback, StopAccepting, Drain, Cut]),
    ];
    let [terminate, cut_now] = stops;
    let serves: &[Action] = &[BecomeActive];
    let hands_off: &[Action] = &[BecomeActive, StartSuccessor];
    let untroubled = [
        (Committed(PLAIN), Serving, serves),
        (Committed(PENDING), handing_off(NONE), hands_off),
        (Committed(FOR_GOOD), Serving, serves),
        (Committed(FOR_GOOD_PENDING), handing_off(NONE), hands_off),
        (PredecessorLost, Serving, serves),
        (HANGUP, probation(ONE), &[]),
        terminate,
        cut_now,
    ];
    row(probation(NONE), &untroubled, &late);
    let asked = [
        (Committed(PLAIN), handing_off(NONE), hands_off),
        (Committed(PENDING), handing_off(NONE), hands_off),
        (Committed(FOR_GOOD), handing_off(NONE), hands_off),
        (Committed(FOR_GOOD_PENDING), handing_off(NONE), hands_off),
        (PredecessorLost, handing_off(NONE), hands_off),
        (HANGUP, probation(ONE), &[]),
        terminate,
        cut_now,
    ];
    row(probation(ONE), &asked, &late);
}

/// A serving generation starts a successor on a reload request. It ignores late messages from its
/// predecessor and from a failed successor.
#[test]
fn the_active_generation_reloads_and_ignores_late_messages() {
    row(
        Serving,
        &[
            (HANGUP, handing_off(NONE), &[StartSuccessor]),
            (Terminate, Stopping, &[TellStopping, CloseListeners, Drain]),
            (CutNow, Stopped, &[TellStopping, CloseListeners, Drain, Cut, Exit]),
        ],
        &[
            &COMMITS[..],
            &[
                Live,
                PredecessorLost,
                RollbackConfirmed,
                SuccessorReady,
                BakeOver,
                SuccessorLost,
                SuccessorRolledBack,
                ServiceStopping,
            ],
            &[CarryEnded, Drained, DrainExpired],
        ]
        .concat(),
    );
}

/// A generation remembers at most one reload request during a handoff. If it is told to stop, it
/// also tells its successor to stop.
#[test]
fn while_handing_off_a_reload_waits_and_a_stop_is_passed_on() {
    let late = [
        &COMMITS[..],
        &[Live, PredecessorLost, RollbackConfirmed, BakeOver, ServiceStopping],
        &[CarryEnded, Drained, DrainExpired],
    ]
    .concat();
    for pending in [NONE, ONE] {
        let lost = |event| -> TableCell<'_> {
            match pending {
                NONE => (event, Serving, &[DropSuccessor]),
                ONE => (event, handing_off(NONE), &[DropSuccessor, StartSuccessor]),
            }
        };
        let moves = [
            lost(SuccessorLost),
            lost(SuccessorRolledBack),
            (SuccessorReady, baking(pending), &[StartBake]),
            (HANGUP, handing_off(ONE), &[]),
            (Terminate, Stopping, &[TellStopping, StopSuccessor, CloseListeners, Drain]),
            (CutNow, Stopped, &[TellStopping, StopSuccessor, CloseListeners, Drain, Cut, Exit]),
        ];
        row(handing_off(pending), &moves, &late);
    }
}

/// A baking generation has a successor on probation. If the baking generation is told to stop, it
/// commits the handoff and retires. If the successor dies, the baking generation continues to
/// serve.
#[test]
fn while_baking_a_stop_commits_and_a_lost_successor_is_dropped() {
    let late = [
        &COMMITS[..],
        &[
            Live,
            PredecessorLost,
            RollbackConfirmed,
            SuccessorReady,
            ServiceStopping,
            CarryEnded,
            Drained,
            DrainExpired,
        ],
    ]
    .concat();
    let unasked: [TableCell<'_>; 6] = [
        (BakeOver, retiring(OnSuccessorDeath::Resume), &[Commit(PLAIN), StopAccepting, Drain]),
        (SuccessorLost, Serving, &[DropSuccessor]),
        (SuccessorRolledBack, Serving, &[DropSuccessor]),
        (HANGUP, baking(ONE), &[]),
        (Terminate, retiring(Stay), &[Commit(FOR_GOOD), StopAccepting, Drain]),
        (CutNow, retiring(Stay), &[Commit(FOR_GOOD), StopAccepting, Drain, Cut]),
    ];
    row(baking(NONE), &unasked, &late);
    let asked: [TableCell<'_>; 6] = [
        (BakeOver, retiring(OnSuccessorDeath::Resume), &[Commit(PENDING), StopAccepting, Drain]),
        (SuccessorLost, handing_off(NONE), &[DropSuccessor, StartSuccessor]),
        (SuccessorRolledBack, handing_off(NONE), &[DropSuccessor, StartSuccessor]),
        (HANGUP, baking(ONE), &[]),
        (Terminate, retiring(Stay), &[Commit(FOR_GOOD_PENDING), StopAccepting, Drain]),
        (CutNow, retiring(Stay), &[Commit(FOR_GOOD_PENDING), StopAccepting, Drain, Cut]),
    ];
    row(baking(ONE), &asked, &late);
}

/// A retired generation accepts connections again if its successor dies, but not if the retired
/// generation was told to stop.
#[test]
fn a_retired_generation_told_to_stop_never_accepts_again() {
    let late = [
        &COMMITS[..],
        &[HANGUP, Live, PredecessorLost, RollbackConfirmed, SuccessorReady, BakeOver],
    ]
    .concat();
    let ends = |on_death| -> [TableCell<'_>; 6] {
        [
            (CarryEnded, retiring(on_death), &[DrainUncarried]),
            (Terminate, retiring(Stay), &[]),
            (ServiceStopping, retiring(Stay), &[CloseListeners, ForgetSuccessor]),
            (Drained, Stopped, &[Exit]),
            (DrainExpired, Stopped, &[Cut, Exit]),
            (CutNow, retiring(Stay), &[Cut]),
        ]
    };
    let recalled: [TableCell<'_>; 2] = [
        (SuccessorLost, Serving, &[DropSuccessor, Resume, BecomeActive]),
        (SuccessorRolledBack, Serving, &[DropSuccessor, Resume, BecomeActive]),
    ];
    row(
        retiring(OnSuccessorDeath::Resume),
        &[&ends(OnSuccessorDeath::Resume)[..], &recalled].concat(),
        &late,
    );
    let forgotten: [TableCell<'_>; 2] = [
        (SuccessorLost, retiring(Stay), &[Resign, DropSuccessor]),
        (SuccessorRolledBack, retiring(Stay), &[TellStopping, CloseListeners, DropSuccessor]),
    ];
    row(retiring(Stay), &[&ends(Stay)[..], &forgotten].concat(), &late);
}

#[test]
fn a_stopping_generation_only_drains_and_ends() {
    row(
        Stopping,
        &[
            (Drained, Stopped, &[Exit]),
            (DrainExpired, Stopped, &[Cut, Exit]),
            (CutNow, Stopping, &[Cut]),
            (SuccessorLost, Stopping, &[DropSuccessor]),
            (SuccessorRolledBack, Stopping, &[DropSuccessor]),
            (Committed(PLAIN), Stopping, &[ServeBacklogs, ReleaseOlder]),
            (Committed(PENDING), Stopping, &[ServeBacklogs, ReleaseOlder]),
            (PredecessorLost, Stopping, &[ServeBacklogs, ReleaseOlder]),
            (RollbackConfirmed, Stopping, &[LeaveListeners, ReleaseOlder]),
            (Committed(FOR_GOOD), Stopping, &[TellStopping, CloseListeners]),
            (Committed(FOR_GOOD_PENDING), Stopping, &[TellStopping, CloseListeners]),
        ],
        &[Live, HANGUP, Terminate, SuccessorReady, BakeOver, ServiceStopping, CarryEnded],
    );
}

#[test]
fn once_stopped_nothing_happens() {
    row(Stopped, &[], &EVENTS);
}
