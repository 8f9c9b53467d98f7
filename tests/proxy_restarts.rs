//! Backends restart and proxies hand over while clients are at work, and no client sees any of it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{
    Client, Echoing, Event, Handoffs, Line, REAL, Record, Storm, Tally, Upstream, exit_code,
    free_port,
};
use nix::sys::signal::Signal;

/// Old generations drain for as long as it takes.
const LIMITS: [&str; 4] = ["--max-generations", "64", "--drain-timeout", "60s"];

fn assert_unnoticed(tally: &Tally, records: &[Record]) {
    println!(
        "{} short connections, {} persistent requests, lost: {:?}",
        tally.short, tally.persistent, tally.losses
    );
    assert!(tally.losses.is_empty(), "{:?}", tally.losses);
    assert_eq!((tally.closed, tally.crossed), (0, 0), "a proxy ends no connection by itself");
    let cut = records.iter().find(|record| record.field("cut").is_some_and(|count| count != "0"));
    assert_eq!(cut, None);
}

/// Ends the head, and waits for all.
fn end(line: &Line, pid: u32) -> Vec<Record> {
    crate::support::signal(pid, Signal::SIGTERM);
    assert_eq!(exit_code(pid), 0);
    line.wait_for_end()
}

#[test]
fn clients_that_come_while_the_backend_is_away_are_served_when_it_is_back() {
    let address = format!("127.0.0.1:{}", free_port());
    let line = Line::proxy(&[&address], &[]);
    let mut clients = Vec::new();
    for number in 0..50 {
        let mut client = Client::connect(&line.address()).unwrap();
        client.write_all(format!("request {number:02}").as_bytes()).unwrap();
        client.half_close().unwrap();
        clients.push(client);
    }
    line.wait_for_count(100, Event::UpstreamFailed);
    let backend = Echoing::on(Upstream::on(&address), &address);
    for (number, client) in clients.iter_mut().enumerate() {
        client.expect(format!("request {number:02}").as_bytes()).unwrap();
        client.expect_end().unwrap();
    }
    line.wait_for(1, Event::UpstreamAvailable);
    drop(line);
    backend.stop();
}

#[test]
fn a_backend_that_restarts_under_load_loses_no_client() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("backend").to_str().unwrap().to_owned();
    let line = Line::proxy(&[&path], &LIMITS);
    let mut backend = Echoing::on(Upstream::on(&path), &path);
    let storm = Storm::start(&line.address(), 8, 0);
    let mut restarts = 0;
    for _ in 0..10 {
        let mark = line.mark();
        line.wait_since(mark, "a client that was served", |record| {
            record.field("ending") == Some("finished")
        });
        backend.stop();
        // It is away until somebody has been held.
        line.wait_since(mark, "a client that is held", |record| {
            record.is_event(Event::UpstreamFailed)
        });
        backend = Echoing::on(Upstream::on(&path), &path);
        restarts += 1;
    }
    let mark = line.mark();
    line.wait_since(mark, "a client that was served", |record| {
        record.field("ending") == Some("finished")
    });
    let tally = storm.end();
    assert!(tally.short > restarts, "hardly a storm: {tally:?}");
    let records = end(&line, line.first_pid());
    assert_unnoticed(&tally, &records);
    backend.stop();
}

/// Sends and verifies as much as it can on one connection, again and again, until it is over: how
/// much that was.
fn pour(address: &str, over: &AtomicBool) -> usize {
    const LENGTH: usize = 4_000_000;
    let mut poured = 0;
    while !over.load(Ordering::Relaxed) {
        let client = Client::connect(address).unwrap();
        let Client::Tcp(socket) = &client else { panic!("{address}") };
        let mut other = socket.try_clone().unwrap();
        let said: Vec<u8> = (0_u32..)
            .flat_map(|number| (number ^ 0x5bd1_e995).to_be_bytes())
            .take(LENGTH)
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                other.write_all(&said).unwrap();
                other.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let (heard, end) = { client }.read_all();
            end.unwrap();
            assert!(heard == said, "altered: {} bytes of {LENGTH}", heard.len());
        });
        poured += LENGTH;
    }
    poured
}

#[test]
fn handoffs_under_short_persistent_and_bulk_connections_lose_nobody() {
    const HANDOFFS: u64 = 100;
    let upstream = Upstream::tcp();
    let to = upstream.address();
    let backend = Echoing::on(upstream, &to);
    let line = Line::start_program(Path::new(REAL), |command, _| {
        command.args(["proxy", "--listen", "127.0.0.1:0", "--to", &to, "--bake", "0"]).args(LIMITS);
    });
    let address = line.address();
    let mut head = Handoffs::of(&line);
    line.wait_for(1, Event::GenerationServing);
    let over = Arc::new(AtomicBool::new(false));
    let pouring = [(); 2].map(|()| {
        let (address, over) = (address.clone(), Arc::clone(&over));
        std::thread::spawn(move || pour(&address, &over))
    });
    // Short ones and bulk through all of it; persistent ones hold a generation each as long as they
    // like.
    let storm = Storm::start(&address, 4, 16);
    for _ in 0..HANDOFFS {
        head.next();
    }
    over.store(true, Ordering::Relaxed);
    let poured: usize = pouring.into_iter().map(|thread| thread.join().unwrap()).sum();
    let tally = storm.end();
    assert!(
        poured > 0 && tally.short >= HANDOFFS && tally.persistent >= HANDOFFS,
        "hardly a storm: {tally:?}"
    );
    let records = end(&line, head.pid);
    assert_unnoticed(&tally, &records);
    let complaint = records.iter().find(|record| record.is_complaint());
    assert_eq!(complaint, None);
    drop(line);
    backend.stop();
}
