//! Tests that a proxy relays every byte and every end of stream in both directions. During a drain,
//! both sides can finish their conversation.

use std::io::{ErrorKind, Write};

use crate::support::{Client, Event, Line, Upstream, narrow};
use nix::sys::signal::Signal;

/// Returns bytes in which no two parts are equal.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes())
        .take(length)
        .collect()
}

/// Returns how many connections of the generation ended by themselves, and how many it cut.
fn outcome(line: &Line, generation: u64) -> (String, String) {
    let ended = line.wait_for(generation, Event::GenerationEnded);
    (ended.field("ended").unwrap().to_owned(), ended.field("cut").unwrap().to_owned())
}

#[test]
fn every_kind_of_socket_relays_both_ways_at_once() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let tcp = Upstream::tcp();
    let path = folder.path().join("socket").to_str().unwrap().to_owned();
    let name = format!("@{path}");
    let upstreams = [
        (tcp.address(), tcp),
        (path.clone(), Upstream::on(&path)),
        (name.clone(), Upstream::on(&name)),
    ];
    for (address, upstream) in &upstreams {
        let line = Line::proxy(&[address], &[]);
        let (client, server) = line.pair(upstream);
        let (up, down) = (bytes(3_000_000), bytes(2_000_000));
        std::thread::scope(|scope| {
            for (mut end, said, heard) in [(client, &up, &down), (server, &down, &up)] {
                let mut other = end.duplicate();
                scope.spawn(move || {
                    other.write_all(said).unwrap();
                    other.half_close().unwrap();
                });
                scope.spawn(move || {
                    let (bytes, ended) = end.read_all();
                    ended.unwrap();
                    assert!(bytes == *heard, "{} bytes came of {}", bytes.len(), heard.len());
                });
            }
        });
        assert_eq!(line.wait_for(1, Event::ConnectionEnded).field("ending"), Some("finished"));
    }
}

#[test]
fn upstreams_are_used_in_turn() {
    let upstreams = [Upstream::tcp(), Upstream::tcp(), Upstream::tcp()];
    let addresses: Vec<String> = upstreams.iter().map(Upstream::address).collect();
    let line = Line::proxy(&addresses.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    for upstream in upstreams.iter().cycle().take(6) {
        let (mut client, mut server) = line.pair(upstream);
        server.write_all(b"welcome").unwrap();
        client.expect(b"welcome").unwrap();
    }
}

#[test]
fn a_client_that_half_closes_first_is_answered() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    client.write_all(b"request").unwrap();
    client.half_close().unwrap();
    server.expect(b"request").unwrap();
    server.expect_end().unwrap();
    server.write_all(b"reply").unwrap();
    server.half_close().unwrap();
    client.expect(b"reply").unwrap();
    client.expect_end().unwrap();
}

#[test]
fn an_upstream_that_half_closes_first_still_receives() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    server.write_all(b"welcome").unwrap();
    server.half_close().unwrap();
    client.expect(b"welcome").unwrap();
    client.expect_end().unwrap();
    client.write_all(b"late").unwrap();
    client.half_close().unwrap();
    server.expect(b"late").unwrap();
    server.expect_end().unwrap();
}

#[test]
fn a_reply_is_relayed_whole_if_the_upstream_closes_at_once() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    for length in [5, 100_000, 2_000_000] {
        let said = bytes(length);
        let (mut client, mut server) = line.pair(&upstream);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                server.write_all(&said).unwrap();
                drop(server);
            });
            let (heard, end) = client.read_all();
            end.unwrap();
            assert!(heard == said);
        });
    }
}

/// Writes until neither the proxy nor the kernel takes more. Returns how many bytes were written.
pub(crate) fn fill(line: &Line, writer: &mut Client) -> usize {
    writer.set_nonblocking(true).unwrap();
    let chunk = bytes(64 * 1024);
    let (mut written, mut slept) = (0, false);
    loop {
        match writer.write(&chunk) {
            Ok(count) => (written, slept) = (written + count, false),
            Err(error) if error.kind() == ErrorKind::WouldBlock && slept => return written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => slept = line.is_asleep(),
            Err(error) => panic!("{error}"),
        }
        // The limit covers the kernel's buffers on both sides, but not an unlimited buffer in the
        // proxy.
        assert!(written < 64 * 1024 * 1024, "the proxy reads more than the other side takes");
    }
}

#[test]
fn a_slow_reader_blocks_only_its_own_upstream() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let slow = narrow(line.address().parse().unwrap());
    let mut pouring = upstream.accept();
    fill(&line, &mut pouring);
    let (mut client, mut server) = line.pair(&upstream);
    for _ in 0..100 {
        client.write_all(b"request").unwrap();
        server.expect(b"request").unwrap();
        server.write_all(b"reply").unwrap();
        client.expect(b"reply").unwrap();
    }
    drop(slow);
}

#[test]
fn a_draining_proxy_relays_until_either_side_ends() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &["--drain-timeout", "1h", "--bake", "0"]);
    let mut pairs = [line.pair(&upstream), line.pair(&upstream)];
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    for (client, server) in &mut pairs {
        for _ in 0..3 {
            client.write_all(b"request").unwrap();
            server.expect(b"request").unwrap();
            server.write_all(b"reply").unwrap();
            client.expect(b"reply").unwrap();
        }
    }
    assert_eq!(line.processes().len(), 2, "the first generation ended before its connections did");
    let [(mut client, server), (other, mut server_of_other)] = pairs;
    drop(server);
    client.expect_end().unwrap();
    drop(client);
    drop(other);
    server_of_other.expect_end().unwrap();
    drop(server_of_other);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(outcome(&line, 1), ("2".to_owned(), "0".to_owned()));
    let (mut client, mut server) = line.pair(&upstream);
    server.write_all(b"welcome").unwrap();
    client.expect(b"welcome").unwrap();
}

#[test]
fn the_drain_deadline_resets_both_sides() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &["--drain-timeout", "300ms"]);
    let (mut client, mut server) = line.pair(&upstream);
    client.write_all(b"half of").unwrap();
    server.expect(b"half of").unwrap();
    line.signal(1, Signal::SIGTERM);
    client.expect_reset();
    server.expect_reset();
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(outcome(&line, 1), ("0".to_owned(), "1".to_owned()));
}

impl Client {
    /// Returns a second handle of the connection, for another thread.
    fn duplicate(&self) -> Self {
        match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone().unwrap()),
            Self::Unix(socket) => Self::Unix(socket.try_clone().unwrap()),
        }
    }
}
