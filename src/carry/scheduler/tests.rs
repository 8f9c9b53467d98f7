//! Tests of the order in which connections are asked to move.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Wake};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// Returns whether the connection holds a permit to move.
fn has_permit(slot: &CarrySlot) -> bool {
    slot.request().state() == RequestState::AskedWithPermit
}

/// Adds `count` connections to the scheduler, and checks that none of them has been asked to move.
fn waiting(scheduler: &Arc<CarryScheduler>, count: usize) -> Vec<CarrySlot> {
    let all: Vec<_> = (0..count).map(|_| CarrySlot::new(Arc::clone(scheduler))).collect();
    assert!(!all.iter().any(has_permit));
    all
}

/// Starts the task of an idle connection. The task ends when the connection is asked to move.
fn idle(mut slot: CarrySlot) -> JoinHandle<CarrySlot> {
    tokio::spawn(async move {
        poll_fn(|cx| if slot.watch(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        slot
    })
}

/// Waits until the task of a connection has seen the request to move.
async fn asked(idle: JoinHandle<CarrySlot>) -> CarrySlot {
    timeout(Duration::from_secs(30), idle).await.expect("the connection is not asked").unwrap()
}

/// At most 64 connections hold a permit to move to the successor. A permit that is passed on or
/// dropped goes to another connection.
#[test]
fn at_most_64_connections_hold_permits_at_once() {
    let scheduler = Arc::default();
    let mut all = waiting(&scheduler, AT_ONCE + 10);
    scheduler.begin();
    let have_permits = |all: &[CarrySlot]| all.iter().filter(|one| has_permit(one)).count();
    assert_eq!(have_permits(&all), AT_ONCE);
    assert_eq!(all.iter().filter(|one| one.request().carry_requested()).count(), AT_ONCE);
    all[0].pass_on();
    drop(all.remove(1));
    assert_eq!(have_permits(&all), AT_ONCE);
    for _ in 0..8 {
        all.iter().find(|one| has_permit(one)).unwrap().pass_on();
        assert_eq!(have_permits(&all), AT_ONCE);
    }
    assert!(all.iter().all(|one| one.request().carry_requested()));
}

/// A limited number of connections hold a permit to move to the successor. Whatever happens to such
/// a connection, its permit goes to another one.
#[test]
fn a_permit_is_passed_on_whatever_becomes_of_its_connection() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let mut all = waiting(&scheduler, 2 * AT_ONCE);
    scheduler.begin();
    let ends: [fn(CarrySlot) -> Option<CarrySlot>; 4] = [
        |busy| {
            busy.pass_on();
            Some(busy)
        },
        |refused| {
            refused.refused();
            Some(refused)
        },
        |alone| {
            alone.withdraw();
            Some(alone)
        },
        |carried| {
            drop(carried);
            None
        },
    ];
    let ended: Vec<_> = ends.into_iter().map(|end| end(all.remove(0))).collect();
    assert!(ended.iter().flatten().all(|one| !has_permit(one)));
    let have_permits = all.iter().filter(|one| has_permit(one)).count();
    assert_eq!(have_permits, AT_ONCE);
}

#[test]
fn a_connection_that_arrives_in_a_round_is_asked_once() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let _all = waiting(&scheduler, AT_ONCE);
    scheduler.begin();
    let one = CarrySlot::new(Arc::clone(&scheduler));
    assert!(has_permit(&one) && one.request().carry_requested());
    one.pass_on();
    assert!(one.request().carry_requested() && !has_permit(&one));
    one.refused();
    assert!(one.request().is_refused() && one.request().was_asked() && !one.request().was_asked());
}

/// The service of a connection may declare that the connection cannot move to the successor (opt
/// out). No attempt to move all connections waits for such a connection.
#[tokio::test]
async fn a_round_does_not_wait_for_a_connection_that_opts_out() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let [early, late] = [(), ()].map(|()| CarrySlot::new(Arc::clone(&scheduler)));
    early.request().opt_out();
    for _ in 0..2 {
        assert!(!early.request().is_refused());
        scheduler.begin();
        assert!(has_permit(&early) && has_permit(&late));
        assert!(early.request().is_refused() && !early.request().carry_requested());
        late.pass_on();
        late.request().opt_out();
        assert!(late.request().is_refused());
        assert!(!scheduler.lock().is_over());
        early.pass_on();
        late.pass_on();
        timeout(Duration::from_secs(30), scheduler.all_went()).await.expect("it is waited for");
        scheduler.end();
    }
}

/// An attempt to move all connections lasts until every connection that could move has moved, ended
/// or been refused.
#[tokio::test]
async fn a_round_waits_until_every_connection_went() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let [carried, refused, alone] = [(); 3].map(|()| CarrySlot::new(Arc::clone(&scheduler)));
    scheduler.begin();
    let waiting = Arc::clone(&scheduler);
    let all_went = tokio::spawn(async move { waiting.all_went().await });
    drop(carried);
    refused.refused();
    alone.withdraw();
    tokio::task::yield_now().await;
    assert!(!all_went.is_finished());
    drop(alone);
    timeout(Duration::from_secs(30), all_went).await.expect("the round is not over").unwrap();
}

/// A round is one attempt to move all connections. A connection may pass on its permit to move only
/// after the round has ended. It is still asked again in the next round.
#[tokio::test]
async fn a_leftover_permit_does_not_disturb_the_next_round() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let all = waiting(&scheduler, AT_ONCE + 5);
    scheduler.begin();
    scheduler.end();
    assert!(!all.iter().any(|one| one.request().is_asked()));
    all.iter().for_each(CarrySlot::pass_on);
    all[0].refused();
    let idle: Vec<_> = all.into_iter().map(idle).collect();
    tokio::task::yield_now().await;
    scheduler.begin();
    let mut permits = 0;
    for one in idle {
        let one = asked(one).await;
        permits = permits.max(scheduler.lock().permits);
        one.pass_on();
    }
    assert_eq!(permits, AT_ONCE);
}

/// A round is one attempt to move all connections. Its end withdraws all requests, and the next
/// round asks again.
#[tokio::test]
async fn the_end_of_a_round_withdraws_its_requests() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let one = CarrySlot::new(Arc::clone(&scheduler));
    let request = Arc::clone(one.request());
    let idle = idle(one);
    tokio::task::yield_now().await;
    scheduler.begin();
    let one = asked(idle).await;
    one.pass_on();
    scheduler.end();
    assert!(!request.carry_requested() && request.was_asked());
    scheduler.begin();
    timeout(Duration::from_secs(30), request.asked()).await.expect("it is not asked");
    one.refused();
    assert!(request.is_refused());
    scheduler.end();
    assert!(!request.is_refused());
}

/// Each change to a request to move wakes the connection's task, even if the task has a new waker.
/// A connection that only passes its permit on is not woken, because it is still asked to move.
#[test]
fn the_task_of_a_connection_is_woken_when_its_request_changes() {
    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let mut one = CarrySlot::new(Arc::clone(&scheduler));
    for _ in 0..2 {
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut watch = || one.watch(&Context::from_waker(&waker));
        assert!(!watch());
        scheduler.begin();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(watch());
        one.pass_on();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        scheduler.end();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }
}

/// A connection with a busy task gets no permit to move. It moves when the task sees the request.
#[tokio::test]
async fn a_busy_connection_is_asked_without_a_permit() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let all = waiting(&scheduler, AT_ONCE + 1);
    all[..AT_ONCE].iter().for_each(CarrySlot::stop_watching);
    scheduler.begin();
    assert!(all[..AT_ONCE].iter().all(|busy| busy.request().carry_requested()));
    assert!(!all[..AT_ONCE].iter().any(has_permit) && has_permit(&all[AT_ONCE]));
    let attention = all[0].begin_watching();
    timeout(Duration::from_secs(30), all[0].request().asked()).await.expect("it is not asked");
    drop(attention);
}

/// A task that was asked to move while it waited for a message may still begin that message. Its
/// permit to move then goes to another connection.
#[test]
fn a_permit_that_is_dropped_goes_to_another_connection() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let all = waiting(&scheduler, AT_ONCE + 1);
    let attention = all[0].begin_watching();
    scheduler.begin();
    assert!(has_permit(&all[0]) && !has_permit(&all[AT_ONCE]));
    drop(attention);
    assert!(!has_permit(&all[0]) && has_permit(&all[AT_ONCE]));
    assert!(all[0].request().carry_requested());
}

/// A busy connection may declare that it cannot move (opt out). Neither this attempt to move all
/// connections nor a later one waits for it, and its task is woken.
#[tokio::test]
async fn a_round_does_not_wait_for_a_busy_connection_that_opts_out() {
    let scheduler: Arc<CarryScheduler> = Arc::default();
    let [early, late] = [(), ()].map(|()| CarrySlot::new(Arc::clone(&scheduler)));
    [&early, &late].into_iter().for_each(CarrySlot::stop_watching);
    early.opt_out();
    scheduler.begin();
    assert!(early.request().is_refused() && !scheduler.lock().is_over());
    let mut refused = Box::pin(late.request().refused());
    assert!(timeout(Duration::ZERO, &mut refused).await.is_err());
    late.opt_out();
    timeout(Duration::from_secs(30), refused).await.expect("its task is not woken");
    assert!(scheduler.lock().is_over());
    scheduler.end();
    scheduler.begin();
    assert!(scheduler.lock().is_over());
}
