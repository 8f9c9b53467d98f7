//! Tests of the servers in `examples/servers`, which are the recipes of docs/servers.md, and of
//! `examples/template`: each server is replaced 20 times under load, and no request fails.
//!
//! Run with `cargo test --test servers`. The tests build both packages first, which takes minutes.
//! The variable `HANDOFFS` is another number of replacements. A test passes the listening sockets
//! and a control socket, as a service manager does, so the programs are exactly those of the page.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]
#![allow(
    clippy::print_stdout,
    reason = "a load tells what it was made of; cargo shows it on request"
)]
#![allow(dead_code, unused_imports, reason = "of what the tests share, each uses a part")]

#[path = "../recipes/http.rs"]
mod http;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::time::Instant;

use http::{Kept, Load};
use nix::sys::signal::Signal;
use server::{Clients, Server};
use support::{DEADLINE, assert_becomes, exit_code, signal};

/// Replaces a server of HTTP under load: short connections, and connections that are kept.
fn loses_no_request(name: &str, expected: &'static str, end: KeptConnections) {
    replaces_under_load(Server::start(name, &["http"]), name, expected, end);
}

fn replaces_under_load(server: Server, name: &str, expected: &'static str, end: KeptConnections) {
    let load = Load::start(&server.address("http"), expected);
    server.replace();
    let requests = load.finish();
    println!("{name}: {requests:?}");
    assert!(requests.served > 100 && requests.failed.is_empty(), "{requests:?}");
    assert_eq!(requests.closed_idle, 0, "{requests:?}");
    match end {
        KeptConnections::Announced => announces_the_end(&server),
        KeptConnections::Served => {
            let mut kept = kept_by_the_new_process(&server);
            server.reload();
            assert!(!kept.is_last_reply());
        }
    }
    server.stop();
}

/// What a server does with connections that its clients keep, once it has retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptConnections {
    /// The next reply announces the end of the connection.
    Announced,
    /// The server serves the connection until its client closes it.
    Served,
}

/// Connects a client whose connection stays. A thread of the old process may still accept clients
/// for a moment after the handoff, and then says that the reply is the last one.
fn kept_by_the_new_process(server: &Server) -> Kept {
    let until = Instant::now() + DEADLINE;
    loop {
        let mut kept = Kept::connect(&server.address("http"));
        if !kept.is_last_reply() {
            return kept;
        }
        assert!(Instant::now() < until, "each reply announces the end of its connection");
    }
}

/// A client that is idle during the handoff gets a last reply that says so, and then the end.
fn announces_the_end(server: &Server) {
    let mut kept = kept_by_the_new_process(server);
    server.reload();
    assert!(kept.is_last_reply(), "the reply does not announce the end of the connection");
    kept.expect_end();
}

/// Replaces a server under the load of clients of its own.
fn loses_nothing(name: &str, listener: &str, kinds: &[&str]) {
    let server = Server::start(name, &[listener]);
    let address = server.address(listener);
    let clients: Vec<_> =
        kinds.iter().map(|kind| Clients::start(kind, &address, server.folder())).collect();
    server.replace();
    for clients in clients {
        clients.lose_nothing();
    }
    server.stop();
}

/// The project that a reader copies to begin a server.
#[test]
fn the_template() {
    let server = Server::start_program(&server::template(), &["http"], &[]);
    replaces_under_load(server, "template", "hello from", KeptConnections::Announced);
}

#[test]
fn axum_over_tcp() {
    loses_no_request("axum_tcp", "generation ", KeptConnections::Announced);
}

#[test]
fn axum_over_a_unix_socket() {
    let server = Server::start_unix("axum_unix", "http");
    let load = Load::start(&server.address("http"), "hello, unix");
    server.replace();
    let requests = load.finish();
    assert!(requests.served > 100 && requests.failed.is_empty(), "{requests:?}");
    assert_eq!(requests.closed_idle, 0, "{requests:?}");
    announces_the_end(&server);
    server.stop();
}

#[test]
fn axum_over_tls() {
    loses_nothing("axum_tls", "https", &["tls"]);
}

#[test]
fn axum_with_websockets() {
    loses_nothing("axum_websocket", "http", &["websocket"]);
}

/// Websockets move at each handoff, and each old process ends as soon as they have gone.
#[test]
fn websockets_move_and_their_clients_do_not_notice() {
    const CLIENTS: u64 = 100;
    let server = Server::start("websocket", &["ws"]);
    let clients = Clients::start("moving", &server.address("ws"), server.folder());
    assert_becomes(&CLIENTS, || server.counter("ws", "active"));
    for round in 1..=server::handoffs() {
        let old = server.pid();
        server.reload();
        assert_eq!(exit_code(old), 0);
        assert_becomes(&(round * CLIENTS), || server.counter("ws", "carried"));
    }
    assert_eq!(["accepted", "active"].map(|name| server.counter("ws", name)), [CLIENTS; 2]);
    assert_eq!(["refused", "lost"].map(|name| server.counter("ws", name)), [0; 2]);
    clients.lose_nothing();
    server.stop();
}

#[test]
fn axum_with_server_sent_events() {
    loses_nothing("axum_sse", "http", &["sse"]);
}

/// actix-web closes its listener only when it stops, so clients can arrive until then. No other
/// process will accept them.
#[test]
fn actix_serves_the_clients_that_arrive_while_it_drains() {
    let server = Server::start("actix", &["http"]);
    let (pid, address) = (server.pid(), server.address("http"));
    signal(pid, Signal::SIGTERM);
    assert_becomes(&true, || server.handoffd(&["status"]).1.contains("stopping"));
    for _ in 0..20 {
        assert!(Kept::connect(&address).is_last_reply());
    }
    assert_eq!(exit_code(pid), 0, "{}", server.errors());
}

/// The recipes install no logger: a handoff that fails writes one line, and nothing else does.
#[test]
fn without_a_logger_only_a_failed_handoff_is_reported() {
    let server = Server::start("hyper", &["http"]);
    server.reload();
    assert_eq!(server.errors(), "");
    server.break_program();
    let (code, _) = server.handoffd(&["reload"]);
    assert_eq!(code, 70);
    let errors = server.errors();
    assert!(errors.starts_with("handoffd: the handoff to generation 3 failed: "), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    server.stop();
}

#[test]
fn hyper() {
    loses_no_request("hyper", "generation ", KeptConnections::Announced);
}

#[test]
fn tonic() {
    loses_nothing("tonic", "grpc", &["unary", "streaming"]);
}

#[test]
fn actix_web() {
    loses_no_request("actix", "generation", KeptConnections::Announced);
}

#[test]
fn poem() {
    loses_no_request("poem", "generation", KeptConnections::Announced);
}

#[test]
fn tiny_http() {
    loses_no_request("tiny_http", "generation", KeptConnections::Served);
}

#[test]
fn plain_tokio() {
    server::answers_lines("plain_tokio");
}

#[test]
fn plain_threads() {
    server::answers_lines("plain_threads");
}

#[test]
fn two_listeners() {
    let server = Server::start("two_listeners", &["http", "admin"]);
    let load = Load::start(&server.address("http"), "generation ");
    server.replace();
    let requests = load.finish();
    assert!(requests.served > 100 && requests.failed.is_empty(), "{requests:?}");
    server.stop();
}

/// The lock file is the witness: a second worker would panic, and the server would not serve.
#[test]
fn a_background_worker() {
    let server = Server::start("worker", &["http"]);
    let load = Load::start(&server.address("http"), "generation ");
    server.replace();
    let requests = load.finish();
    assert!(requests.served > 100 && requests.failed.is_empty(), "{requests:?}");
    assert!(fs::exists(server.folder().join("worker.lock")).unwrap());
    assert_eq!(server.errors(), "", "a worker has met another one");
    server.stop();
}
