//! Crashes of one generation: the other keeps serving, and only clients of the dead generation are
//! affected.
//!
//! These tests stop the generations in each state in which they can die; `instants` kills at as
//! many instants as possible.

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

/// Kills the process of `generation`, and waits for its end.
fn kill(line: &Line, generation: u64) {
    let pid = line.pid_of(generation);
    signal(pid, Signal::SIGKILL);
    assert_eq!(exit_code(pid), KILLED);
}

/// Asserts that no call was refused and that at most one call of each client was broken by the
/// kill.
fn assert_unhurt(calls: Calls) {
    assert_eq!(calls.refused, 0, "{calls:?}");
    assert!(calls.broken <= CALLERS && calls.served > 0, "{calls:?}");
}

/// Asserts that this generation is fully active: it serves, and hands over to a successor.
fn assert_hands_over(line: &Line, generation: u64, pid: u32) {
    let mark = line.mark();
    signal(pid, Signal::SIGHUP);
    line.wait_since(mark, "the successor is ready", |record| {
        record.is(generation, Event::SuccessorReady)
    });
    // Ends the bake, if one is in progress.
    signal(pid, Signal::SIGTERM);
    line.wait_since(mark, "the next active generation", |record| {
        record.is(generation + 1, Event::GenerationServing)
    });
    line.assert_serves();
}

/// The predecessor stands by during the bake and takes over again; no client is refused.
#[test]
fn a_successor_that_dies_in_the_bake_is_rolled_back() {
    let line = serve("60s");
    let callers = Callers::start(&line.address(), CALLERS);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.wait_for(2, Event::ConnectionEnded);
    kill(&line, 2);
    let failure = line.wait_for(1, Event::HandoffFailed);
    assert_eq!(failure.field("failure"), Some("ended-late"), "{failure:?}");
    assert_unhurt(callers.finish());
    assert_hands_over(&line, 1, line.first_pid());
}

#[test]
fn a_draining_generation_resumes_without_a_supervisor() {
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

/// Starts a daemon under a service manager, whose socket is returned.
fn supervised() -> (Line, UnixDatagram) {
    let mut manager = None;
    let line = Line::start_with(|command, folder| {
        let path = folder.join("notify");
        manager = Some(UnixDatagram::bind(&path).unwrap());
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "0"])
            .args(SLOW_DRAIN)
            .env("NOTIFY_SOCKET", &path);
    });
    line.wait_for(1, Event::GenerationServing);
    (line, manager.unwrap())
}

/// A supervisor restarts the daemon, so the draining generation does not accept again.
#[test]
fn a_draining_generation_leaves_the_restart_to_a_supervisor() {
    let (line, manager) = supervised();
    let mut held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    kill(&line, 2);
    line.wait_for(1, Event::SuccessorDied);
    held.echo(b"still here").unwrap();
    held.expect_end().unwrap();
    assert_eq!(line.exit_code(1), 71);
    line.wait_for_end();
    assert_eq!(line.count(Event::GenerationResumed), 0);
    // Only the service manager still keeps the socket, for the next process.
    Client::connect(&line.address()).unwrap();
    drop(manager);
    assert_becomes(&true, || Client::connect(&line.address()).is_err());
}

/// The supervisor reads no message, so for it the first generation is still the main process. That
/// generation has no connections, and must not end as if all were well.
#[test]
fn a_crash_before_the_supervisor_knows_of_it_is_a_failure() {
    let (line, _manager) = supervised();
    line.hand_over_from(1);
    line.wait_for(2, Event::GenerationServing);
    kill(&line, 2);
    assert_eq!(line.exit_code(1), 71);
    assert_eq!(line.count(Event::GenerationResumed), 0);
}

/// The stop request of the service manager reaches the successor before the commit does. The script
/// is such a successor.
#[test]
fn a_successor_told_to_stop_at_the_commit_has_not_died() {
    let (line, _manager) = supervised();
    let mut held = line.hold();
    let mut gate = Gate::new(&line);
    let packet = |kind| format!(r"say 'VERSION=2\nKIND={kind}\n'");
    line.put_script(&[packet("ready"), Gate::PASS.to_owned(), packet("rollback")].join("; "));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::DrainStarted);
    gate.wait(&line);
    gate.open();
    line.wait_for(1, Event::SuccessorStopped);
    held.echo(b"still here").unwrap();
    held.expect_end().unwrap();
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(line.count(Event::SuccessorDied) + line.count(Event::GenerationResumed), 0);
}

/// The successor is ready, and then hangs. It must not take over.
#[test]
fn a_successor_that_hangs_in_the_bake_is_killed() {
    let line = serve("3s");
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    freeze(line.pid_of(2));
    let failed = line.wait_for(1, Event::HandoffFailed);
    assert_eq!(failed.field("failure"), Some("unresponsive"), "{failed:?}");
    assert_becomes(&vec![line.pid_of(1)], || line.processes());
    line.assert_serves();
}

#[test]
fn a_stopping_generation_does_not_resume() {
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

/// Starts a lineage whose third generation serves. Returns it with the two clients for which the
/// first and the second generation still drain.
fn three_generations() -> (Line, Client, Client) {
    let line = serve("0");
    let first = line.hold();
    line.hand_over_from(1);
    // The first generation no longer accepts: this client holds the second one.
    line.wait_for(1, Event::DrainStarted);
    let second = line.hold();
    line.hand_over_from(2);
    line.wait_for(2, Event::DrainStarted);
    (line, first, second)
}

#[test]
fn the_oldest_generation_resumes_when_both_younger_ones_die() {
    let (line, first, second) = three_generations();
    // When the middle generation dies, nothing changes for the others.
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
fn the_middle_generation_resumes_when_the_youngest_dies() {
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

/// The starting successor has inherited the listening sockets, and becomes the active generation.
#[test]
fn a_predecessor_may_die_before_its_successor_is_ready() {
    let line = serve("60s");
    let mut gate = Gate::new(&line);
    line.put_script(&format!("{}; exec \"$REAL\" \"$@\"", Gate::PASS));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(0, "at the gate");
    kill(&line, 1);
    // No generation accepts now, but no client is refused: they wait in the backlog.
    let callers = Callers::start(&line.address(), CALLERS);
    gate.open();
    line.wait_for(2, Event::GenerationServing);
    assert_eq!(callers.finish().broken, 0);
    line.assert_serves();
    assert_hands_over(&line, 2, line.pid_of(2));
}

/// The successor on probation becomes the active generation at once.
#[test]
fn a_predecessor_may_die_in_the_bake() {
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
fn a_predecessor_that_dies_draining_loses_only_its_clients() {
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

/// The generation dies before the active one has received its messages. The active generation
/// reports the loss and keeps the dead one's counters.
#[test]
fn a_generation_that_dies_unnoticed_is_still_reported() {
    let line = Line::serve_controlled(&[&["--bake", "0"][..], &SLOW_DRAIN].concat());
    let held = line.hold();
    let accepted = || {
        let status: serde_json::Value =
            serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
        status["counters"]["listeners"]["listener-1"]["accepted"].as_u64().unwrap()
    };
    line.hand_over_from(1);
    line.wait_for(2, Event::GenerationServing);
    // Before the second generation replies, it has received its predecessor's messages.
    let before = accepted();
    freeze(line.pid_of(1));
    line.hand_over_from(2);
    line.wait_for(3, Event::GenerationServing);
    kill(&line, 1);
    let missed = line.wait_for(3, Event::GenerationDied.with("died", 1).with("open", 1));
    assert!(missed.text.starts_with("ERROR"), "{missed:?}");
    // The counters of the dead generation are kept.
    assert_eq!(accepted(), before);
    drop(held);
}

#[test]
fn a_generation_that_ends_normally_is_not_reported_dead() {
    let line = Line::serve_controlled(&[&["--bake", "0"][..], &SLOW_DRAIN].concat());
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(2, Event::GenerationServing);
    // The next generation starts with a channel to the old one, but reads it only after the old one
    // has ended.
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
fn a_pending_reload_survives_the_predecessors_death() {
    let line = serve("60s");
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(2, Signal::SIGHUP);
    line.wait_for(2, Event::SignalReceived.with("signal", "SIGHUP"));
    kill(&line, 1);
    line.wait_for(2, Event::SuccessorReady);
    line.assert_serves();
}
