//! Handoffs: a new program replaces the old one, and no client notices.

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, Operator, SLOW_DRAIN, exit_code, freeze, thaw};

#[test]
fn a_hangup_replaces_the_process_and_keeps_the_port() {
    let line = Line::serve(&["--bake", "0"]);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for_end();
    assert!(Client::connect(&line.address()).is_err());
}

/// Begins a handoff whose timeout is shorter than its bake, and waits until both generations
/// accept. Returns the waiting command and the successor's process id.
fn begin_in_vain(line: &Line) -> (Operator, u32) {
    let mark = line.mark();
    let reload = line.ask(&["reload", "--timeout", "3s"]);
    let ready = line.wait_since(mark, "a successor", |record| record.is(1, Event::SuccessorReady));
    (reload, ready.field("successor_pid").unwrap().parse().unwrap())
}

/// The handoff runs out of time. The successor drains its connections, and their counters are kept.
#[test]
fn a_cancelled_successor_drains_its_connections() {
    let line = Line::serve_controlled(&[&["--bake", "1h"][..], &SLOW_DRAIN].concat());
    let (reload, successor) = begin_in_vain(&line);
    // While the first generation is stopped, the successor accepts all connections.
    freeze(line.first_pid());
    let mut clients: Vec<_> = (0..100).map(|_| Client::connect(&line.address()).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.echo(b"there").unwrap());
    thaw(line.first_pid());
    reload.wait().names(75, &["within the requested 3 s"]);
    clients.iter_mut().for_each(|client| client.expect_end().unwrap());
    assert_eq!(exit_code(successor), 0);
    line.wait_for(2, Event::GenerationEnded.with("ended", 100).with("carried", 0).with("cut", 0));
    line.assert_serves();
    // The work of the cancelled successor is counted.
    let status: serde_json::Value =
        serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    assert_eq!(status["counters"]["listeners"]["listener-1"]["accepted"], 101);
}

#[test]
fn a_cancelled_successor_that_hangs_is_killed() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    let (reload, successor) = begin_in_vain(&line);
    freeze(successor);
    reload.wait().names(75, &["within the requested 3 s"]);
    assert_eq!(exit_code(successor), 128 + Signal::SIGKILL as i32);
    line.assert_serves();
}
