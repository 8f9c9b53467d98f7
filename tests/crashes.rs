//! Whichever generation dies, and whenever, the other serves, and nobody but the dead one's callers
//! is hurt.
//!
//! Here the states in which it may die are held still and told apart; `instants` kills at as many
//! instants as there are.

use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::support::{
    Callers, Calls, Client, Event, Gate, Line, SLOW_DRAIN, assert_becomes, exit_code, freeze,
    signal,
};

const CALLERS: usize = 3;
const KILLED: i32 = 128 + Signal::SIGKILL as i32;

fn serve(bake: &str) -> Line {
    Line::serve(&[&["--bake", bake][..], &SLOW_DRAIN].concat())
}

/// Kills what serves under that number as the latest, and waits for its end.
fn kill(line: &Line, generation: u64) {
    let pid = line.pid_of(generation);
    signal(pid, Signal::SIGKILL);
    assert_eq!(exit_code(pid), KILLED);
}

/// Nobody was refused, and of each caller one call at most was with the one that was killed.
fn assert_unhurt(calls: Calls) {
    assert_eq!(calls.refused, 0, "{calls:?}");
    assert!(calls.broken <= CALLERS && calls.served > 0, "{calls:?}");
}

/// Has it hand over to a next one, which serves: it is the head of the line in every respect.
fn assert_hands_over(line: &Line, generation: u64, pid: u32) {
    let mark = line.mark();
    signal(pid, Signal::SIGHUP);
    line.wait_since(mark, "the successor is ready", |record| {
        record.is(generation, Event::SuccessorReady)
    });
    // Ends a bake, if there is one.
    signal(pid, Signal::SIGTERM);
    line.wait_since(mark, "the next head", |record| {
        record.is(generation + 1, Event::GenerationServing)
    });
    line.assert_serves();
}

#[test]
fn a_successor_that_dies_during_the_bake_is_rolled_back_and_nobody_is_refused() {
    let line = serve("60s");
    let callers = Callers::start(&line.address(), CALLERS);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.wait_for(2, Event::ConnectionEnded);
    kill(&line, 2);
    let failure = line.wait_for(1, Event::HandoffFailed);
    assert!(failure.text.contains("the successor ended after it was ready"), "{}", failure.text);
    assert_unhurt(callers.finish());
    assert_hands_over(&line, 1, line.first_pid());
}

#[test]
fn without_a_supervisor_a_draining_generation_accepts_again_when_its_successor_dies() {
    let line = serve("0");
    let mut held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    let callers = Callers::start(&line.address(), CALLERS);
    line.wait_for(2, Event::ConnectionEnded);
    let mark = line.mark();
    kill(&line, 2);
    line.wait_since(mark, "accepting again", |record| record.is(1, Event::GenerationResumed));
    line.wait_since(mark, "serving", |record| record.is(1, Event::GenerationServing));
    assert_unhurt(callers.finish());
    held.echo(b"still here").unwrap();
    assert_hands_over(&line, 1, line.first_pid());
    line.wait_for(1, Event::GenerationEnded);
}

#[test]
fn with_a_supervisor_a_draining_generation_leaves_the_line_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let line = Line::start_with(|command, _| {
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "0"])
            .args(SLOW_DRAIN)
            .env("NOTIFY_SOCKET", &path);
    });
    line.wait_for(1, Event::GenerationServing);
    let mut held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    kill(&line, 2);
    line.wait_for(1, Event::SuccessorDied);
    held.echo(b"still here").unwrap();
    held.expect_end().unwrap();
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
    assert_eq!(line.count(Event::GenerationResumed), 0);
    // The manager keeps the socket for the next process; without it nobody does.
    Client::connect(&line.address()).unwrap();
    drop(manager);
    assert_becomes(&true, || Client::connect(&line.address()).is_err());
}

#[test]
fn a_generation_that_was_told_to_stop_does_not_accept_again() {
    let line = serve("0");
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::SignalReceived.with("signal", "SIGTERM"));
    line.assert_serves();
    kill(&line, 2);
    line.wait_for(1, Event::HandoffFailed);
    drop(held);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
    assert!(Client::connect(&line.address()).is_err());
    assert_eq!(line.count(Event::GenerationResumed), 0);
}

/// A line whose third generation serves, and the clients for whom the first and the second still
/// drain.
fn three_generations() -> (Line, Client, Client) {
    let line = serve("0");
    let first = line.hold();
    line.hand_over_from(1);
    // The first one accepts no more: it is the second that holds.
    line.wait_for(1, Event::DrainStarted);
    let second = line.hold();
    line.hand_over_from(2);
    line.wait_for(2, Event::DrainStarted);
    (line, first, second)
}

#[test]
fn of_three_generations_the_eldest_accepts_again_when_both_younger_ones_die() {
    let (line, first, second) = three_generations();
    // The one in the middle: nothing changes for anybody else.
    kill(&line, 2);
    drop(second);
    line.wait_for(3, Event::GenerationGone);
    line.assert_serves();
    assert_eq!(line.count(Event::GenerationResumed), 0);
    let mark = line.mark();
    kill(&line, 3);
    line.wait_since(mark, "accepting again", |record| record.is(1, Event::GenerationResumed));
    line.assert_serves();
    drop(first);
    assert_hands_over(&line, 1, line.first_pid());
}

#[test]
fn of_three_generations_the_middle_one_accepts_again_when_the_youngest_dies() {
    let (line, first, second) = three_generations();
    let mark = line.mark();
    kill(&line, 3);
    line.wait_since(mark, "accepting again", |record| record.is(2, Event::GenerationResumed));
    line.assert_serves();
    drop((first, second));
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(
        line.records().iter().filter(|record| record.is(1, Event::GenerationResumed)).count(),
        0
    );
    assert_hands_over(&line, 2, line.pid_of(2));
}

#[test]
fn a_predecessor_that_dies_before_the_successor_is_ready_leaves_the_line_to_it() {
    let line = serve("60s");
    let mut gate = Gate::new(&line);
    line.put_script(&format!("{}; exec \"$REAL\" \"$@\"", Gate::PASS));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(0, "at the gate");
    kill(&line, 1);
    // Nobody accepts now, and nobody is refused: they wait.
    let callers = Callers::start(&line.address(), CALLERS);
    gate.open();
    line.wait_for(2, Event::GenerationServing);
    assert_eq!(callers.finish().broken, 0);
    line.assert_serves();
    assert_hands_over(&line, 2, line.pid_of(2));
}

#[test]
fn a_predecessor_that_dies_during_the_bake_leaves_the_line_to_the_successor() {
    let line = serve("60s");
    let callers = Callers::start(&line.address(), CALLERS);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.wait_for(2, Event::ConnectionEnded);
    kill(&line, 1);
    line.wait_for(2, Event::GenerationServing);
    assert_unhurt(callers.finish());
    assert_hands_over(&line, 2, line.pid_of(2));
}

#[test]
fn a_predecessor_that_dies_while_it_drains_hurts_none_but_its_own() {
    let line = serve("0");
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    let callers = Callers::start(&line.address(), CALLERS);
    line.wait_for(2, Event::ConnectionEnded);
    kill(&line, 1);
    line.wait_for(2, Event::GenerationDied.with("died", 1));
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0));
    drop(held);
    assert_hands_over(&line, 2, line.pid_of(2));
}

#[test]
fn a_generation_that_dies_before_the_head_has_heard_it_is_missed_all_the_same() {
    let line = Line::serve_controlled(&[&["--bake", "0"][..], &SLOW_DRAIN].concat());
    let held = line.hold();
    let accepted = || {
        let status: serde_json::Value =
            serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
        status["counters"]["listeners"]["listener-1"]["accepted"].as_u64().unwrap()
    };
    line.hand_over_from(1);
    line.wait_for(2, Event::GenerationServing);
    // Before it answers, it has heard its predecessor.
    let before = accepted();
    freeze(line.pid_of(1));
    line.hand_over_from(2);
    line.wait_for(3, Event::GenerationServing);
    kill(&line, 1);
    let missed = line.wait_for(3, Event::GenerationDied.with("died", 1).with("open", 1));
    assert!(missed.text.starts_with("ERROR"), "{missed:?}");
    // Nor is forgotten what it had done.
    assert_eq!(accepted(), before);
    drop(held);
}

#[test]
fn a_generation_that_ends_in_order_is_missed_by_no_head_after_it() {
    let line = Line::serve_controlled(&[&["--bake", "0"][..], &SLOW_DRAIN].concat());
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(2, Event::GenerationServing);
    // The next one is born with a channel to it, and hears it only when it is gone.
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    line.signal(2, Signal::SIGHUP);
    gate.wait(&line);
    drop(held);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for(2, Event::GenerationGone);
    gate.open();
    line.wait_for(3, Event::GenerationGone.with("ended", 1));
    line.assert_serves();
    assert_eq!(line.count(Event::GenerationDied), 0, "{}", line.text());
}

#[test]
fn a_hangup_survives_the_predecessor_that_a_successor_on_probation_has_lost() {
    let line = serve("60s");
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(2, Signal::SIGHUP);
    line.wait_for(2, Event::SignalReceived.with("signal", "SIGHUP"));
    kill(&line, 1);
    line.wait_for(2, Event::SuccessorReady);
    line.assert_serves();
}
