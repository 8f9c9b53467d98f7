//! Whoever is in the queue of a listener when a generation stops accepting is served all the same.
//!
//! Frozen processes fill a queue at will: the kernel goes on taking connections for them.

use std::io::Write;

use crate::support::{
    Client, Event, Gate, Line, SLOW_DRAIN, exit_code, freeze, raise_descriptor_limit, signal, thaw,
};
use nix::sys::signal::Signal;

/// More than an accept loop takes before it hears that it is to stop, and less than `somaxconn`.
const MANY: usize = 1_500;

/// Connections that have sent their first request, as far as the kernel is concerned.
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

/// Each gets its reply, and then the server's end, for it drains.
fn assert_answered_and_ended(clients: Vec<(Client, Vec<u8>)>) {
    for (mut client, request) in clients {
        client.expect(&request).unwrap();
        client.expect_end().unwrap();
    }
}

#[test]
fn who_waits_in_the_queue_at_a_handoff_is_served_by_the_successor() {
    let line = Line::serve(&[&["--bake", "300ms"][..], &SLOW_DRAIN].concat());
    let address = line.address();
    // Somebody who keeps the old one alive, however long it takes to freeze it.
    let mut held = line.hold();
    line.signal(1, Signal::SIGHUP);
    let successor = line.pid_of(2);
    line.wait_for(1, Event::SuccessorReady);
    freeze(successor);
    freeze(line.first_pid());
    // Nobody accepts. The old one wakes up only to retire, with a full queue before it.
    let mut clients = ask(&address, MANY);
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
fn a_queue_outlives_the_process_that_opened_the_listener() {
    let line = Line::serve(&["--bake", "200ms"]);
    let address = line.address();
    line.signal(1, Signal::SIGHUP);
    let successor = line.pid_of(2);
    line.wait_for(1, Event::SuccessorReady);
    freeze(successor);
    assert_eq!(line.exit_code(1), 0);
    let mut clients = ask(&address, MANY);
    thaw(successor);
    for (client, request) in &mut clients {
        client.echo(b"").and_then(|()| client.expect(request)).unwrap();
    }
}

#[test]
fn who_waits_in_the_queue_when_the_line_is_told_to_stop_is_served() {
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
fn who_waits_in_the_queue_of_a_listener_that_is_given_up_is_served() {
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
