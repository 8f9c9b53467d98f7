//! A side of a proxied connection that breaks is noticed as long as the connection is there, also
//! where nothing is read from it any more.

use std::io::Write;

use crate::proxy_faults::{ending, fill};
use crate::support::{Client, Event, Line, Upstream, assert_becomes};

/// The side that goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

const SIDES: [Side; 2] = [Side::Client, Side::Upstream];

/// The two ends of a proxied connection: of the side that goes away, and of the other.
fn ends(line: &Line, upstream: &Upstream, side: Side) -> (Client, Client) {
    let (client, server) = line.pair(upstream);
    match side {
        Side::Client => (client, server),
        Side::Upstream => (server, client),
    }
}

/// Says a word and half-closes; the other side hears both.
fn half_close(gone: &mut Client, other: &mut Client) {
    gone.write_all(b"all of it").unwrap();
    gone.half_close().unwrap();
    other.expect(b"all of it").unwrap();
    other.expect_end().unwrap();
}

/// The kernel says so of a socket that has got a reset.
fn assert_is_reset(other: &Client) {
    let Client::Tcp(socket) = other else { panic!("a Unix socket knows no reset") };
    assert_becomes(&true, || socket.take_error().unwrap().is_some());
}

#[test]
fn a_side_that_resets_after_its_end_has_the_other_reset() {
    for side in SIDES {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &[]);
        let (mut gone, mut other) = ends(&line, &upstream, side);
        half_close(&mut gone, &mut other);
        // It is still there, and is still answered.
        other.write_all(b"a reply").unwrap();
        gone.expect(b"a reply").unwrap();
        gone.reset();
        assert_is_reset(&other);
        assert_eq!(ending(&line).0, "broken", "{side:?}");
    }
}

#[test]
fn a_side_that_resets_is_noticed_though_nobody_takes_its_words() {
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
fn a_side_that_resets_after_a_carry_is_noticed() {
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

/// A Unix socket knows no reset. A side that closes it has still sent all that the other side has
/// read, so the other side reads an ordinary end.
#[test]
fn a_side_that_closes_its_unix_socket_is_noticed() {
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
