//! Tests of backends that restart and of proxies that hand over under load. No client notices
//! either.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{
    Client, Echoing, Event, Handoffs, Line, REAL, Record, Storm, Tally, Upstream, assert_becomes,
    exit_code, free_port,
};
use nix::sys::signal::Signal;

/// Old generations have ample time to drain.
const LIMITS: [&str; 4] = ["--max-generations", "64", "--drain-timeout", "60s"];

fn assert_unnoticed(tally: &Tally, records: &[Record]) {
    println!(
        "{} short connections, {} persistent requests, lost: {:?}",
        tally.short, tally.persistent, tally.losses
    );
    assert!(tally.losses.is_empty(), "{:?}", tally.losses);
    assert_eq!((tally.closed, tally.crossed), (0, 0), "the proxy ended a connection by itself");
    let cut = records.iter().find(|record| record.field("cut").is_some_and(|count| count != "0"));
    assert_eq!(cut, None);
}

/// Stops the active generation, waits until all processes have ended, and returns the log.
fn end(line: &Line, pid: u32) -> Vec<Record> {
    crate::support::signal(pid, Signal::SIGTERM);
    assert_eq!(exit_code(pid), 0);
    line.wait_for_end()
}

#[test]
fn clients_wait_for_an_absent_backend() {
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

/// Returns an upstream whose backlog is full, and the client that fills it.
fn full_upstream() -> (Upstream, Client) {
    let upstream = Upstream::tcp();
    nix::sys::socket::listen(&upstream, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let filling = Client::connect(&upstream.address()).unwrap();
    (upstream, filling)
}

/// The client has closed its Unix socket before the upstream accepts its connection.
#[test]
fn a_request_of_a_client_that_has_closed_survives_a_handoff() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("socket").to_str().unwrap().to_owned();
    let (upstream, filling) = full_upstream();
    let flags = ["--carry", "--bake", "0", "--listen", &path];
    let line = Line::counted_proxy(&[&upstream.address()], &flags);
    let mut client = Client::connect(&path).unwrap();
    client.write_all(b"request").unwrap();
    drop(client);
    assert_becomes(&1, || line.counter("listener-2", "accepted"));
    line.hand_over_from(1);
    line.wait_for(2, Event::CarryTakenOver.with("taken", 1));
    drop(upstream.accept());
    let mut server = upstream.accept();
    server.expect(b"request").unwrap();
    server.expect_end().unwrap();
    drop(filling);
}

/// The old generation has begun to connect the client to the only upstream, whose backlog is full.
#[test]
fn a_handoff_does_not_use_up_the_patience_of_a_client() {
    let (upstream, filling) = full_upstream();
    let flags = ["--carry", "--bake", "0", "--connect-patience", "0s"];
    let line = Line::counted_proxy(&[&upstream.address()], &flags);
    let mut client = Client::connect(&line.address()).unwrap();
    client.write_all(b"request").unwrap();
    assert_becomes(&1, || line.counter("listener-1", "accepted"));
    line.hand_over_from(1);
    line.wait_for(2, Event::CarryTakenOver.with("taken", 1));
    drop(upstream.accept());
    let mut server = upstream.accept();
    server.expect(b"request").unwrap();
    server.write_all(b"reply").unwrap();
    client.expect(b"reply").unwrap();
    drop(filling);
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
        line.wait_since(mark, "a served client", |record| {
            record.field("ending") == Some("finished")
        });
        backend.stop();
        // The backend stays away until a client waits for it.
        line.wait_since(mark, "a waiting client", |record| record.is_event(Event::UpstreamFailed));
        backend = Echoing::on(Upstream::on(&path), &path);
        restarts += 1;
    }
    let mark = line.mark();
    line.wait_since(mark, "a served client", |record| record.field("ending") == Some("finished"));
    let tally = storm.end();
    assert!(tally.short > restarts, "too little traffic: {tally:?}");
    let records = end(&line, line.first_pid());
    assert_unnoticed(&tally, &records);
    backend.stop();
}

/// Sends bulk data on one connection after another until `over`, and verifies the echo. Returns the
/// number of bytes.
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
            assert!(heard == said, "the bytes were altered: {} of {LENGTH}", heard.len());
        });
        poured += LENGTH;
    }
    poured
}

/// The load has short, persistent and bulk connections.
#[test]
fn proxy_handoffs_lose_no_connection_under_load() {
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
    // Short and bulk connections run during all handoffs. Each persistent connection keeps its
    // generation alive as long as it lasts.
    let storm = Storm::start(&address, 4, 16);
    for _ in 0..HANDOFFS {
        head.next();
    }
    over.store(true, Ordering::Relaxed);
    let poured: usize = pouring.into_iter().map(|thread| thread.join().unwrap()).sum();
    let tally = storm.end();
    assert!(
        poured > 0 && tally.short >= HANDOFFS && tally.persistent >= HANDOFFS,
        "too little traffic: {tally:?}"
    );
    let records = end(&line, head.pid);
    assert_unnoticed(&tally, &records);
    let complaint = records.iter().find(|record| record.is_complaint());
    assert_eq!(complaint, None);
    drop(line);
    backend.stop();
}
