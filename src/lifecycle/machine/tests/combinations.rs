//! Lists of all states and events of the state machine, with short names for them. The test that
//! compares the state machine with a table uses these lists.

use crate::lifecycle::machine::Birth::{self, First, Orphan, Successor};
use crate::lifecycle::machine::Event::{
    BakeOver, CarryEnded, Committed, CutNow, DrainExpired, Drained, Live, PredecessorLost,
    RollbackConfirmed, ServiceStopping, SuccessorLost, SuccessorReady, SuccessorRolledBack,
    Terminate,
};
use crate::lifecycle::machine::OnSuccessorDeath::{self, Stay};
use crate::lifecycle::machine::State::{self, Serving, Stopped, Stopping};
use crate::lifecycle::machine::{Commit, Event, PendingReload};

pub(super) const NONE: PendingReload = PendingReload::None;
pub(super) const ONE: PendingReload = PendingReload::One;
pub(super) const PLAIN: Commit = Commit { pending: NONE, on_death: OnSuccessorDeath::Resume };
pub(super) const PENDING: Commit = Commit { pending: ONE, on_death: OnSuccessorDeath::Resume };
pub(super) const FOR_GOOD: Commit = Commit { pending: NONE, on_death: Stay };
pub(super) const FOR_GOOD_PENDING: Commit = Commit { pending: ONE, on_death: Stay };
pub(super) const HANGUP: Event = Event::ReloadRequested;

pub(super) const EVENTS: [Event; 18] = [
    Live,
    Committed(PLAIN),
    Committed(PENDING),
    Committed(FOR_GOOD),
    Committed(FOR_GOOD_PENDING),
    PredecessorLost,
    RollbackConfirmed,
    HANGUP,
    Terminate,
    CutNow,
    SuccessorReady,
    BakeOver,
    SuccessorLost,
    SuccessorRolledBack,
    ServiceStopping,
    CarryEnded,
    Drained,
    DrainExpired,
];

/// Events that cannot happen to a generation before it accepts connections.
pub(super) const TOO_EARLY: [Event; 13] = [
    Committed(PLAIN),
    Committed(PENDING),
    Committed(FOR_GOOD),
    Committed(FOR_GOOD_PENDING),
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

/// All variants of the event `Committed`. Most states ignore all of them.
pub(super) const COMMITS: [Event; 4] =
    [Committed(PLAIN), Committed(PENDING), Committed(FOR_GOOD), Committed(FOR_GOOD_PENDING)];

/// All states of the state machine, with every combination of their fields.
pub(super) const STATES: [State; 17] = [
    starting(First, NONE),
    starting(First, ONE),
    starting(Successor, NONE),
    starting(Successor, ONE),
    starting(Orphan, NONE),
    starting(Orphan, ONE),
    probation(NONE),
    probation(ONE),
    Serving,
    handing_off(NONE),
    handing_off(ONE),
    baking(NONE),
    baking(ONE),
    retiring(OnSuccessorDeath::Resume),
    retiring(Stay),
    Stopping,
    Stopped,
];

pub(super) const fn starting(birth: Birth, pending: PendingReload) -> State {
    State::Starting { birth, pending }
}

pub(super) const fn probation(pending: PendingReload) -> State {
    State::Probation { pending }
}

pub(super) const fn handing_off(pending: PendingReload) -> State {
    State::HandingOff { pending }
}

pub(super) const fn baking(pending: PendingReload) -> State {
    State::Baking { pending }
}

pub(super) const fn retiring(on_death: OnSuccessorDeath) -> State {
    State::Retiring { on_death }
}

/// The list of events is complete, so that the test table cannot miss one.
#[test]
fn the_table_has_every_event() {
    // The match has no wildcard. So a new event does not compile until it has a number here.
    let place = |event| match event {
        Live => 0,
        Committed(PLAIN) => 1,
        Committed(PENDING) => 2,
        Committed(FOR_GOOD) => 3,
        Committed(FOR_GOOD_PENDING) => 4,
        PredecessorLost => 5,
        RollbackConfirmed => 6,
        HANGUP => 7,
        Terminate => 8,
        CutNow => 9,
        SuccessorReady => 10,
        BakeOver => 11,
        SuccessorLost => 12,
        SuccessorRolledBack => 13,
        ServiceStopping => 14,
        CarryEnded => 15,
        Drained => 16,
        DrainExpired => 17,
    };
    assert!(EVENTS.into_iter().map(place).eq(0..EVENTS.len()));
}
