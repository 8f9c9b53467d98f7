//! Draining: every connection is told at once, busy connections may finish, and the drain timeout
//! ends the rest.

use crate::support::{Client, Event, Line, Record, Stuck, exit_code, raise_descriptor_limit};
use nix::sys::signal::Signal;

/// Returns how many connections of a generation ended by themselves, and how many were cut.
fn outcome(record: &Record) -> (usize, usize) {
    let number = |name| record.field(name).unwrap().parse().unwrap();
    (number("ended"), number("cut"))
}

/// Starts a lineage on a TCP and a Unix socket; returns it with both addresses.
fn line(arguments: &[&str]) -> (Line, String, String) {
    let line = Line::start_with(|command, folder| {
        let path = format!("unix={}", folder.join("socket").display());
        command
            .args(["--listen", "tcp=127.0.0.1:0", "--listen", &path, "--bake", "0"])
            .args(arguments);
    });
    line.wait_for(1, Event::GenerationServing);
    let (tcp, unix) = (line.address_of("tcp"), line.address_of("unix"));
    (line, tcp, unix)
}

/// Opens idle connections that have completed one request.
fn idle(address: &str, count: usize) -> Vec<Client> {
    let clients = (0..count).map(|_| {
        let mut client = Client::connect(address).unwrap();
        client.echo(b"hello").unwrap();
        client
    });
    clients.collect()
}

/// Opens a connection that sends nothing. A later client is served first, so this one has been
/// accepted too: the backlog is in order.
fn silent(address: &str) -> Client {
    let client = Client::connect(address).unwrap();
    Client::once(address, b"the next one").unwrap();
    client
}

/// Waits for the end of a drain in which no connection was cut: all connections counted at its
/// start ended by themselves. The count may include helper connections of the test that were still
/// closing.
fn assert_all_ended(line: &Line, generation: u64, at_least: usize) {
    let counted = line
        .wait_for(generation, Event::DrainStarted)
        .field("connections")
        .unwrap()
        .parse()
        .unwrap();
    assert!(counted >= at_least, "{counted} were counted");
    assert_eq!(outcome(&line.wait_for(generation, Event::GenerationEnded)), (counted, 0));
}

#[test]
fn a_generation_without_connections_ends_at_once() {
    let (line, _, _) = line(&["--drain-timeout", "1h", "--first-request-grace", "1h"]);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(outcome(&line.wait_for(1, Event::GenerationEnded)), (0, 0));
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(outcome(&line.wait_for(2, Event::GenerationEnded)), (0, 0));
}

#[test]
fn a_generation_ends_with_its_last_connection() {
    let (line, _, unix) = line(&["--drain-timeout", "1h"]);
    let client = Stuck::on(&line, &unix);
    line.hand_over_from(1);
    let draining = line.wait_for(1, Event::DrainStarted);
    assert_eq!(draining.field("connections"), Some("1"));
    assert_eq!(line.processes().len(), 2);
    client.read_to_end();
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(outcome(&line.wait_for(1, Event::GenerationEnded)), (1, 0));
}

#[test]
fn thousands_of_idle_connections_all_learn_of_the_drain() {
    // 5,000 at the handoff and 5,000 at the end: all tests share the usual limit of 20,000
    // descriptors.
    const MANY: usize = 5_000;
    raise_descriptor_limit();
    // The grace of one hour applies only to connections that have not sent their first request.
    let (line, tcp, _) = line(&["--drain-timeout", "1h", "--first-request-grace", "1h"]);
    for generation in 1..=2 {
        let mut clients = idle(&tcp, MANY);
        match generation {
            1 => line.hand_over_from(1),
            _ => line.signal(2, Signal::SIGTERM),
        }
        line.wait_for(generation, Event::DrainStarted);
        for client in &mut clients {
            client.expect_end().unwrap();
        }
        drop(clients);
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!(outcome(&line.wait_for(generation, Event::GenerationEnded)), (MANY, 0));
    }
}

#[test]
fn the_drain_timeout_cuts_and_counts_the_rest() {
    let (line, tcp, unix) = line(&["--drain-timeout", "1s", "--first-request-grace", "1h"]);
    let mut idle = idle(&tcp, 3);
    let (slow, vanished) = (Stuck::on(&line, &tcp), Stuck::on(&line, &unix));
    // Only a little work is left, so it finishes in time even if many tests share one processor.
    let mut quick = silent(&tcp);
    line.hand_over_from(1);
    quick.echo(b"here I am").unwrap();
    quick.expect_end().unwrap();
    drop(quick);
    for client in &mut idle {
        client.expect_end().unwrap();
    }
    drop(idle);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(outcome(&line.wait_for(1, Event::GenerationEnded)), (4, 2));
    assert_eq!(
        line.records().iter().filter(|record| record.field("ending") == Some("cut")).count(),
        2
    );
    slow.expect_cut();
    drop(vanished);
    line.assert_serves();
}

#[test]
fn the_drain_timeout_also_bounds_a_stop() {
    let (line, _, unix) = line(&["--drain-timeout", "1s"]);
    let old = Stuck::on(&line, &unix);
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    let young = Stuck::on(&line, &unix);
    line.signal(2, Signal::SIGTERM);
    for generation in [1, 2] {
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!(outcome(&line.wait_for(generation, Event::GenerationEnded)), (0, 1));
    }
    old.expect_cut();
    young.expect_cut();
}

#[test]
fn a_first_request_is_served_during_the_drain() {
    let (line, tcp, unix) = line(&["--drain-timeout", "1h", "--first-request-grace", "1h"]);
    for (generation, number) in [(1, Signal::SIGHUP), (2, Signal::SIGTERM)] {
        let mut clients = [silent(&tcp), silent(&unix)];
        line.signal(generation, number);
        line.wait_for(generation, Event::DrainStarted);
        for client in &mut clients {
            client.echo(b"here I am").unwrap();
            // After its first request the connection is closed like any other.
            client.expect_end().unwrap();
        }
        if generation == 1 {
            line.pid_of(2);
        }
        assert_eq!(line.exit_code(generation), 0);
        assert_all_ended(&line, generation, 2);
        line.wait("the next serving or ended generation", |record| {
            if generation == 1 {
                record.is(2, Event::GenerationServing)
            } else {
                record.is(2, Event::GenerationEnded)
            }
        });
    }
}

#[test]
fn a_silent_connection_is_closed_after_the_grace() {
    let (line, tcp, _) = line(&["--drain-timeout", "1h", "--first-request-grace", "300ms"]);
    let mut client = silent(&tcp);
    let pid = line.pid_of(1);
    line.signal(1, Signal::SIGTERM);
    client.expect_end().unwrap();
    assert_eq!(exit_code(pid), 0);
    assert_all_ended(&line, 1, 1);
}
