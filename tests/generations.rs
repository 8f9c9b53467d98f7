//! Overlapping generations: each lives as long as its clients need it, within the maximum number.

use std::path::Path;

use crate::support::{Client, Event, Gate, Handoffs, Line, Stuck, exit_code, signal};
use nix::sys::signal::Signal;

/// Starts a lineage on a Unix socket and on TCP; returns it with the socket's path.
fn line(arguments: &[&str]) -> (Line, String) {
    let line = Line::start_with(|command, folder| {
        let path = folder.join("socket");
        command.args(["--listen", path.to_str().unwrap(), "--listen", "tcp=127.0.0.1:0"]);
        command.args(["--bake", "0", "--drain-timeout", "1h"]).args(arguments);
    });
    line.wait_for(1, Event::GenerationServing);
    let path = line.address();
    (line, path)
}

/// Performs another handoff; on return, only the new active generation accepts.
fn hand_over(line: &Line, head: &mut Handoffs<'_>) {
    let old = head.generation;
    head.next();
    line.wait_for(old, Event::DrainStarted);
}

#[test]
fn a_busy_connection_outlives_many_handoffs() {
    let (line, path) = line(&["--max-generations", "64"]);
    let mut head = Handoffs::of(&line);
    let first = Stuck::on(&line, &line.address_of("tcp"));
    let mut clients = Vec::new();
    for _ in 0..40 {
        hand_over(&line, &mut head);
        clients.push(Stuck::on(&line, &path));
    }
    assert_eq!(line.processes().len(), 1 + clients.len());
    signal(head.pid, Signal::SIGTERM);
    // Every request that the server has read is answered. Over TCP, bytes still queued in the
    // client's kernel may arrive too late; these do not count as received.
    let answered = first.read_until_end();
    let record = line.wait_for(1, Event::ConnectionEnded);
    let number = |name| record.field(name).and_then(|value| value.parse::<usize>().ok()).unwrap();
    assert_eq!((number("received"), number("sent")), (answered, answered), "{record:?}");
    let ended = line.wait_for(1, Event::GenerationEnded);
    assert_eq!((ended.field("ended"), ended.field("cut")), (Some("1"), Some("0")), "{ended:?}");
    for (client, generation) in clients.into_iter().zip(2..) {
        client.read_to_end();
        let ended = line.wait_for(generation, Event::GenerationEnded);
        assert_eq!((ended.field("ended"), ended.field("cut")), (Some("1"), Some("0")), "{ended:?}");
    }
    line.wait_for_end();
}

/// Asserts that at most `bound` generations live: each one is held by a client, and the oldest is
/// cut to make room.
fn assert_bounded(bound: u64, arguments: &[&str]) {
    let (line, path) = line(arguments);
    let mut head = Handoffs::of(&line);
    let mut clients = vec![Stuck::on(&line, &path)];
    for _ in 1..bound {
        hand_over(&line, &mut head);
        clients.push(Stuck::on(&line, &path));
    }
    assert_eq!(line.processes().len() as u64, bound);
    assert_eq!(line.count(Event::DrainCutShort), 0);
    for cut in 1..=2 {
        hand_over(&line, &mut head);
        assert_eq!(line.exit_code(cut), 0);
        let ended = line.wait_for(cut, Event::GenerationEnded);
        assert_eq!((ended.field("ended"), ended.field("cut")), (Some("0"), Some("1")), "{ended:?}");
        clients.remove(0).expect_cut();
        clients.push(Stuck::on(&line, &path));
        assert_eq!(line.processes().len() as u64, bound);
    }
    assert_eq!(line.count(Event::DrainCutShort), 2);
    // The remaining connections have lost nothing.
    signal(head.pid, Signal::SIGTERM);
    clients.into_iter().for_each(Stuck::read_to_end);
    line.wait_for_end();
}

#[test]
fn the_number_of_generations_is_limited() {
    assert_bounded(3, &["--max-generations", "3"]);
}

#[test]
fn eight_generations_live_by_default() {
    assert_bounded(8, &[]);
}

/// A generation that ends during a handoff makes room for the new one, so no drain is cut short.
#[test]
fn a_generation_that_ends_during_a_handoff_makes_room() {
    let (line, path) = line(&["--max-generations", "3"]);
    let mut head = Handoffs::of(&line);
    let oldest = Stuck::on(&line, &path);
    hand_over(&line, &mut head);
    let second = Stuck::on(&line, &path);
    hand_over(&line, &mut head);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    signal(head.pid, Signal::SIGHUP);
    gate.wait(&line);
    second.read_to_end();
    assert_eq!(line.exit_code(2), 0);
    gate.open();
    line.wait_for(4, Event::GenerationServing);
    line.wait_for(4, Event::GenerationGone.with("ended", 2));
    assert_eq!(line.count(Event::DrainCutShort), 0, "{}", line.text());
    oldest.read_to_end();
    let ended = line.wait_for(1, Event::GenerationEnded);
    assert_eq!((ended.field("ended"), ended.field("cut")), (Some("1"), Some("0")), "{ended:?}");
}

#[test]
fn a_socket_path_is_removed_by_its_last_generation() {
    let (line, path) = line(&[]);
    let client = Stuck::on(&line, &path);
    let mut head = Handoffs::of(&line);
    head.next();
    client.read_to_end();
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
    signal(head.pid, Signal::SIGTERM);
    assert_eq!(exit_code(head.pid), 0);
    assert!(!Path::new(&path).exists());
}

#[test]
fn a_path_that_another_program_replaced_is_left_alone() {
    let (line, path) = line(&[]);
    let other = line.folder().join("other");
    std::fs::write(&other, "theirs").unwrap();
    std::fs::rename(&other, &path).unwrap();
    let mut head = Handoffs::of(&line);
    head.next();
    signal(head.pid, Signal::SIGTERM);
    line.wait_for_end();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
}

#[test]
fn a_removed_path_is_bound_again_by_the_next_generation() {
    let (line, path) = line(&[]);
    std::fs::remove_file(&path).unwrap();
    assert!(Client::connect(&path).is_err());
    let mut head = Handoffs::of(&line);
    head.next();
    Client::once(&path, b"back again").unwrap();
    signal(head.pid, Signal::SIGTERM);
    line.wait_for_end();
    assert!(!Path::new(&path).exists());
}

/// A predecessor's drain lasts longer than the stop of the active generation. The active one ends
/// last, and neither logs a warning.
#[test]
fn the_active_generation_outlives_a_longer_drain() {
    let (line, path) = line(&[]);
    let client = Stuck::on(&line, &path);
    let mut head = Handoffs::of(&line);
    hand_over(&line, &mut head);
    signal(head.pid, Signal::SIGTERM);
    line.wait_for(head.generation, Event::DrainStarted.with("why", "stopping"));
    client.read_to_end();
    assert_eq!(exit_code(head.pid), 0);
    let records = line.wait_for_end();
    let ended: Vec<_> =
        records.iter().filter(|record| record.is_event(Event::GenerationEnded)).collect();
    assert_eq!(
        ended.last().unwrap().generation,
        head.generation,
        "the active generation must end last"
    );
    let complaint = records.iter().find(|record| record.is_complaint());
    assert_eq!(complaint, None);
}
