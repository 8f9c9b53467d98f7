//! Tests of a listener that moves to an address that overlaps its old one. No client may be lost.
//!
//! The kernel refuses to bind such an address while another socket listens on part of it. Each move
//! therefore fails unless the two generations share the port.

use nix::sys::signal::Signal;

use crate::config_file::put;
use crate::support::view::is_asleep;
use crate::support::{Callers, Client, Event, Line, assert_becomes, defer_accept, free_port};

fn file(address: &str, port: u16) -> String {
    format!("[listener.web]\naddress = \"{address}:{port}\"\nservice = \"echo\"\n")
}

fn serve(address: &str, port: u16, bake: &str) -> Line {
    let line = Line::start_with(|command, folder| {
        put(folder, &file(address, port));
        command.current_dir(folder).args(["--config", "handoffd.toml", "--bake", bake]);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// Moves the listener along `addresses` while clients connect to `client`. Each handoff starts as
/// soon as the previous one has ended.
fn assert_moves(client: &str, addresses: &[&str]) {
    let port = free_port();
    let line = serve(addresses[0], port, "0");
    let callers = Callers::start(&format!("{client}:{port}"), 2);
    for (generation, address) in (1..).zip(&addresses[1..]) {
        put(line.folder(), &file(address, port));
        line.hand_over_from(generation);
        let accepting = line.wait_for(generation + 1, Event::GenerationAccepting);
        let expected = format!("web={}:{port}", address.trim_start_matches("tcp6:"));
        assert_eq!(accepting.field("listeners"), Some(expected.as_str()));
    }
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0), "{addresses:?}: {calls:?}");
    assert!(calls.served > 0);
}

#[test]
fn a_listener_moves_between_one_address_and_all_of_them() {
    assert_moves("127.0.0.1", &["127.0.0.1", "0.0.0.0", "127.0.0.1", "0.0.0.0", "127.0.0.1"]);
}

#[test]
fn a_listener_moves_between_the_families() {
    assert_moves("127.0.0.1", &["0.0.0.0", "[::]", "127.0.0.1", "[::]", "0.0.0.0"]);
    assert_moves("[::1]", &["[::]", "tcp6:[::]", "[::1]", "tcp6:[::]", "[::]"]);
}

/// The kernel has begun the handshake of a client on the old socket when the successor replaces it.
#[test]
fn a_client_in_its_handshake_reaches_the_old_generation() {
    let port = free_port();
    let line = serve("127.0.0.1", port, "0");
    let address = format!("127.0.0.1:{port}");
    defer_accept(line.first_pid(), &address);
    let mut client = Client::connect(&address).unwrap();
    put(line.folder(), &file("0.0.0.0", port));
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    assert_becomes(&true, || is_asleep(line.first_pid()).unwrap());
    client.echo(b"served").unwrap();
    Client::once(&address, b"served by the successor").unwrap();
}

/// The third address overlaps the first address, but not the second. The generation that serves the
/// first address has not closed it yet.
#[test]
fn a_listener_moves_on_before_its_first_address_is_closed() {
    let port = free_port();
    let line = serve("0.0.0.0", port, "0");
    for (generation, address) in (1..).zip(["127.0.0.1", "127.0.0.2", "127.0.0.3", "0.0.0.0"]) {
        put(line.folder(), &file(address, port));
        line.hand_over_from(generation);
        // The old generation frees its address for the next move only after the commit.
        line.wait_for(generation, Event::DrainStarted);
        Client::once(&format!("{}:{port}", address.replace("0.0.0.0", "127.0.0.1")), b"moved")
            .unwrap();
    }
}

/// Starts a successor that listens on `new`, and ends it with `end` during its bake.
fn take_back(old: &str, new: &str, end: Signal) -> (Line, u16) {
    let port = free_port();
    let line = serve(old, port, "1h");
    put(line.folder(), &file(new, port));
    let callers = (end == Signal::SIGTERM).then(|| Callers::start(&format!("127.0.0.1:{port}"), 2));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(1, Event::SuccessorReady);
    Client::once(&format!("127.0.0.2:{port}"), b"served by either generation").unwrap();
    line.signal(2, end);
    line.wait_for(1, Event::HandoffFailed);
    if let Some(callers) = callers {
        let calls = callers.finish();
        assert_eq!((calls.refused, calls.broken), (0, 0), "{old} {new}: {calls:?}");
    }
    (line, port)
}

/// Clients connect only during the rollback by SIGTERM. A process that is killed loses the clients
/// in its backlog.
#[test]
fn a_move_that_is_rolled_back_changes_nothing() {
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        for (old, new) in [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")] {
            let (line, port) = take_back(old, new, end);
            Client::once(&format!("127.0.0.1:{port}"), b"as before").unwrap();
            // The successor closes its sockets a moment after it reports the failure.
            assert_becomes(&(old == "0.0.0.0"), || {
                Client::connect(&format!("127.0.0.2:{port}")).is_ok()
            });
            // The next successor finds the same state as the first one.
            line.signal(1, Signal::SIGHUP);
            line.wait_for_count(2, Event::SuccessorReady);
        }
    }
}

/// Another process listens on an address that is part of the new one. The handoff fails, and the
/// old generation keeps serving.
#[test]
fn a_foreign_socket_on_the_new_address_fails_the_move() {
    let port = free_port();
    let theirs = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
    let line = serve("127.0.0.1", port, "0");
    put(line.folder(), &file("0.0.0.0", port));
    line.signal(1, Signal::SIGHUP);
    let failed = line.wait_for(1, Event::HandoffFailed);
    assert!(failed.text.contains(&format!("cannot listen on 0.0.0.0:{port} (web)")), "{failed:?}");
    line.assert_serves();
    crate::support::close(theirs);
    line.hand_over_from(1);
    Client::once(&format!("127.0.0.2:{port}"), b"at last").unwrap();
}
