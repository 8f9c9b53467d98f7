//! Real `systemd-socket-activate` starts the daemon: what systemd's own code passes is what we
//! take.
//!
//! It listens, and becomes the daemon when the first client comes. That client waits in the queue
//! meanwhile.

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, free_port};

/// Starts it on these addresses, with its arguments and the daemon's, and waits until it listens.
fn activate(addresses: &[&str], its: &[&str], daemons: &[&str]) -> Line {
    let mut launcher = vec!["systemd-socket-activate"];
    launcher.extend(addresses.iter().flat_map(|address| ["-l", address]));
    launcher.extend(its);
    let line = Line::start_under(&launcher, |command, _| {
        command.args(["--bake", "0"]).args(daemons);
    });
    line.wait_for_count(addresses.len(), "Listening on");
    line
}

/// The client that starts the daemon is served, and so is everybody over handoffs, until the daemon
/// is told to stop.
fn assert_serves_to_the_end(line: &Line, addresses: &[&str]) {
    for generation in 1..3 {
        for address in addresses {
            Client::once(address, b"wake up").unwrap();
        }
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
    }
    line.signal(3, Signal::SIGTERM);
    assert_eq!(line.exit_code(3), 0);
    for address in addresses {
        assert!(Client::connect(address).is_err(), "{address}");
    }
}

fn listeners_of(line: &Line, generation: u64) -> String {
    line.wait_for(generation, Event::GenerationAccepting).field("listeners").unwrap().to_owned()
}

fn free_addresses() -> [String; 2] {
    [format!("127.0.0.1:{}", free_port()), format!("[::1]:{}", free_port())]
}

#[test]
fn one_socket_without_a_name_is_served() {
    let address = &free_addresses()[0];
    let line = activate(&[address], &[], &[]);
    assert_serves_to_the_end(&line, &[address]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("default={address}"));
    }
}

#[test]
fn several_sockets_without_names_are_all_served() {
    let [four, six] = &free_addresses();
    let line = activate(&[four, six], &[], &[]);
    assert_serves_to_the_end(&line, &[four, six]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("listener-1={four} listener-2={six}"));
    }
}

#[test]
fn several_sockets_without_names_go_to_the_listeners_of_their_addresses() {
    let [four, six] = &free_addresses();
    let flags = [&format!("--listen=six={six}"), &format!("--listen=four={four}")];
    let line = activate(&[four, six], &[], &flags.map(String::as_str));
    assert_serves_to_the_end(&line, &[four, six]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("six={six} four={four}"));
    }
}

#[test]
fn sockets_with_names_are_served_under_their_names() {
    let [four, six] = &free_addresses();
    let line = activate(&[four, six], &["--fdname=web:api"], &[]);
    assert_serves_to_the_end(&line, &[four, six]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("web={four} api={six}"));
    }
}

#[test]
fn names_win_over_the_addresses_that_are_configured() {
    let [four, six] = &free_addresses();
    let flags = ["--listen=api=127.0.0.1:1", "--listen=web=127.0.0.1:2"];
    let line = activate(&[four, six], &["--fdname=web:api"], &flags);
    assert_serves_to_the_end(&line, &[four, six]);
    assert_eq!(listeners_of(&line, 3), format!("api={six} web={four}"));
}

#[test]
fn a_unix_socket_is_served_and_its_path_left_to_its_owner() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock");
    let address = path.to_str().unwrap();
    let line = activate(&[address], &[], &[]);
    assert_serves_to_the_end(&line, &[address]);
    assert!(path.exists());
}

#[test]
fn a_datagram_socket_is_refused_and_named() {
    let address = format!("127.0.0.1:{}", free_port());
    let line = activate(&[&address], &["--datagram", "--fdname=dns"], &[]);
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"wake up", &address).unwrap();
    assert_eq!(line.exit_code(1), 78);
    let said = line.wait_for_end().pop().unwrap().text;
    assert!(said.contains("descriptor 3 (dns) is a datagram socket"), "{said}");
}
