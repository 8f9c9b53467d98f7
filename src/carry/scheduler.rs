//! The scheduler for moving connections to the successor. It asks a limited number of connections
//! at a time to pause between two messages, so that they can move.
//!
//! A connection that gets one of a fixed number of permits is asked to pause at its next message
//! boundary. It passes the permit on as soon as it has moved to the successor, or if it is in the
//! middle of a message. In the second case the request stays in force, and the connection moves
//! when it reaches a message boundary.
//!
//! So the pause of a connection does not get longer with more connections, and a busy connection
//! delays no other connection. The modules `outgoing` and `incoming` transfer the connections.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The number of permits, which limits how many connections move at once. It is large enough to
/// keep both processes busy.
const AT_ONCE: usize = 64;

/// The scheduler that asks the connections of this process, one after another, to move to the
/// successor.
#[derive(Debug, Default)]
pub(crate) struct CarryScheduler {
    /// The number of the current round, or 0 if none is in progress. A round is one attempt to move
    /// all connections to a successor.
    round: AtomicU32,
    rounds: AtomicU32,
    /// The number of connections that moved to the successor in the current or the last attempt to
    /// move all connections.
    carried: AtomicUsize,
    /// Counts the connections that may still move to the successor.
    candidates: TaskTracker,
    turn: Arc<Notify>,
    /// Wakes all connections that were asked to pause, when the attempt to move all connections
    /// ends.
    over: Arc<Notify>,
}

impl CarryScheduler {
    /// Begins an attempt to move all connections to the successor. From now on connections are
    /// asked to pause, at most [`AT_ONCE`] at a time.
    pub(crate) fn begin(&self) {
        self.forget();
        self.candidates.close();
        let round = self.rounds.fetch_add(1, Ordering::Relaxed) + 1;
        self.round.store(round, Ordering::SeqCst);
        for _ in 0..AT_ONCE {
            self.turn.notify_one();
        }
    }

    /// Resets the number of connections that moved to the successor. [`CarryScheduler::begin`] also
    /// does so; call this function for a drain in which no connection can move.
    pub(crate) fn forget(&self) {
        self.carried.store(0, Ordering::Relaxed);
    }

    /// Ends the attempt to move all connections. No connection is asked to pause any more.
    pub(crate) fn end(&self) {
        self.round.store(0, Ordering::SeqCst);
        self.over.notify_waiters();
        self.candidates.reopen();
    }

    /// Waits until no connection can move to the successor any more, because each has moved, ended
    /// or been refused. Cancel safe.
    pub(crate) async fn all_went(&self) {
        self.candidates.wait().await;
    }

    /// Returns how many connections moved to the successor in the current or the last attempt.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }
}

/// The request to one connection to pause, so that it can move to the successor. The scheduler sets
/// it, and the service of the connection reads it.
#[derive(Debug, Default)]
pub(crate) struct CarryRequest {
    state: AtomicU8,
    /// Whether the service has opted out, that is, declared that this connection cannot move to the
    /// successor.
    is_declined: AtomicBool,
    changed: Notify,
}

const NOTHING: u8 = 0;
const ASKED: u8 = 1;
const REFUSED: u8 = 2;

impl CarryRequest {
    /// Returns whether the connection is asked to pause at its next message boundary, so that it
    /// can move to the successor.
    pub(crate) fn carry_requested(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ASKED && !self.is_declined.load(Ordering::Relaxed)
    }

    /// Returns whether the connection was asked to move but cannot, because the successor refused
    /// it or the service opted out. It must then be drained.
    pub(crate) fn is_refused(&self) -> bool {
        match self.state.load(Ordering::Relaxed) {
            ASKED => self.is_declined.load(Ordering::Relaxed),
            state => state == REFUSED,
        }
    }

    /// Declares that the connection cannot move to the successor. This does not wake the
    /// connection's task.
    pub(crate) fn opt_out(&self) {
        self.is_declined.store(true, Ordering::Relaxed);
    }

    /// Waits until the connection is asked to pause so that it can move to the successor. Cancel
    /// safe.
    pub(crate) async fn asked(&self) {
        loop {
            let changed = self.changed.notified();
            if self.carry_requested() {
                return;
            }
            changed.await;
        }
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
        self.changed.notify_waiters();
    }
}

/// One connection in the scheduler's queue of connections that may move to the successor.
#[derive(Debug)]
pub(crate) struct CarrySlot {
    scheduler: Arc<CarryScheduler>,
    word: Arc<CarryRequest>,
    state: SchedulerState,
    /// A token that is held while the connection may still move to the successor.
    candidate: Option<TaskTrackerToken>,
    /// The permit to move, while the connection holds it.
    turn: Option<CarryPermit>,
    /// Whether the connection has been asked to move since the last call of
    /// [`CarrySlot::was_asked`].
    was_asked: bool,
}

#[derive(Debug)]
enum SchedulerState {
    New,
    Waiting(Pin<Box<OwnedNotified>>),
    /// The connection was asked to move. The number identifies the attempt to move all connections,
    /// and the future completes when that attempt ends.
    Asked(u32, Pin<Box<OwnedNotified>>),
}

/// A permit to move to the successor. When it is dropped, the next connection in the queue gets a
/// permit.
#[derive(Debug)]
struct CarryPermit(Arc<Notify>);

impl Drop for CarryPermit {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl CarrySlot {
    /// Adds a new connection to those that `scheduler` asks to move to the successor.
    pub(crate) fn new(scheduler: Arc<CarryScheduler>) -> Self {
        let candidate = Some(scheduler.candidates.token());
        Self {
            scheduler,
            word: Arc::default(),
            state: SchedulerState::New,
            candidate,
            turn: None,
            was_asked: false,
        }
    }

    /// Returns the request to this connection to move, so that the service can read it.
    pub(crate) const fn word(&self) -> &Arc<CarryRequest> {
        &self.word
    }

    /// Returns whether the connection has been asked to move since the last call of this function,
    /// even if the request has been withdrawn.
    pub(crate) fn was_asked(&mut self) -> bool {
        std::mem::take(&mut self.was_asked)
    }

    /// Records that the connection has moved to the successor.
    pub(crate) fn carried(&mut self) {
        self.scheduler.carried.fetch_add(1, Ordering::Relaxed);
        self.candidate = None;
    }

    /// Records that the successor refused the connection. The connection is not asked to move again
    /// until the next attempt.
    pub(crate) fn refused(&mut self) {
        self.word.set(REFUSED);
        self.candidate = None;
    }

    /// Withdraws the request to move, because no successor accepts connections any more.
    pub(crate) fn alone(&self) {
        self.word.set(NOTHING);
    }

    /// Checks whether the connection has a permit, and asks it to move if so. Call this function
    /// each time the connection's task is polled, before the service is polled.
    ///
    /// Call [`CarrySlot::pass_on`] afterwards if the service is in the middle of a message. Also
    /// call it when the transfer of the connection has succeeded or failed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        // Poll until the result is pending, because only then the task will be woken.
        while let Poll::Ready(turn) = self.poll_turn(cx) {
            self.turn = Some(turn);
        }
    }

    /// Passes this connection's permit on to another connection, if it holds one.
    pub(crate) fn pass_on(&mut self) {
        self.turn = None;
        if self.word.is_refused() {
            // Do not wait for this connection any more: it must be drained instead of moving to the
            // successor.
            self.candidate = None;
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<CarryPermit> {
        loop {
            match &mut self.state {
                SchedulerState::New => {
                    let mut notified = Box::pin(Arc::clone(&self.scheduler.turn).notified_owned());
                    // Join the queue first, and check afterwards whether an attempt to move
                    // connections (a round) is under way. `CarryScheduler::begin` sets the round
                    // first and wakes the queue afterwards, so no connection misses a round. A
                    // connection that arrives during a round may be too late for the queue, so it
                    // gets an extra permit.
                    let woken = notified.as_mut().poll(cx).is_ready();
                    let round = self.scheduler.round.load(Ordering::SeqCst);
                    if round != 0 {
                        return Poll::Ready(self.ask(round));
                    }
                    if !woken {
                        self.state = SchedulerState::Waiting(notified);
                        return Poll::Pending;
                    }
                }
                SchedulerState::Waiting(notified) => {
                    // Join the queue again if no attempt to move connections is under way. A permit
                    // left from the last attempt may have removed this connection from the queue,
                    // and the next attempt asks only connections in the queue.
                    if notified.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    match self.scheduler.round.load(Ordering::SeqCst) {
                        0 => self.state = SchedulerState::New,
                        round => return Poll::Ready(self.ask(round)),
                    }
                }
                SchedulerState::Asked(round, over) => {
                    let is_over = over.as_mut().poll(cx).is_ready();
                    if !is_over && self.scheduler.round.load(Ordering::SeqCst) == *round {
                        return Poll::Pending;
                    }
                    self.word.set(NOTHING);
                    self.candidate = Some(self.scheduler.candidates.token());
                    self.state = SchedulerState::New;
                }
            }
        }
    }

    fn ask(&mut self, round: u32) -> CarryPermit {
        self.word.set(ASKED);
        self.was_asked = true;
        self.state = SchedulerState::Asked(
            round,
            Box::pin(Arc::clone(&self.scheduler.over).notified_owned()),
        );
        CarryPermit(Arc::clone(&self.scheduler.turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Waker;

    /// Polls `asking`, as the task of a connection does, and returns whether the connection holds a
    /// permit now.
    fn poll(asking: &mut CarrySlot) -> bool {
        asking.poll(&mut Context::from_waker(Waker::noop()));
        asking.turn.is_some()
    }

    fn waiting(scheduler: &Arc<CarryScheduler>, count: usize) -> Vec<CarrySlot> {
        let mut all: Vec<_> = (0..count).map(|_| CarrySlot::new(Arc::clone(scheduler))).collect();
        assert!(!all.iter_mut().any(poll));
        all
    }

    /// At most 64 connections hold a permit. A permit that is passed on or dropped goes to another
    /// connection.
    #[test]
    fn at_most_64_connections_hold_permits_at_once() {
        let scheduler = Arc::default();
        let mut all = waiting(&scheduler, AT_ONCE + 10);
        scheduler.begin();
        let have_turns = |all: &mut Vec<CarrySlot>| {
            all.iter_mut().filter_map(|one| poll(one).then_some(())).count()
        };
        assert_eq!(have_turns(&mut all), AT_ONCE);
        assert_eq!(all.iter().filter(|one| one.word().carry_requested()).count(), AT_ONCE);
        all[0].pass_on();
        drop(all.remove(1));
        assert_eq!(have_turns(&mut all), AT_ONCE);
        for _ in 0..8 {
            all.iter_mut().find(|one| one.turn.is_some()).unwrap().pass_on();
            assert_eq!(have_turns(&mut all), AT_ONCE);
        }
        assert!(all.iter().all(|one| one.word().carry_requested()));
    }

    #[test]
    fn a_connection_that_arrives_in_a_round_is_asked_once() {
        let scheduler: Arc<CarryScheduler> = Arc::default();
        scheduler.begin();
        let mut one = CarrySlot::new(Arc::clone(&scheduler));
        assert!(poll(&mut one) && one.word().carry_requested());
        one.pass_on();
        assert!(!poll(&mut one));
        one.refused();
        assert!(!poll(&mut one) && one.word().is_refused());
    }

    /// A connection whose service has opted out of moving counts as refused in every attempt to
    /// move all connections.
    #[tokio::test]
    async fn a_round_does_not_wait_for_a_connection_that_opts_out() {
        let scheduler: Arc<CarryScheduler> = Arc::default();
        let [mut early, mut late] = [(), ()].map(|()| CarrySlot::new(Arc::clone(&scheduler)));
        early.word().opt_out();
        for _ in 0..2 {
            assert!(!poll(&mut early) && !early.word().is_refused());
            scheduler.begin();
            assert!(poll(&mut early) && poll(&mut late));
            assert!(early.word().is_refused() && !early.word().carry_requested());
            late.pass_on();
            late.word().opt_out();
            assert!(!poll(&mut late) && late.word().is_refused());
            early.pass_on();
            late.pass_on();
            scheduler.all_went().await;
            scheduler.end();
        }
    }

    /// A round is one attempt to move all connections. Every connection is asked again in the next
    /// round, even if permits of the last round are still passed on.
    #[tokio::test]
    async fn a_leftover_permit_does_not_disturb_the_next_round() {
        let scheduler: Arc<CarryScheduler> = Arc::default();
        let mut all = waiting(&scheduler, 5);
        scheduler.begin();
        assert!(all.iter_mut().all(poll));
        scheduler.end();
        let idle: Vec<_> = all
            .into_iter()
            .map(|mut one| {
                // This connection returns to the queue, and its permit goes to another connection
                // there.
                one.poll(&mut Context::from_waker(Waker::noop()));
                one.pass_on();
                tokio::spawn(poll_fn(move |cx| {
                    one.poll(cx);
                    if one.turn.is_some() { Poll::Ready(()) } else { Poll::Pending }
                }))
            })
            .collect();
        tokio::task::yield_now().await;
        scheduler.begin();
        for one in idle {
            tokio::time::timeout(std::time::Duration::from_secs(30), one)
                .await
                .expect("the connection is not asked")
                .unwrap();
        }
    }

    /// A round is one attempt to move all connections. Its end withdraws all requests, and the next
    /// round asks again.
    #[tokio::test]
    async fn the_end_of_a_round_withdraws_its_requests() {
        let scheduler: Arc<CarryScheduler> = Arc::default();
        scheduler.begin();
        let mut one = CarrySlot::new(Arc::clone(&scheduler));
        assert!(poll(&mut one));
        one.pass_on();
        let word = Arc::clone(one.word());
        let idle = tokio::spawn(poll_fn(move |cx| {
            one.poll(cx);
            if one.turn.is_some() { Poll::Ready(()) } else { Poll::Pending }
        }));
        tokio::task::yield_now().await;
        scheduler.end();
        tokio::task::yield_now().await;
        assert!(!word.carry_requested());
        scheduler.begin();
        idle.await.unwrap();
        word.asked().await;
    }
}
