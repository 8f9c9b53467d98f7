//! Listeners of all families across handoffs: they can be added, removed and kept, in any number.
//!
//! The next generation's flags may differ. New listeners are bound, removed ones are closed, and no
//! generation keeps an unclaimed one.

use std::net::{SocketAddr, TcpListener};

use nix::sys::signal::Signal;

use crate::support::{
    Client, Event, Line, Parent, assert_becomes, close, free_port, holds, holds_socket,
};

/// Starts the daemon on these addresses, and waits until it serves.
fn serve(addresses: &[&str]) -> Line {
    let line = Line::start_with(|command, _| {
        command
            .args(["--bake", "0"])
            .args(addresses.iter().flat_map(|address| ["--listen", address]));
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

fn listeners_of(line: &Line, generation: u64) -> String {
    line.wait_for(generation, Event::GenerationAccepting).field("listeners").unwrap().to_owned()
}

/// Starts the daemon with these arguments and long timeouts for silent connections.
fn serve_patiently(arguments: &[&str]) -> Line {
    let line = Line::start_with(|command, _| {
        command
            .args(["--bake", "0", "--first-request-grace", "1h", "--drain-timeout", "1h"])
            .args(arguments);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// Opens a silent connection, which the active generation accepts and which keeps it draining.
fn keep_draining(address: &str) -> Client {
    let silent = Client::connect(address).unwrap();
    // The backlog is in order: once this client is served, the silent one has been accepted.
    Client::once(address, b"after it").unwrap();
    silent
}

/// Asserts that clients are served at these addresses across handoffs, and that all generations
/// report the same addresses.
fn assert_survives_handoffs(line: &Line, addresses: &[String]) {
    for generation in 1..4 {
        for address in addresses {
            Client::once(address, b"who is there?")
                .unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
        assert_eq!(listeners_of(line, generation), listeners_of(line, generation + 1));
    }
    line.signal(4, Signal::SIGTERM);
    assert_eq!(line.exit_code(4), 0);
    for address in addresses {
        assert!(Client::connect(address).is_err(), "{address}");
    }
}

fn port_of(line: &Line, listener: &str) -> u16 {
    line.address_of(listener).parse::<SocketAddr>().unwrap().port()
}

#[test]
fn ipv4_on_port_0_keeps_its_port() {
    let line = serve(&["127.0.0.1:0"]);
    assert_survives_handoffs(&line, &[line.address()]);
}

#[test]
fn ipv6_on_port_0_keeps_its_port() {
    let line = serve(&["[::1]:0"]);
    assert!(line.address().starts_with("[::1]:"));
    assert_survives_handoffs(&line, &[line.address()]);
}

#[test]
fn one_listener_takes_both_families() {
    let line = serve(&["all=[::]:0"]);
    let port = port_of(&line, "all");
    assert_survives_handoffs(&line, &[format!("127.0.0.1:{port}"), format!("[::1]:{port}")]);
}

#[test]
fn ipv6_alone_leaves_the_port_to_ipv4() {
    let port = free_port();
    let line = serve(&[&format!("four=0.0.0.0:{port}"), &format!("six=tcp6:[::]:{port}")]);
    assert_survives_handoffs(&line, &[format!("127.0.0.1:{port}"), format!("[::1]:{port}")]);
    // Each listener takes only its own family: without the other listener, IPv4 is refused.
    let line = serve(&["six=tcp6:[::]:0"]);
    let port = port_of(&line, "six");
    Client::once(&format!("[::1]:{port}"), b"six").unwrap();
    assert!(Client::connect(&format!("127.0.0.1:{port}")).is_err());
}

#[test]
fn an_abstract_unix_socket_survives_handoffs() {
    let name = format!("@handoffd-listeners-{}", std::process::id());
    let line = serve(&[&name]);
    assert_survives_handoffs(&line, &[name]);
}

#[test]
fn ten_listeners_of_all_families_survive_handoffs() {
    let line = Line::start_with(|command, folder| {
        command.args(["--bake", "0"]);
        for number in 0..5 {
            let path = folder.join(format!("{number}.sock"));
            command.args([
                "--listen",
                "127.0.0.1:0",
                "--listen",
                &format!("unix-{number}={}", path.display()),
            ]);
        }
    });
    line.wait_for(1, Event::GenerationServing);
    let listeners = listeners_of(&line, 1);
    let addresses: Vec<_> =
        listeners.split(' ').map(|one| one.split_once('=').unwrap().1.to_owned()).collect();
    assert_eq!(addresses.len(), 10);
    assert_survives_handoffs(&line, &addresses);
}

#[test]
fn three_hundred_listeners_survive_handoffs() {
    let line = serve(&["127.0.0.1:0"; 300]);
    let listeners = listeners_of(&line, 1);
    let addresses: Vec<_> =
        listeners.split(' ').map(|one| one.split_once('=').unwrap().1.to_owned()).collect();
    assert_eq!(addresses.len(), 300);
    line.hand_over_from(1);
    line.hand_over_from(2);
    assert_eq!(listeners_of(&line, 3), listeners);
    for address in &addresses {
        Client::once(address, b"are you there, too?").unwrap();
    }
    line.signal(3, Signal::SIGTERM);
    assert_eq!(line.exit_code(3), 0);
}

#[test]
fn an_added_listener_is_bound_and_reported() {
    let line = serve(&["web=127.0.0.1:0"]);
    line.successor_gets("--bake 0 --listen web=127.0.0.1:0 --listen api=[::1]:0");
    line.hand_over_from(1);
    assert_eq!(line.wait_for(2, Event::ListenerBound).field("listener"), Some("api"));
    let (web, api) = listeners_of(&line, 2)
        .split_once(' ')
        .map(|(web, api)| (web.to_owned(), api.to_owned()))
        .unwrap();
    assert_eq!(web, listeners_of(&line, 1), "the other listener must stay the same");
    Client::once(api.strip_prefix("api=").unwrap(), b"new here").unwrap();
    line.assert_serves();
}

#[test]
fn a_removed_listener_is_closed_by_all_generations() {
    let line = serve_patiently(&["--listen", "web=127.0.0.1:0", "--listen", "api=127.0.0.1:0"]);
    let (web, api) = (line.address_of("web"), line.address_of("api"));
    line.successor_gets("--bake 0 --listen web=127.0.0.1:0");
    let _silent = keep_draining(&web);
    line.hand_over_from(1);
    let closed = line.wait_for(2, Event::SocketUnclaimed);
    assert_eq!(
        (closed.field("listener"), closed.field("address")),
        (Some("api"), Some(api.as_str()))
    );
    line.wait_for(1, Event::DrainStarted);
    assert!(Client::connect(&api).is_err());
    Client::once(&web, b"still here").unwrap();
    assert_eq!(
        line.processes().len(),
        2,
        "the first generation must still drain, without the listener"
    );
}

#[test]
fn a_renamed_listener_keeps_its_port_and_is_reported() {
    let line = serve(&["web=127.0.0.1:0"]);
    line.successor_gets("--bake 0 --listen shop=127.0.0.1:0");
    line.hand_over_from(1);
    let renamed = line.wait_for(2, Event::ListenerAdopted.with("before", "web"));
    assert_eq!((renamed.field("listener"), renamed.field("before")), (Some("shop"), Some("web")));
    assert_eq!(listeners_of(&line, 2), format!("shop={}", line.address_of("web")));
    line.assert_serves();
    assert_eq!(line.count(Event::SocketUnclaimed), 0);
}

#[test]
fn a_moved_listener_is_bound_and_its_old_address_closed() {
    let line = serve(&["web=127.0.0.1:0"]);
    let before = line.address_of("web");
    line.successor_gets("--bake 0 --listen web=[::1]:0");
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    assert!(Client::connect(&before).is_err());
    Client::once(listeners_of(&line, 2).strip_prefix("web=").unwrap(), b"moved").unwrap();
}

#[test]
fn an_added_listener_that_cannot_be_bound_fails_the_handoff() {
    // A port outside of the kernel's automatic range, which no other process is given meanwhile.
    let taken = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let address = taken.local_addr().unwrap();
    let line = serve(&["web=127.0.0.1:0"]);
    let path = line.folder().join("new.sock");
    let new = format!("--listen new={} --listen api={address}", path.display());
    line.successor_gets(&format!("--bake 0 --listen web=127.0.0.1:0 {new}"));
    line.signal(1, Signal::SIGHUP);
    let failed = line.wait_for(1, Event::HandoffFailed);
    assert!(failed.text.contains(&format!("cannot listen on {address} (api)")), "{failed:?}");
    assert!(!path.exists(), "the path of the failed handoff is still there");
    line.assert_serves();
    // Without the obstacle the same handoff succeeds.
    close(taken);
    line.hand_over_from(1);
    Client::once(&address.to_string(), b"at last").unwrap();
}

#[test]
fn a_rolled_back_generation_removes_the_sockets_it_bound() {
    for end in [Signal::SIGTERM, Signal::SIGQUIT] {
        let line = Line::start_with(|command, folder| {
            command.args([
                "--bake",
                "1h",
                "--listen",
                &format!("web={}/web.sock", folder.display()),
            ]);
        });
        line.wait_for(1, Event::GenerationServing);
        let (web, new) = (line.address(), line.folder().join("new.sock"));
        line.successor_gets(&format!("--listen web={web} --listen new={}", new.display()));
        line.signal(1, Signal::SIGHUP);
        line.wait_for(1, Event::SuccessorReady);
        Client::once(new.to_str().unwrap(), b"for now").unwrap();
        line.signal(2, end);
        line.wait_for(1, Event::HandoffFailed);
        assert_eq!(line.exit_code(2), 0);
        assert!(!new.exists(), "the path of the dead generation is still there");
        Client::once(&web, b"as before").unwrap();
    }
}

#[test]
fn sockets_that_are_passed_blocking_are_served() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let line = Parent::passing([socket.into()]).serve(&["--bake", "0"]);
    // A blocking accept would hang its thread after the first client, and the next client would not
    // be served.
    assert_survives_handoffs(&line, &[address]);
}

#[test]
fn a_listener_set_to_blocking_by_another_process_still_works() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let copy = socket.try_clone().unwrap();
    let line = Parent::passing([socket.into()]).serve(&["--bake", "0"]);
    line.assert_serves();
    // The flag changes while the daemon sleeps, not between its check and its accept: that case
    // cannot be handled.
    let set_blocking = || {
        assert_becomes(&true, || line.is_asleep());
        copy.set_nonblocking(false).unwrap();
    };
    for generation in 1..4 {
        set_blocking();
        line.assert_serves();
        line.wait_for(generation, Event::ListenerBlocking);
        set_blocking();
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
    }
    set_blocking();
    line.signal(4, Signal::SIGTERM);
    assert_eq!(line.exit_code(4), 0);
}

/// The new generation does not touch what is there. When it is gone, a reload binds the path again.
#[test]
fn a_reload_reports_what_obstructs_a_socket_path() {
    let line = Line::start_with(|command, folder| {
        let web = format!("web={}/web.sock", folder.display());
        command.args(["--bake", "0", "--listen", &web, "--control"]).arg(folder.join("control"));
    });
    line.wait_for(1, Event::GenerationServing);
    let at = |name: &str| line.folder().join(name);
    for (generation, name) in [(2, "web.sock"), (3, "control")] {
        std::fs::remove_file(at(name)).unwrap();
        std::fs::write(at(name), "precious").unwrap();
        line.hand_over_from(generation - 1);
        let warning = line.wait_for(generation, Event::SocketPathTaken);
        assert_eq!(warning.field("path"), at(name).to_str(), "{}", warning.text);
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "precious");
        std::fs::remove_file(at(name)).unwrap();
    }
    line.hand_over_from(3);
    Client::once(at("web.sock").to_str().unwrap(), b"again").unwrap();
    assert_eq!(line.count(Event::SocketPathTaken), 2);
}

#[test]
fn no_process_keeps_a_listener_that_is_not_configured() {
    let (kept, dropped) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let parent =
        Parent::passing([kept.try_clone().unwrap().into(), dropped.try_clone().unwrap().into()]);
    let patiently = ["--bake", "0", "--first-request-grace", "1h", "--drain-timeout", "1h"];
    let line = parent.saying("LISTEN_FDNAMES", "kept:dropped").serve(&patiently);
    let _silent = keep_draining(&line.address_of("kept"));
    assert!(holds_socket(line.first_pid(), &dropped));
    line.successor_gets("--bake 0 --listen kept=127.0.0.1:1");
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    assert_eq!(line.processes().len(), 2);
    for pid in line.processes() {
        assert!(!holds_socket(pid, &dropped), "{pid} holds {:?}", holds(pid));
        assert!(holds_socket(pid, &kept));
    }
}
