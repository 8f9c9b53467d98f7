//! Tests of the listeners of a server of its own: they stop in order, resume when the successor
//! dies, and leave no client in a backlog.
//!
//! The server is the example `life`, except where a test names another one.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;

use crate::life::{addresses, bake, replace, start, start_on, stop};
use crate::support::view::is_asleep;
use crate::support::{
    Client, Event, Line, Parent, assert_becomes, defer_accept, example, exit_code, free_port,
    freeze, raise_descriptor_limit, signal, thaw,
};

#[test]
fn a_listener_that_stops_last_serves_during_the_stop() {
    let line = start("echo");
    let (address, admin) = addresses(&line);
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    signal(line.first_pid(), Signal::SIGTERM);
    line.wait("the drain", |record| record.is_event(Event::DrainStarted));
    let mut late = Client::connect(&admin).unwrap();
    late.echo(b"how are you?").unwrap();
    late.half_close().unwrap();
    late.expect_end().unwrap();
    assert!(!line.folder().join("admin-drains").exists());
    held.half_close().unwrap();
    held.expect_end().unwrap();
    line.wait_for_end();
    assert!(line.folder().join("admin-drains").exists());
}

/// The clients in the backlog are served although the service stops.
#[test]
fn an_own_server_serves_its_backlog_when_it_stops() {
    let line = start("echo");
    let (address, _) = addresses(&line);
    freeze(line.first_pid());
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&address).unwrap()).collect();
    signal(line.first_pid(), Signal::SIGTERM);
    thaw(line.first_pid());
    assert_served(&mut clients);
    line.wait_for_end();
}

/// The server does not accept until it gets `None`, as it should.
#[test]
fn an_acceptor_dropped_too_early_is_reported() {
    let line = start("early");
    let _waiting = Client::connect(&addresses(&line).0).unwrap();
    stop(&line, line.first_pid());
    assert_eq!(line.count(Event::ListenerBacklogLost.with("listener", "echo")), 1);
}

/// The clients in the backlog wait for the only thread longer than the address stays open.
#[test]
fn a_server_of_one_thread_serves_its_backlog_when_it_stops() {
    let line = start("one-thread");
    let (address, _) = addresses(&line);
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&address).unwrap()).collect();
    signal(line.first_pid(), Signal::SIGTERM);
    assert_closes(&address);
    assert_served(std::slice::from_mut(&mut held));
    assert_served(&mut clients);
    line.wait_for_end();
}

/// Sends bytes on each connection, and closes it after the echo.
fn assert_served(clients: &mut [Client]) {
    for client in clients {
        client.echo(b"served").unwrap();
        client.half_close().unwrap();
        client.expect_end().unwrap();
    }
}

/// Waits until nobody listens on `address`.
fn assert_closes(address: &str) {
    assert_becomes(&true, || Client::connect(address).is_err());
}

/// A rolled-back generation drains longer than the service lives. It must not keep the address.
#[test]
fn a_rolled_back_own_server_gives_the_address_free() {
    for mode in ["long-bake-deaf", "long-bake-copy"] {
        let line = start(mode);
        let (address, _) = addresses(&line);
        let next = bake(&line);
        // Only the new generation can accept this client. It drains as long as the client stays.
        freeze(line.first_pid());
        let mut held = Client::connect(&address).unwrap();
        held.echo(b"held").unwrap();
        thaw(line.first_pid());
        signal(next, Signal::SIGTERM);
        line.wait("the rollback", |record| record.is_event(Event::HandoffFailed));
        signal(line.first_pid(), Signal::SIGQUIT);
        assert_eq!(exit_code(line.first_pid()), 0);
        assert_closes(&address);
        held.echo(b"still held").unwrap();
        signal(next, Signal::SIGQUIT);
        line.wait_for_end();
    }
}

/// Only the new generation has the new address. It serves one client after another, so the others
/// still wait when the old generation has confirmed the rollback.
#[test]
fn a_rolled_back_server_serves_the_backlog_of_its_address() {
    let line = Line::start_program(&example("lines"), |command, folder| {
        command.args(["127.0.0.1:0", "600000"]).current_dir(folder);
    });
    line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
    let address = format!("127.0.0.1:{}", free_port());
    fs::write(line.folder().join("address"), &address).unwrap();
    fs::write(line.folder().join("inline"), "").unwrap();
    let next = bake(&line);
    let mut clients = [(); 5].map(|()| Client::connect(&address).unwrap());
    clients.iter_mut().for_each(|client| client.write_all(b"hello\n").unwrap());
    signal(next, Signal::SIGTERM);
    line.wait("the rollback", |record| record.is_event(Event::HandoffFailed));
    let reply = format!("1 {next}\n");
    clients.iter_mut().for_each(|client| client.expect(reply.as_bytes()).unwrap());
    assert_eq!(exit_code(next), 0);
    stop(&line, line.first_pid());
}

/// The old generation was told to stop in the bake, so it never resumes. It has stopped accepting
/// when its successor dies.
#[test]
fn an_own_server_serves_the_backlog_of_a_dead_successor() {
    let line = start("long-bake");
    let (address, _) = addresses(&line);
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    let next = bake(&line);
    freeze(next);
    // The old generation may have accepted a client in the bake, so it retires first.
    signal(line.first_pid(), Signal::SIGTERM);
    line.wait("the drain", |record| record.is_event(Event::DrainStarted));
    // When the old generation has nothing left to do, its acceptors have ended.
    assert_becomes(&true, || is_asleep(line.first_pid()).unwrap());
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&address).unwrap()).collect();
    signal(next, Signal::SIGKILL);
    assert_served(&mut clients);
    assert_closes(&address);
    line.wait_for_count(1, Event::BacklogLeft);
    held.half_close().unwrap();
    held.expect_end().unwrap();
    line.wait_for_end();
}

/// Whichever generation acts first, one of them accepts the clients that wait.
#[test]
fn terminates_in_the_bake_leave_no_client_of_an_own_server() {
    for round in 0..6 {
        let line = start("long-bake");
        let (address, _) = addresses(&line);
        let both = [line.first_pid(), bake(&line)];
        both.into_iter().for_each(freeze);
        let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&address).unwrap()).collect();
        for number in [Signal::SIGTERM, Signal::SIGCONT] {
            signal(both[round % 2], number);
            signal(both[1 - round % 2], number);
        }
        assert_served(&mut clients);
        line.wait_for_end();
    }
}

#[test]
fn an_own_server_frees_its_port_while_it_drains() {
    let line = start("echo");
    let (address, admin) = addresses(&line);
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    signal(line.first_pid(), Signal::SIGTERM);
    assert_closes(&address);
    Client::connect(&admin).unwrap().echo(b"still here").unwrap();
    held.half_close().unwrap();
    held.expect_end().unwrap();
    line.wait_for_end();
}

/// The old generation resumes without the listener that it has given up.
#[test]
fn a_removed_listener_of_an_own_server_is_closed() {
    let line = start("echo");
    let (address, admin) = addresses(&line);
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    fs::write(line.folder().join("no-admin"), "").unwrap();
    let next = replace(&line, line.first_pid()).unwrap();
    assert_closes(&admin);
    signal(next, Signal::SIGKILL);
    line.wait("the old generation", |record| record.is_event(Event::GenerationResumed));
    Client::connect(&address).unwrap().echo(b"again").unwrap();
    assert!(Client::connect(&admin).is_err());
    held.echo(b"still").unwrap();
    drop(held);
    stop(&line, line.first_pid());
}

/// systemd gives all sockets of a unit the same name, unless the unit says otherwise.
#[test]
fn all_passed_sockets_of_a_name_are_served() {
    for mode in ["echo", "threads"] {
        let sockets =
            ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"].map(|one| TcpListener::bind(one).unwrap());
        let addresses = sockets.each_ref().map(|one| one.local_addr().unwrap().to_string());
        let parent = Parent::passing(sockets.map(OwnedFd::from));
        let line = parent
            .saying("LISTEN_FDNAMES", "echo:echo:echo")
            .start_program(&example("life"), &[mode, &addresses[1]]);
        line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
        let mut pid = line.first_pid();
        for _ in 0..2 {
            for address in addresses.iter().chain(&addresses) {
                Client::once(address, b"served").unwrap();
            }
            pid = replace(&line, pid).unwrap();
        }
        assert_becomes(&12, || line.counter("echo", "accepted"));
        // The sockets share the counters, which the table shows once.
        let table = line.asked(&["status"]).well();
        let rows = addresses.each_ref().map(|one| table.lines().find(|row| row.contains(one)));
        let columns = rows.map(|row| row.unwrap().split_whitespace().count());
        assert_eq!(columns, [11, 2, 2], "{table}");
        freeze(pid);
        let clients = addresses.iter().map(|address| Client::connect(address).unwrap());
        let mut clients: Vec<_> = clients.collect();
        signal(pid, Signal::SIGTERM);
        thaw(pid);
        assert_served(&mut clients);
        line.wait_for_end();
    }
}

/// Only one of the sockets could be copied, and the clients of the other would wait.
#[test]
fn sockets_of_one_name_are_not_copied() {
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let address = sockets[0].local_addr().unwrap().to_string();
    let line = Parent::passing(sockets.map(OwnedFd::from))
        .saying("LISTEN_FDNAMES", "echo:echo")
        .start_program(&example("life"), &["copy", &address]);
    assert_eq!(exit_code(line.first_pid()), 1);
    line.wait_for_end();
    assert!(line.text().contains("2 sockets are named \"echo\""), "{}", line.text());
}

/// The clients of a listener that the server has forgotten would wait for ever.
#[test]
fn a_listener_that_the_server_forgets_is_reported() {
    let line = start("threads");
    let said = line.wait("the warning", |record| record.is_event(Event::ListenerUnused));
    assert_eq!(said.field("listeners"), Some("admin"));
    stop(&line, line.first_pid());
}

/// The threads of the server take no descriptor of the reserve, so commands and handoffs work.
#[test]
fn clients_of_threads_leave_descriptors_for_operators() {
    raise_descriptor_limit();
    let launcher = ["prlimit", "--nofile=200:200"];
    let line = Line::start_program_under(&launcher, &example("life"), |command, folder| {
        command.args(["threads", "127.0.0.1:0"]).current_dir(folder);
        command.env("RUNTIME_DIRECTORY", folder);
    });
    let (address, _) = addresses(&line);
    let mut clients: Vec<_> = (0..220).map(|_| Client::connect(&address).unwrap()).collect();
    line.wait("the shortage", |record| record.is_event(Event::AcceptFailed));
    assert_eq!(line.counter("echo", "limited"), 1);
    let next = replace(&line, line.first_pid()).unwrap();
    // The new process accepts the clients for which the old one had no room.
    clients.split_off(190).iter_mut().for_each(|client| client.echo(b"served").unwrap());
    drop(clients);
    stop(&line, next);
}

/// The kernel has begun the handshake of a client on the old socket when the successor replaces it.
#[test]
fn a_client_in_its_handshake_reaches_a_replaced_server() {
    for mode in ["echo", "threads"] {
        let port = free_port();
        let [one, all] = ["127.0.0.1", "0.0.0.0"].map(|address| format!("{address}:{port}"));
        let line = start_on(mode, &one);
        defer_accept(line.first_pid(), &one);
        let mut client = Client::connect(&one).unwrap();
        fs::write(line.folder().join("address"), &all).unwrap();
        let next = replace(&line, line.first_pid()).unwrap();
        line.wait("the drain", |record| record.is_event(Event::DrainStarted));
        assert_becomes(&true, || is_asleep(line.first_pid()).unwrap());
        assert_served(std::slice::from_mut(&mut client));
        Client::once(&one, b"served by the successor").unwrap();
        assert_eq!(exit_code(line.first_pid()), 0, "{mode}");
        stop(&line, next);
    }
}

/// Starts a server with one connection, and kills its successor. The server is not ready again as
/// long as the file `hold` exists, whose path is returned.
fn hold_the_resume() -> (Line, Client, std::path::PathBuf) {
    let line = start("slow-again");
    let mut held = Client::connect(&addresses(&line).0).unwrap();
    held.echo(b"held").unwrap();
    let next = replace(&line, line.first_pid()).unwrap();
    let hold = line.folder().join("hold");
    fs::write(&hold, "").unwrap();
    signal(next, Signal::SIGKILL);
    line.wait("the end of the successor", |record| record.is_event(Event::HandoffFailed));
    (line, held, hold)
}

#[test]
fn an_own_server_resumes_only_when_it_is_ready_again() {
    let (line, held, hold) = hold_the_resume();
    assert!(line.asked(&["status"]).well().contains("starting"));
    assert_eq!(line.count(Event::GenerationResumed), 0);
    let mut client = Client::connect(&addresses(&line).0).unwrap();
    fs::remove_file(hold).unwrap();
    line.wait_for_count(1, Event::GenerationResumed);
    client.echo(b"served").unwrap();
    drop((held, client));
    stop(&line, line.first_pid());
}

#[test]
fn an_own_server_that_is_never_ready_again_ends() {
    let (line, held, _) = hold_the_resume();
    assert_ne!(exit_code(line.first_pid()), 0);
    drop(held);
    assert_eq!(line.count(Event::GenerationResumed), 0);
    line.wait_for_end();
}
