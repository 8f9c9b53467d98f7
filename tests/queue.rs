//! Tests that clients in a listener's backlog are served when a generation stops accepting.
//!
//! Frozen processes let a test fill the backlog: the kernel keeps accepting connections for them.

use std::io::Write;

use crate::support::{
    Client, Event, Gate, Line, SLOW_DRAIN, exit_code, freeze, raise_descriptor_limit, signal, thaw,
};
use nix::sys::signal::Signal;

/// More connections than an accept loop takes before it is told to stop, and fewer than
/// `somaxconn`.
const MANY: usize = 1_500;

/// Opens `count` connections that have sent their first request, as far as the kernel knows.
fn ask(address: &str, count: usize) -> Vec<(Client, Vec<u8>)> {
    raise_descriptor_limit();
    let clients = (0..count).map(|number| {
        let mut client = Client::connect(address).unwrap();
        let request = format!("request {number}").into_bytes();
        client.write_all(&request).unwrap();
        (client, request)
    });
    clients.collect()
}

/// Asserts that each client gets its reply and then an end of stream, because the server drains.
fn assert_answered_and_ended(clients: Vec<(Client, Vec<u8>)>) {
    for (mut client, request) in clients {
        client.expect(&request).unwrap();
        client.expect_end().unwrap();
    }
}

#[test]
fn the_successor_serves_the_backlog_at_a_handoff() {
    let line = Line::serve(&[&["--bake", "60s"][..], &SLOW_DRAIN].concat());
    let address = line.address();
    // This client keeps the old generation alive, however long it takes to freeze it.
    let mut held = line.hold();
    line.signal(1, Signal::SIGHUP);
    let successor = line.pid_of(2);
    line.wait_for(1, Event::SuccessorReady);
    freeze(successor);
    freeze(line.first_pid());
    // No process accepts now. The old generation wakes up only to retire, with a full backlog. A
    // stop during the bake makes it retire at once.
    let mut clients = ask(&address, MANY);
    line.signal(1, Signal::SIGTERM);
    thaw(line.first_pid());
    line.wait_for(1, Event::DrainStarted.with("why", "retiring"));
    clients.extend(ask(&address, 100));
    thaw(successor);
    for (client, request) in &mut clients {
        client.expect(request).unwrap();
    }
    drop(clients);
    held.echo(b"here at last").unwrap();
    held.expect_end().unwrap();
    drop(held);
    assert_eq!(line.exit_code(1), 0);
    line.signal(2, Signal::SIGTERM);
    assert_eq!(exit_code(successor), 0);
}

#[test]
fn the_backlog_outlives_the_process_that_opened_it() {
    let line = Line::serve(&["--bake", "0"]);
    let address = line.address();
    line.hand_over_from(1);
    let successor = line.pid_of(2);
    assert_eq!(line.exit_code(1), 0);
    freeze(successor);
    let mut clients = ask(&address, MANY);
    thaw(successor);
    for (client, request) in &mut clients {
        client.echo(b"").and_then(|()| client.expect(request)).unwrap();
    }
}

#[test]
fn the_backlog_is_served_before_a_stop() {
    for address in ["127.0.0.1:0", "@"] {
        let line = Line::start_with(|command, folder| {
            let name = folder.file_name().unwrap().to_str().unwrap();
            command.args(["--listen", &address.replace('@', &format!("@{name}"))]);
        });
        let (pid, address) = (line.pid_of(1), line.address());
        freeze(pid);
        let clients = ask(&address, MANY);
        signal(pid, Signal::SIGTERM);
        thaw(pid);
        assert_answered_and_ended(clients);
        assert_eq!(line.exit_code(1), 0);
        let ended = line.wait_for(1, Event::GenerationEnded);
        assert_eq!(
            (ended.field("ended").unwrap().parse(), ended.field("cut")),
            (Ok(MANY), Some("0"))
        );
        assert!(Client::connect(&address).is_err());
    }
}

#[test]
fn the_backlog_of_a_removed_listener_is_served() {
    let line = Line::start_with(|command, _| {
        command.args([
            "--listen",
            "kept=127.0.0.1:0",
            "--listen",
            "given-up=127.0.0.1:0",
            "--bake",
            "0",
        ]);
    });
    let (kept, given_up) = (line.address_of("kept"), line.address_of("given-up"));
    let mut gate = Gate::before_successor(&line, "--log debug --bake 0 --listen kept=127.0.0.1:0");
    line.signal(1, Signal::SIGHUP);
    gate.wait(&line);
    freeze(line.first_pid());
    gate.open();
    line.pid_of(2);
    let clients = ask(&given_up, MANY);
    thaw(line.first_pid());
    assert_answered_and_ended(clients);
    assert_eq!(line.exit_code(1), 0);
    assert!(Client::connect(&given_up).is_err());
    Client::once(&kept, b"the other one stays").unwrap();
}
