//! Failures of either side of a proxied connection: the proxy notices them even when it no longer
//! reads from that side.

use std::io::Write;

use crate::proxy_faults::{ending, fill};
use crate::support::{Client, Event, Line, Upstream, assert_becomes};

/// The side that disconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

const SIDES: [Side; 2] = [Side::Client, Side::Upstream];

/// Connects a client through the proxy. Returns the end of the side that disconnects, and the other
/// end.
fn ends(line: &Line, upstream: &Upstream, side: Side) -> (Client, Client) {
    let (client, server) = line.pair(upstream);
    match side {
        Side::Client => (client, server),
        Side::Upstream => (server, client),
    }
}

/// Sends a few bytes and half-closes; the other side receives both.
fn half_close(gone: &mut Client, other: &mut Client) {
    gone.write_all(b"all of it").unwrap();
    gone.half_close().unwrap();
    other.expect(b"all of it").unwrap();
    other.expect_end().unwrap();
}

/// Asserts that the socket has received a reset, as the kernel reports.
fn assert_is_reset(other: &Client) {
    let Client::Tcp(socket) = other else { panic!("Unix sockets have no resets") };
    assert_becomes(&true, || socket.take_error().unwrap().is_some());
}

/// One side half-closes and later resets. The proxy resets the other side.
#[test]
fn a_reset_after_a_half_close_resets_the_other_side() {
    for side in SIDES {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &[]);
        let (mut gone, mut other) = ends(&line, &upstream, side);
        half_close(&mut gone, &mut other);
        // The side is still connected and still receives replies.
        other.write_all(b"a reply").unwrap();
        gone.expect(b"a reply").unwrap();
        gone.reset();
        assert_is_reset(&other);
        assert_eq!(ending(&line).0, "broken", "{side:?}");
    }
}

/// The other side does not read, so the proxy has bytes that it cannot deliver.
#[test]
fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    for side in SIDES {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &[]);
        let (mut gone, other) = ends(&line, &upstream, side);
        fill(&line, &mut gone);
        gone.reset();
        assert_eq!(ending(&line).0, "broken", "{side:?}");
        drop(other);
    }
}

#[test]
fn a_reset_is_noticed_after_a_carry() {
    for side in SIDES {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &["--carry", "--bake", "0"]);
        let (mut gone, mut other) = ends(&line, &upstream, side);
        half_close(&mut gone, &mut other);
        line.hand_over_from(1);
        assert_eq!(line.exit_code(1), 0);
        other.write_all(b"a reply").unwrap();
        gone.expect(b"a reply").unwrap();
        gone.reset();
        assert_is_reset(&other);
        line.wait_for(2, Event::ConnectionEnded.with("ending", "broken"));
    }
}

/// Unix sockets have no resets. A side that closes its socket has sent everything that the other
/// side has read, so the other side reads an ordinary end.
#[test]
fn a_closed_unix_socket_is_noticed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let (listener, backend) = (path("listener"), path("backend"));
    for side in SIDES {
        let upstream = match side {
            Side::Client => Upstream::tcp(),
            Side::Upstream => Upstream::on(&backend),
        };
        let to = if side == Side::Client { upstream.address() } else { backend.clone() };
        let line = Line::proxy(&[&to], &["--listen", &listener]);
        let client = match side {
            Side::Client => Client::connect(&listener).unwrap(),
            Side::Upstream => Client::connect(&line.address()).unwrap(),
        };
        let server = upstream.accept();
        let (mut gone, mut other) = match side {
            Side::Client => (client, server),
            Side::Upstream => (server, client),
        };
        half_close(&mut gone, &mut other);
        drop(gone);
        assert_eq!(ending(&line).0, "finished", "{side:?}");
    }
}
