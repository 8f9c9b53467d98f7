//! Tests of signals: each signal has one effect in every state, however many arrive and whichever
//! generation receives them.
//!
//! A bake of a minute keeps the successor on probation. A script at a gate delays the start. A
//! client that has sent nothing delays the drain. So each signal meets its intended state, and no
//! test waits for time to pass.

use std::io::Read;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::{Client, DEADLINE, Event, Gate, Line, SLOW_DRAIN, signal};

pub(crate) const BAKE: [&str; 2] = ["--bake", "60s"];
pub(crate) const NO_BAKE: [&str; 2] = ["--bake", "0"];

pub(crate) fn serve(bake: [&str; 2]) -> Line {
    Line::serve(&[&bake[..], &SLOW_DRAIN].concat())
}

/// Starts a daemon whose second generation is on probation. The client is connected to the first.
pub(crate) fn baking() -> (Line, Client) {
    let line = serve(BAKE);
    let held = line.hold();
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    (line, held)
}

/// Starts a daemon whose first generation drains until the client has sent a request. The second
/// generation serves.
pub(crate) fn draining() -> (Line, Client) {
    let line = serve(NO_BAKE);
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    (line, held)
}

/// Waits until the generation has logged `count` signals of that name.
fn wait_for_signals(line: &Line, generation: u64, name: &str, count: usize) {
    let seen = std::cell::Cell::new(0);
    line.wait(&format!("{count} {name}"), |record| {
        let is_one = record.is(generation, Event::SignalReceived.with("signal", name));
        seen.set(seen.get() + usize::from(is_one));
        seen.get() == count
    });
}

/// Asserts that the client gets a reply and then an end of stream: its connection was not cut.
pub(crate) fn assert_finishes(mut held: Client) {
    held.echo(b"here at last").unwrap();
    held.expect_end().unwrap();
}

/// Waits until no process listens any more. A connection that stays in a backlog would fail this.
pub(crate) fn assert_refuses(line: &Line) {
    let until = Instant::now() + DEADLINE;
    while Client::once(&line.address(), b"still served?").is_ok() {
        assert!(Instant::now() < until, "{}", line.text());
    }
    assert!(Client::connect(&line.address()).is_err(), "{}", line.text());
}

/// Stops the daemon through its newest generation, and returns how many handoffs were started.
fn handoffs_until_end(line: &Line, newest: u64) -> usize {
    line.signal(newest, Signal::SIGTERM);
    line.wait_for_end();
    line.count(Event::HandoffStarted)
}

/// The signal arrives before the successor has installed its handler. It starts one more handoff.
#[test]
fn a_hangup_before_the_handler_is_set_starts_a_handoff() {
    let line = serve(NO_BAKE);
    line.put_script(r#"kill -HUP $$; exec "$REAL" "$@""#);
    line.hand_over_from(1);
    line.wait_for(3, Event::GenerationServing);
    line.assert_serves();
    assert_eq!(handoffs_until_end(&line, 3), 2);
}

#[test]
fn a_hangup_right_after_ready_starts_a_handoff() {
    let line = serve(NO_BAKE);
    line.signal(1, Signal::SIGHUP);
    signal(line.wait_for(2, Event::GenerationAccepting).pid, Signal::SIGHUP);
    line.wait_for(3, Event::GenerationServing);
    line.assert_serves();
    assert_eq!(handoffs_until_end(&line, 3), 2);
}

#[test]
fn many_hangups_during_a_handoff_start_one_more() {
    let line = serve(NO_BAKE);
    let mut gate = Gate::new(&line);
    line.put_script(&format!("{}; exec \"$REAL\" \"$@\"", Gate::PASS));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(0, "at the gate");
    for _ in 0..100 {
        line.signal(1, Signal::SIGHUP);
    }
    wait_for_signals(&line, 1, "SIGHUP", 2);
    gate.open();
    line.wait_for(3, Event::GenerationServing);
    line.assert_serves();
    assert_eq!(handoffs_until_end(&line, 3), 2);
}

#[test]
fn a_hangup_during_a_failing_handoff_starts_another() {
    let line = serve(NO_BAKE);
    let mut gate = Gate::new(&line);
    line.put_script(&format!("{}; exit 1", Gate::PASS));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(0, "at the gate");
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::ReloadPending);
    line.put_real();
    gate.open();
    line.wait_for(2, Event::GenerationServing);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(handoffs_until_end(&line, 2), 2);
}

/// Hangups to both generations together start exactly one more handoff.
#[test]
fn hangups_during_the_bake_make_the_successor_hand_over() {
    let (line, held) = baking();
    line.signal(1, Signal::SIGHUP);
    line.signal(2, Signal::SIGHUP);
    wait_for_signals(&line, 1, "SIGHUP", 2);
    wait_for_signals(&line, 2, "SIGHUP", 1);
    assert_eq!(line.count(Event::HandoffStarted), 1);
    // This ends the bake, and the successor takes over.
    line.signal(1, Signal::SIGTERM);
    line.wait_for(2, Event::SuccessorReady);
    line.signal(2, Signal::SIGTERM);
    line.wait_for(3, Event::GenerationServing);
    line.assert_serves();
    assert_finishes(held);
    assert_eq!(handoffs_until_end(&line, 3), 2);
}

#[test]
fn a_hangup_to_a_draining_generation_is_ignored() {
    let (line, held) = draining();
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::ReloadIgnored);
    assert_finishes(held);
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
    assert_eq!(handoffs_until_end(&line, 2), 1);
}

#[test]
fn signals_that_the_parent_blocked_are_handled() {
    let blocked = ["env", "--block-signal=HUP,TERM,INT,QUIT"];
    for number in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let line = Line::start_under(&blocked, |command, _| {
            command.args(["--listen", "127.0.0.1:0"]);
        });
        line.wait_for(1, Event::GenerationServing);
        line.signal(1, number);
        assert_eq!(line.exit_code(1), 0, "{number}");
    }
}

#[test]
fn a_second_terminate_changes_nothing() {
    let line = serve(NO_BAKE);
    let held = line.hold();
    for count in 1..=2 {
        line.signal(1, Signal::SIGTERM);
        wait_for_signals(&line, 1, "SIGTERM", count);
    }
    assert!(Client::connect(&line.address()).is_err());
    assert_finishes(held);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for(1, Event::GenerationEnded.with("cut", 0));
}

#[test]
fn the_first_interrupt_drains_and_the_second_cuts() {
    let line = serve(NO_BAKE);
    let mut held = line.hold();
    line.signal(1, Signal::SIGINT);
    line.wait_for(1, Event::DrainStarted);
    line.signal(1, Signal::SIGINT);
    assert_eq!(line.exit_code(1), 0);
    assert_ne!(line.wait_for(1, Event::GenerationEnded).field("cut"), Some("0"), "{}", line.text());
    assert!(matches!(held.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn a_quit_cuts_at_once_in_every_state() {
    let line = serve(NO_BAKE);
    let held = line.hold();
    line.signal(1, Signal::SIGQUIT);
    assert_eq!(line.exit_code(1), 0);
    assert_ne!(line.wait_for(1, Event::GenerationEnded).field("cut"), Some("0"), "{}", line.text());
    drop(held);

    let (line, held) = draining();
    line.signal(1, Signal::SIGQUIT);
    assert_eq!(line.exit_code(1), 0);
    assert_ne!(line.wait_for(1, Event::GenerationEnded).field("cut"), Some("0"), "{}", line.text());
    drop(held);
    line.assert_serves();

    // To the old generation during the bake: the successor takes over. Then to the successor.
    let (line, _held) = baking();
    line.signal(1, Signal::SIGQUIT);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for(2, Event::GenerationServing);
    line.assert_serves();
    line.signal(2, Signal::SIGQUIT);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for_end();

    // To the successor during the bake: the old generation keeps serving.
    let (line, _held) = baking();
    line.signal(2, Signal::SIGQUIT);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for(1, Event::HandoffFailed);
    line.assert_serves();
}

#[test]
fn a_hangup_after_a_terminate_is_ignored() {
    let line = serve(NO_BAKE);
    let held = line.hold();
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted);
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::ReloadIgnored);
    assert_finishes(held);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
    assert_eq!(line.count(Event::HandoffStarted), 0);
}

#[test]
fn a_terminate_right_after_a_hangup_ends_the_daemon() {
    for _ in 0..5 {
        let line = serve(NO_BAKE);
        line.signal(1, Signal::SIGHUP);
        wait_for_signals(&line, 1, "SIGHUP", 1);
        line.signal(1, Signal::SIGTERM);
        assert_eq!(line.exit_code(1), 0);
        // If the successor has already taken over, only the old generation was told to stop.
        if line
            .wait_since_or_end(0, "a successor", |record| record.is(2, Event::GenerationServing))
            .is_some()
        {
            line.assert_serves();
            line.signal(2, Signal::SIGTERM);
        }
        line.wait_for_end();
    }
}
