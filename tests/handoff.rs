//! A handoff puts the new program in place of the old one, and nobody who connects notices.

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, Operator, SLOW_DRAIN, exit_code, freeze, thaw};

#[test]
fn a_hangup_replaces_the_process_and_the_port_stays() {
    let line = Line::serve(&["--bake", "0"]);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for_end();
    assert!(Client::connect(&line.address()).is_err());
}

/// Begins a handoff that is not given the time for its bake, and waits until both accept: who
/// asked, and the successor.
fn begin_in_vain(line: &Line) -> (Operator, u32) {
    let mark = line.mark();
    let reload = line.ask(&["reload", "--timeout", "3s"]);
    let ready = line.wait_since(mark, "a successor", |record| record.is(1, Event::SuccessorReady));
    (reload, ready.field("successor_pid").unwrap().parse().unwrap())
}

#[test]
fn a_successor_that_is_taken_back_for_want_of_time_drains_what_it_has_accepted() {
    let line = Line::serve_controlled(&[&["--bake", "1h"][..], &SLOW_DRAIN].concat());
    let (reload, successor) = begin_in_vain(&line);
    // So that the new one has all of them.
    freeze(line.first_pid());
    let mut clients: Vec<_> = (0..100).map(|_| Client::connect(&line.address()).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.echo(b"there").unwrap());
    thaw(line.first_pid());
    reload.wait().names(75, &["not done within 3 s"]);
    clients.iter_mut().for_each(|client| client.expect_end().unwrap());
    assert_eq!(exit_code(successor), 0);
    line.wait_for(2, Event::GenerationEnded.with("ended", 100).with("carried", 0).with("cut", 0));
    line.assert_serves();
    // What it has done is counted.
    let status: serde_json::Value =
        serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    assert_eq!(status["counters"]["listeners"]["listener-1"]["accepted"], 101);
}

#[test]
fn a_successor_that_hangs_when_it_is_taken_back_is_killed() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    let (reload, successor) = begin_in_vain(&line);
    freeze(successor);
    reload.wait().names(75, &["not done within 3 s"]);
    assert_eq!(exit_code(successor), 128 + Signal::SIGKILL as i32);
    line.assert_serves();
}
