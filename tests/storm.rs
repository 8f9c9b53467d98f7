//! Clients come as fast as they can while one generation after another hands over, and none of them
//! notices.
//!
//! Nothing is retried and every byte is verified (`support/storm.rs`). A connection that stays is
//! carried. Where it is drained instead, it is closed between two requests, by an end and not by a
//! reset. A request that crosses that close is counted apart.

use std::path::Path;

use crate::support::{Client, Event, Handoffs, Line, Record, Storm, Tally, exit_code};
use nix::sys::signal::Signal;

/// Old generations drain for as long as it takes; none is cut because there are too many, and no
/// client is closed because it took a while from its connection to its first request.
const LIMITS: [&str; 6] =
    ["--max-generations", "64", "--drain-timeout", "60s", "--first-request-grace", "60s"];

/// Starts a line on `address`, storms it through `handoffs`, stops it: what the clients met, and
/// the log.
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

/// Nothing lost, nobody cut, and nothing went wrong by the line's own account either.
fn assert_unnoticed(tally: &Tally, records: &[Record], handoffs: u64) {
    assert!(tally.losses.is_empty(), "{:?}", tally.losses);
    assert!(tally.short >= handoffs && tally.persistent >= handoffs, "hardly a storm: {tally:?}");
    let ended: Vec<&Record> =
        records.iter().filter(|record| record.is_event(Event::GenerationEnded)).collect();
    assert_eq!(ended.len() as u64, handoffs + 1);
    assert!(
        ended.iter().all(|record| record.field("cut") == Some("0")),
        "somebody was cut: {ended:?}"
    );
    let complaint = records.iter().find(|record| record.is_complaint());
    assert_eq!(complaint, None);
}

#[test]
fn two_hundred_handoffs_lose_nobody() {
    let (tally, records) = storm(&[], "127.0.0.1:0", "0", (8, 64), 200);
    assert_unnoticed(&tally, &records, 200);
    assert_eq!(tally.closed + tally.crossed, 0, "a connection was closed");
}

#[test]
fn handoffs_that_drain_lose_nobody() {
    let (tally, records) = storm(&["--no-carry"], "127.0.0.1:0", "0", (8, 64), 100);
    assert_unnoticed(&tally, &records, 100);
    assert!(tally.closed > 0, "no connection that stays was closed");
}

#[test]
fn handoffs_with_both_generations_accepting_lose_nobody() {
    let (tally, records) = storm(&[], "127.0.0.1:0", "200ms", (8, 64), 15);
    assert_unnoticed(&tally, &records, 15);
}

#[test]
fn handoffs_of_a_unix_socket_lose_nobody() {
    let (tally, records) = storm(&[], "FOLDER/socket", "0", (8, 64), 60);
    assert_unnoticed(&tally, &records, 60);
}

#[test]
fn a_request_that_crosses_the_close_of_an_idle_connection_was_not_taken_on() {
    let (mut tally, records) =
        storm(&["--log", "debug", "--no-carry"], "127.0.0.1:0", "0", (2, 64), 30);
    assert_unnoticed(&tally, &records, 30);
    // What a server has answered its client has verified: nothing was read and then dropped,
    // nothing sent in vain.
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
fn a_stop_at_full_load_comes_to_its_end_and_cuts_nobody() {
    let line = Line::serve(&LIMITS);
    let storm = Storm::start(&line.address(), 8, 8);
    line.hand_over_from(1);
    line.signal(2, Signal::SIGTERM);
    for generation in [1, 2] {
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!(line.wait_for(generation, Event::GenerationEnded).field("cut"), Some("0"));
    }
    // What comes after that is refused: nobody is left.
    storm.end();
    assert!(Client::connect(&line.address()).is_err());
}
