//! A drain tells every connection at once, waits for those in the middle of something, and ends at
//! its deadline.

use crate::support::{Client, Event, Line, Record, Stuck, exit_code, raise_descriptor_limit};
use nix::sys::signal::Signal;

/// How the connections of a generation ended, by its own account: by themselves, and cut.
fn outcome(record: &Record) -> (usize, usize) {
    let number = |name| record.field(name).unwrap().parse().unwrap();
    (number("ended"), number("cut"))
}

/// A line on a TCP and a Unix socket, and their addresses.
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

/// Connections that have had one request answered, and are idle.
fn idle(address: &str, count: usize) -> Vec<Client> {
    let clients = (0..count).map(|_| {
        let mut client = Client::connect(address).unwrap();
        client.echo(b"hello").unwrap();
        client
    });
    clients.collect()
}

/// A connection that has been accepted and has said nothing: connections are accepted in the order
/// in which they come.
fn silent(address: &str) -> Client {
    let client = Client::connect(address).unwrap();
    Client::once(address, b"the next one").unwrap();
    client
}

/// Waits for the end of a drain in which nobody was cut: all that were counted when it began have
/// ended by themselves. Those that showed that others were accepted have heard their end, and may
/// still be among them.
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
fn a_generation_without_connections_is_gone_at_once() {
    let (line, _, _) = line(&["--drain-timeout", "1h", "--first-request-grace", "1h"]);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(outcome(&line.wait_for(1, Event::GenerationEnded)), (0, 0));
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(outcome(&line.wait_for(2, Event::GenerationEnded)), (0, 0));
}

#[test]
fn a_generation_with_one_connection_is_gone_with_it() {
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
fn thousands_of_idle_connections_are_all_told_and_none_is_forgotten() {
    // 5,000 at a handoff and 5,000 at the end: the tests share the 20,000 descriptors that a
    // process often has at most.
    const MANY: usize = 5_000;
    raise_descriptor_limit();
    // An hour of grace for who has not spoken yet is none for who has.
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
fn what_is_left_at_the_deadline_is_cut_and_counted() {
    let (line, tcp, unix) = line(&["--drain-timeout", "1s", "--first-request-grace", "1h"]);
    let mut idle = idle(&tcp, 3);
    let (slow, vanished) = (Stuck::on(&line, &tcp), Stuck::on(&line, &unix));
    // It has little left to do, and does it within the deadline also where many tests share one
    // processor.
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
fn a_line_that_stops_is_bounded_by_the_deadline_too() {
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
fn who_has_not_spoken_when_the_drain_begins_may_still_do_so() {
    let (line, tcp, unix) = line(&["--drain-timeout", "1h", "--first-request-grace", "1h"]);
    for (generation, number) in [(1, Signal::SIGHUP), (2, Signal::SIGTERM)] {
        let mut clients = [silent(&tcp), silent(&unix)];
        line.signal(generation, number);
        line.wait_for(generation, Event::DrainStarted);
        for client in &mut clients {
            client.echo(b"here I am").unwrap();
            // One request, and then it is a connection like any other.
            client.expect_end().unwrap();
        }
        if generation == 1 {
            line.pid_of(2);
        }
        assert_eq!(line.exit_code(generation), 0);
        assert_all_ended(&line, generation, 2);
        line.wait("who serves", |record| {
            if generation == 1 {
                record.is(2, Event::GenerationServing)
            } else {
                record.is(2, Event::GenerationEnded)
            }
        });
    }
}

#[test]
fn who_says_nothing_within_the_grace_is_closed() {
    let (line, tcp, _) = line(&["--drain-timeout", "1h", "--first-request-grace", "300ms"]);
    let mut client = silent(&tcp);
    let pid = line.pid_of(1);
    line.signal(1, Signal::SIGTERM);
    client.expect_end().unwrap();
    assert_eq!(exit_code(pid), 0);
    assert_all_ended(&line, 1, 1);
}
