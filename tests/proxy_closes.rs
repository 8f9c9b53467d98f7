//! Tests of peers that close their socket while bytes are on their way through a proxy. No byte is
//! lost, and no connection stays behind.
//!
//! A Unix socket that is closed can receive nothing more, and tells so at once. A TCP socket tells
//! so only when something is sent to it.

use std::io::{Read, Write};

use nix::sys::signal::Signal;
use socket2::SockRef;

use crate::proxy::{bytes, fill};
use crate::proxy_faults::ending;
use crate::support::view::pause;
use crate::support::{Client, Event, Line, Upstream, assert_becomes, narrow};

/// More than a peer with a small receive buffer takes, but less than the kernel keeps for it.
const REPLY: usize = 300_000;

/// A folder for the Unix sockets of a test.
fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("socket").to_str().unwrap().to_owned();
    (folder, path)
}

/// The upstream has often answered and closed before the proxy looks whether it is connected.
#[test]
fn an_upstream_that_answers_at_once_and_closes_is_heard() {
    const CLIENTS: usize = 50;
    const ROUNDS: usize = 10;
    let (_folder, path) = folder();
    let upstream = Upstream::on(&path);
    let line = Line::counted_proxy(&[&path], &[]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS * CLIENTS {
                upstream.accept().write_all(b"hello").unwrap();
            }
        });
        for _ in 0..ROUNDS {
            let clients = (0..CLIENTS).map(|_| Client::connect(&line.address()).unwrap());
            for mut client in clients.collect::<Vec<_>>() {
                client.expect(b"hello").unwrap();
                client.expect_end().unwrap();
            }
        }
    });
    assert_eq!(line.count(Event::UpstreamFailed), 0);
}

/// The client still sends, so the proxy must not close its socket before the reply has arrived.
#[test]
fn the_reply_of_a_closed_upstream_reaches_a_slow_client() {
    let (_folder, path) = folder();
    let (upstream, reply) = (Upstream::on(&path), bytes(REPLY));
    let line = Line::counted_proxy(&[&path], &[]);
    let mut client = narrow(line.address().parse().unwrap());
    let mut server = upstream.accept();
    server.write_all(&reply).unwrap();
    drop(server);
    assert_becomes(&(REPLY as u64), || line.counter("listener-1", "sent"));
    // The client reads later than a peer usually closes its connection.
    pause(1500);
    client.write_all(b"another request").unwrap();
    let (heard, end) = client.read_all();
    end.unwrap();
    assert!(heard == reply, "{} bytes of {REPLY} arrived", heard.len());
    assert_eq!(ending(&line).0, "finished");
}

/// The upstream answers although its client has gone. The proxy must not reset it.
#[test]
fn the_request_of_a_closed_client_reaches_a_slow_upstream() {
    let (_folder, path) = folder();
    let (upstream, request) = (Upstream::tcp(), bytes(REPLY));
    SockRef::from(&upstream).set_recv_buffer_size(4096).unwrap();
    let line = Line::counted_proxy(&[&upstream.address()], &["--listen", &path]);
    let mut client = Client::connect(&path).unwrap();
    let mut server = upstream.accept();
    client.write_all(&request).unwrap();
    drop(client);
    assert_becomes(&(REPLY as u64), || line.counter("listener-2", "received"));
    server.expect(&request[..1000]).unwrap();
    server.write_all(b"half way").unwrap();
    let (heard, end) = server.read_all();
    end.unwrap();
    assert!(heard == request[1000..], "{} bytes arrived after the reply", heard.len());
    assert_eq!(ending(&line).0, "finished");
}

/// The upstream has ended in order. A cut must not take back its last bytes from the kernel.
#[test]
fn a_cut_keeps_the_reply_of_a_closed_upstream() {
    let (_folder, path) = folder();
    let (upstream, reply) = (Upstream::on(&path), bytes(REPLY));
    let line = Line::counted_proxy(&[&path], &["--drain-timeout", "100ms"]);
    let mut client = narrow(line.address().parse().unwrap());
    let mut server = upstream.accept();
    server.write_all(&reply).unwrap();
    drop(server);
    assert_becomes(&(REPLY as u64), || line.counter("listener-1", "sent"));
    line.signal(1, Signal::SIGTERM);
    line.wait_for_end();
    assert_eq!(line.count(Event::GenerationEnded.with("cut", 1)), 1);
    let (heard, end) = client.read_all();
    end.unwrap();
    assert!(heard == reply, "{} bytes of {REPLY} arrived", heard.len());
}

/// The proxy learns of the close while it still has bytes for the other side.
#[test]
fn a_unix_peer_that_closes_under_pressure_is_not_forgotten() {
    let (_folder, path) = folder();
    let (upstream, unix) = (Upstream::tcp(), Upstream::on(&format!("{path}-up")));
    let line = Line::counted_proxy(&[&upstream.address()], &["--listen", &path]);
    let mut client = Client::connect(&path).unwrap();
    let mut server = upstream.accept();
    let written = fill(&line, &mut client);
    drop(client);
    let (heard, end) = server.read_all();
    end.unwrap();
    assert_eq!(heard.len(), written);
    assert_becomes(&0, || line.counter("listener-2", "active"));
    drop(server);

    let line = Line::counted_proxy(&[&format!("{path}-up")], &[]);
    let (mut client, mut server) = line.pair(&unix);
    let written = fill(&line, &mut server);
    drop(server);
    let (heard, end) = client.read_all();
    end.unwrap();
    assert_eq!(heard.len(), written);
    assert_becomes(&0, || line.counter("listener-1", "active"));
}

/// The kernel still holds bytes for the client, which the client never reads.
#[test]
fn an_idle_connection_with_unread_bytes_is_reset() {
    let upstream = Upstream::tcp();
    let line = Line::counted_proxy(&[&upstream.address()], &["--idle-timeout", "100ms"]);
    let client = narrow(line.address().parse().unwrap());
    let mut server = upstream.accept();
    server.write_all(&bytes(REPLY)).unwrap();
    let (end, error) = ending(&line);
    assert_eq!(end, "broken");
    assert_eq!(error, "idle_timeout");
    server.expect_reset();
    drop(client);
}

/// The client reads less in each idle timeout than the proxy passes on at once.
#[test]
fn a_slow_client_is_not_idle() {
    let (upstream, reply) = (Upstream::tcp(), bytes(6_000_000));
    let line = Line::counted_proxy(&[&upstream.address()], &["--idle-timeout", "1s"]);
    let mut client = narrow(line.address().parse().unwrap());
    let mut server = upstream.accept();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            server.write_all(&reply).unwrap();
            server.half_close().unwrap();
        });
        let (mut heard, mut part) = (Vec::new(), [0; 8 * 1024]);
        loop {
            match client.read(&mut part).unwrap() {
                0 => break,
                count => heard.extend_from_slice(&part[..count]),
            }
            pause(4);
        }
        assert!(heard == reply, "{} bytes of {} arrived", heard.len(), reply.len());
    });
}

/// The upstream has closed, and the client does not read its reply.
#[test]
fn the_lifetime_also_limits_the_end_of_a_connection() {
    let (_folder, path) = folder();
    let upstream = Upstream::on(&path);
    let line = Line::counted_proxy(&[&path], &["--lifetime", "1s"]);
    let client = narrow(line.address().parse().unwrap());
    let mut server = upstream.accept();
    server.write_all(&bytes(REPLY)).unwrap();
    drop(server);
    let (end, error) = ending(&line);
    assert_eq!((end.as_str(), error.as_str()), ("broken", "lifetime"));
    drop(client);
}
