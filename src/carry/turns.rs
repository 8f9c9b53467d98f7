//! Asks connections to come to a boundary, so many at a time, that none is at a stop for longer
//! than it takes to carry a few.
//!
//! A turn goes from connection to connection: whoever has it is asked; when it has been carried, or
//! cannot stop at this instant, the turn goes to the next. So the pause of each does not grow with
//! their number, and one that is busy keeps nobody waiting: it stays asked, and comes when it is
//! done. How a connection is carried is not its affair.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How many connections are on their way at once: enough that neither process waits for the other.
const AT_ONCE: usize = 64;

/// Whose turn it is, for all connections of a process.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The number of the carry that goes on; 0 when none does.
    round: AtomicU32,
    rounds: AtomicU32,
    /// How many were carried in the last one.
    carried: AtomicUsize,
    /// Counts those that may still be carried.
    candidates: TaskTracker,
    turn: Arc<Notify>,
    /// Wakes those that have been asked, when nothing is asked any more.
    over: Arc<Notify>,
}

impl Turns {
    /// From now on all are asked, one after another.
    pub(crate) fn begin(&self) {
        self.forget();
        self.candidates.close();
        let round = self.rounds.fetch_add(1, Ordering::Relaxed) + 1;
        self.round.store(round, Ordering::SeqCst);
        for _ in 0..AT_ONCE {
            self.turn.notify_one();
        }
    }

    /// A round that may not begin has carried none.
    pub(crate) fn forget(&self) {
        self.carried.store(0, Ordering::Relaxed);
    }

    /// Nothing is asked of anybody any more.
    pub(crate) fn end(&self) {
        self.round.store(0, Ordering::SeqCst);
        self.over.notify_waiters();
        self.candidates.reopen();
    }

    /// Waits until none is left that may be carried in this round. Cancel safe.
    pub(crate) async fn all_went(&self) {
        self.candidates.wait().await;
    }

    /// How many were carried in this round, or in the last one.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }
}

/// What is asked of one connection: shared with whoever serves it.
#[derive(Debug, Default)]
pub(crate) struct Word {
    state: AtomicU8,
    /// It cannot be given up, says whoever serves it.
    is_declined: AtomicBool,
    changed: Notify,
}

const NOTHING: u8 = 0;
const ASKED: u8 = 1;
const REFUSED: u8 = 2;

impl Word {
    /// Whether it is to come to a boundary.
    pub(crate) fn is_asked(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ASKED && !self.is_declined.load(Ordering::Relaxed)
    }

    /// Whether it would have been carried, but the successor would not have it, or whoever serves
    /// it declines: it is to be drained.
    pub(crate) fn is_refused(&self) -> bool {
        match self.state.load(Ordering::Relaxed) {
            ASKED => self.is_declined.load(Ordering::Relaxed),
            state => state == REFUSED,
        }
    }

    /// It cannot be given up, from now on. Whoever serves it is polled when it is to be drained for
    /// that.
    pub(crate) fn decline(&self) {
        self.is_declined.store(true, Ordering::Relaxed);
    }

    /// Waits until it is asked. Cancel safe.
    pub(crate) async fn asked(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_asked() {
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

/// One connection's place among them.
#[derive(Debug)]
pub(crate) struct Asking {
    turns: Arc<Turns>,
    word: Arc<Word>,
    state: State,
    /// For as long as it may still be carried in this round.
    candidate: Option<TaskTrackerToken>,
    /// The turn, while it has it.
    turn: Option<Turn>,
    /// Whether it has been asked since it was last given up.
    was_asked: bool,
}

#[derive(Debug)]
enum State {
    New,
    Waiting(Pin<Box<OwnedNotified>>),
    /// In this round, until its end.
    Asked(u32, Pin<Box<OwnedNotified>>),
}

/// A turn; it goes to the next when it is dropped.
#[derive(Debug)]
struct Turn(Arc<Notify>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Asking {
    /// A new connection's.
    pub(crate) fn new(turns: Arc<Turns>) -> Self {
        let candidate = Some(turns.candidates.token());
        Self {
            turns,
            word: Arc::default(),
            state: State::New,
            candidate,
            turn: None,
            was_asked: false,
        }
    }

    /// What is asked of it.
    pub(crate) const fn word(&self) -> &Arc<Word> {
        &self.word
    }

    /// Whether it has been asked since the last time that this was called: even if nothing is asked
    /// of it any more.
    pub(crate) fn was_asked(&mut self) -> bool {
        std::mem::take(&mut self.was_asked)
    }

    /// It has been carried.
    pub(crate) fn carried(&mut self) {
        self.turns.carried.fetch_add(1, Ordering::Relaxed);
        self.candidate = None;
    }

    /// The successor would not have it: in this round it is not asked again.
    pub(crate) fn refused(&mut self) {
        self.word.set(REFUSED);
        self.candidate = None;
    }

    /// There was nobody who could take it.
    pub(crate) fn alone(&self) {
        self.word.set(NOTHING);
    }

    /// To be called whenever the connection's task runs, before it serves: it may be asked then,
    /// and has a turn. That is to be passed on when it is seen not to be at a boundary, and when it
    /// has been handed over or was not.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        // Until it waits for something.
        while let Poll::Ready(turn) = self.poll_turn(cx) {
            self.turn = Some(turn);
        }
    }

    /// Has another connection asked.
    pub(crate) fn pass_on(&mut self) {
        self.turn = None;
        if self.word.is_refused() {
            // It has declined. Nobody has to wait for it.
            self.candidate = None;
        }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            match &mut self.state {
                State::New => {
                    let mut notified = Box::pin(Arc::clone(&self.turns.turn).notified_owned());
                    // In the queue first, and then a look: whoever begins a round does it the other
                    // way round. One that comes while a round goes on may have come too late for
                    // its turn.
                    let woken = notified.as_mut().poll(cx).is_ready();
                    let round = self.turns.round.load(Ordering::SeqCst);
                    if round != 0 {
                        return Poll::Ready(self.ask(round));
                    }
                    if !woken {
                        self.state = State::Waiting(notified);
                        return Poll::Pending;
                    }
                }
                State::Waiting(notified) => {
                    // Also while nothing is asked of anybody: one that a left-over turn has come to
                    // is in no queue any more, and has to get into it again before the next round
                    // begins.
                    if notified.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    match self.turns.round.load(Ordering::SeqCst) {
                        0 => self.state = State::New,
                        round => return Poll::Ready(self.ask(round)),
                    }
                }
                State::Asked(round, over) => {
                    let is_over = over.as_mut().poll(cx).is_ready();
                    if !is_over && self.turns.round.load(Ordering::SeqCst) == *round {
                        return Poll::Pending;
                    }
                    self.word.set(NOTHING);
                    self.candidate = Some(self.turns.candidates.token());
                    self.state = State::New;
                }
            }
        }
    }

    fn ask(&mut self, round: u32) -> Turn {
        self.word.set(ASKED);
        self.was_asked = true;
        self.state = State::Asked(round, Box::pin(Arc::clone(&self.turns.over).notified_owned()));
        Turn(Arc::clone(&self.turns.turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Waker;

    /// Whether it has a turn now.
    fn poll(asking: &mut Asking) -> bool {
        asking.poll(&mut Context::from_waker(Waker::noop()));
        asking.turn.is_some()
    }

    fn waiting(turns: &Arc<Turns>, count: usize) -> Vec<Asking> {
        let mut all: Vec<_> = (0..count).map(|_| Asking::new(Arc::clone(turns))).collect();
        assert!(!all.iter_mut().any(poll));
        all
    }

    #[test]
    fn so_many_are_asked_at_once_and_a_turn_goes_on() {
        let turns = Arc::default();
        let mut all = waiting(&turns, AT_ONCE + 10);
        turns.begin();
        let have_turns = |all: &mut Vec<Asking>| {
            all.iter_mut().filter_map(|one| poll(one).then_some(())).count()
        };
        assert_eq!(have_turns(&mut all), AT_ONCE);
        assert_eq!(all.iter().filter(|one| one.word().is_asked()).count(), AT_ONCE);
        all[0].pass_on();
        drop(all.remove(1));
        assert_eq!(have_turns(&mut all), AT_ONCE);
        for _ in 0..8 {
            all.iter_mut().find(|one| one.turn.is_some()).unwrap().pass_on();
            assert_eq!(have_turns(&mut all), AT_ONCE);
        }
        assert!(all.iter().all(|one| one.word().is_asked()));
    }

    #[test]
    fn those_that_come_in_a_round_are_asked_and_each_only_once() {
        let turns: Arc<Turns> = Arc::default();
        turns.begin();
        let mut one = Asking::new(Arc::clone(&turns));
        assert!(poll(&mut one) && one.word().is_asked());
        one.pass_on();
        assert!(!poll(&mut one));
        one.refused();
        assert!(!poll(&mut one) && one.word().is_refused());
    }

    #[tokio::test]
    async fn one_that_declines_is_refused_in_each_round_and_nobody_waits_for_it() {
        let turns: Arc<Turns> = Arc::default();
        let [mut early, mut late] = [(), ()].map(|()| Asking::new(Arc::clone(&turns)));
        early.word().decline();
        for _ in 0..2 {
            assert!(!poll(&mut early) && !early.word().is_refused());
            turns.begin();
            assert!(poll(&mut early) && poll(&mut late));
            assert!(early.word().is_refused() && !early.word().is_asked());
            late.pass_on();
            late.word().decline();
            assert!(!poll(&mut late) && late.word().is_refused());
            early.pass_on();
            late.pass_on();
            turns.all_went().await;
            turns.end();
        }
    }

    #[tokio::test]
    async fn a_turn_that_is_left_over_keeps_nobody_from_the_next_round() {
        let turns: Arc<Turns> = Arc::default();
        let mut all = waiting(&turns, 5);
        turns.begin();
        assert!(all.iter_mut().all(poll));
        turns.end();
        let idle: Vec<_> = all
            .into_iter()
            .map(|mut one| {
                // It waits again, and what it had goes to one that does as well.
                one.poll(&mut Context::from_waker(Waker::noop()));
                one.pass_on();
                tokio::spawn(poll_fn(move |cx| {
                    one.poll(cx);
                    if one.turn.is_some() { Poll::Ready(()) } else { Poll::Pending }
                }))
            })
            .collect();
        tokio::task::yield_now().await;
        turns.begin();
        for one in idle {
            tokio::time::timeout(std::time::Duration::from_secs(30), one)
                .await
                .expect("it is asked")
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_round_that_ends_withdraws_its_word_and_the_next_one_asks_again() {
        let turns: Arc<Turns> = Arc::default();
        turns.begin();
        let mut one = Asking::new(Arc::clone(&turns));
        assert!(poll(&mut one));
        one.pass_on();
        let word = Arc::clone(one.word());
        let idle = tokio::spawn(poll_fn(move |cx| {
            one.poll(cx);
            if one.turn.is_some() { Poll::Ready(()) } else { Poll::Pending }
        }));
        tokio::task::yield_now().await;
        turns.end();
        tokio::task::yield_now().await;
        assert!(!word.is_asked());
        turns.begin();
        idle.await.unwrap();
        word.asked().await;
    }
}
