//! Tests of handoffs under full load: clients connect as fast as they can, and no client notices a
//! handoff.
//!
//! Nothing is retried and every byte is verified (`support/storm.rs`). Persistent connections are
//! carried. Where they are drained instead, they are closed between two requests, by an end of
//! stream and not by a reset. Requests that cross such a close are counted separately.

use std::path::Path;

use crate::support::{Client, Event, Handoffs, Line, Record, Storm, Tally, exit_code};
use nix::sys::signal::Signal;

/// Old generations have ample time to drain. The other limits are too high to close a client.
const LIMITS: [&str; 6] =
    ["--max-generations", "64", "--drain-timeout", "60s", "--first-request-grace", "60s"];

/// Starts a daemon on `address`, loads it during `handoffs`, and stops it. Returns what the clients
/// met, and the log.
fn storm(
    flags: &[&str],
    address: &str,
    bake: &str,
    clients: (usize, usize),
    handoffs: u64,
) -> (Tally, Vec<Record>) {
    let line = Line::start_program(Path::new(env!("CARGO_BIN_EXE_handoffd")), |command, folder| {
        command.args(flags);
        let address = address.replace("FOLDER", folder.to_str().unwrap());
        command.args(["--listen", &address, "--bake", bake]).args(LIMITS);
    });
    let address = line.address();
    let mut head = Handoffs::of(&line);
    line.wait_for(1, Event::GenerationServing);
    let storm = Storm::start(&address, clients.0, clients.1);
    for _ in 0..handoffs {
        head.next();
    }
    let tally = storm.end();
    crate::support::signal(head.pid, Signal::SIGTERM);
    assert_eq!(exit_code(head.pid), 0);
    let records = line.wait_for_end();
    println!(
        "{handoffs} handoffs, bake {bake}, on {address}: {} short connections, {} persistent requests, {} closed \
         between requests, {} crossed such a close, lost: {:?}",
        tally.short, tally.persistent, tally.closed, tally.crossed, tally.losses
    );
    (tally, records)
}

/// Asserts that no client lost anything, and that the log reports neither a cut nor an error.
fn assert_unnoticed(tally: &Tally, records: &[Record], handoffs: u64) {
    assert!(tally.losses.is_empty(), "{:?}", tally.losses);
    assert!(
        tally.short >= handoffs && tally.persistent >= handoffs,
        "too little traffic: {tally:?}"
    );
    let ended: Vec<&Record> =
        records.iter().filter(|record| record.is_event(Event::GenerationEnded)).collect();
    assert_eq!(ended.len() as u64, handoffs + 1);
    assert!(
        ended.iter().all(|record| record.field("cut") == Some("0")),
        "a connection was cut: {ended:?}"
    );
    let complaint = records.iter().find(|record| record.is_complaint());
    assert_eq!(complaint, None);
}

#[test]
fn two_hundred_handoffs_lose_no_connection() {
    let (tally, records) = storm(&[], "127.0.0.1:0", "0", (8, 64), 200);
    assert_unnoticed(&tally, &records, 200);
    assert_eq!(tally.closed + tally.crossed, 0, "a connection was closed");
}

#[test]
fn draining_handoffs_lose_no_connection() {
    let (tally, records) = storm(&["--no-carry"], "127.0.0.1:0", "0", (8, 64), 100);
    assert_unnoticed(&tally, &records, 100);
    assert!(tally.closed > 0, "no persistent connection was closed");
}

/// During the bake, both generations accept.
#[test]
fn handoffs_with_a_bake_lose_no_connection() {
    let (tally, records) = storm(&[], "127.0.0.1:0", "200ms", (8, 64), 15);
    assert_unnoticed(&tally, &records, 15);
}

#[test]
fn handoffs_of_a_unix_socket_lose_no_connection() {
    let (tally, records) = storm(&[], "FOLDER/socket", "0", (8, 64), 60);
    assert_unnoticed(&tally, &records, 60);
}

/// The old generation closes an idle connection while the client sends a request. The server must
/// not have read that request.
#[test]
fn a_request_that_crosses_a_close_was_never_processed() {
    let (mut tally, records) =
        storm(&["--log", "debug", "--no-carry"], "127.0.0.1:0", "0", (2, 64), 30);
    assert_unnoticed(&tally, &records, 30);
    // The clients verified every reply: the server read no request without answering it, and sent
    // no reply that was lost.
    let mut answered = Vec::new();
    for record in records.iter().filter(|record| record.is_event(Event::ConnectionEnded)) {
        let number = |name| record.field(name).and_then(|value| value.parse::<u64>().ok()).unwrap();
        assert_eq!(record.field("ending"), Some("finished"), "{record:?}");
        assert_eq!(number("received"), number("sent"), "{record:?}");
        answered.push((record.field("peer").unwrap().to_owned(), number("sent")));
    }
    answered.sort();
    tally.verified.sort();
    assert_eq!(answered, tally.verified);
}

#[test]
fn a_stop_at_full_load_cuts_no_connection() {
    let line = Line::serve(&LIMITS);
    let storm = Storm::start(&line.address(), 8, 8);
    line.hand_over_from(1);
    line.signal(2, Signal::SIGTERM);
    for generation in [1, 2] {
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!(line.wait_for(generation, Event::GenerationEnded).field("cut"), Some("0"));
    }
    // Later connections are refused, because no process is left.
    storm.end();
    assert!(Client::connect(&line.address()).is_err());
}
