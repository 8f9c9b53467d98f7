//! Socket activation by the real `systemd-socket-activate`: the daemon accepts what systemd's own
//! code passes.
//!
//! The tool listens, and executes the daemon when the first client connects. Meanwhile that client
//! waits in the backlog.

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, free_port};

/// Starts the tool on these addresses with its own arguments and the daemon's, and waits until it
/// listens.
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

/// Asserts that the client that triggers the daemon is served, and that clients are served across
/// handoffs. After the stop, the addresses refuse connections.
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
fn a_single_unnamed_socket_is_served() {
    let address = &free_addresses()[0];
    let line = activate(&[address], &[], &[]);
    assert_serves_to_the_end(&line, &[address]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("default={address}"));
    }
}

#[test]
fn several_unnamed_sockets_are_served() {
    let [four, six] = &free_addresses();
    let line = activate(&[four, six], &[], &[]);
    assert_serves_to_the_end(&line, &[four, six]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("listener-1={four} listener-2={six}"));
    }
}

#[test]
fn unnamed_sockets_match_listeners_by_address() {
    let [four, six] = &free_addresses();
    let flags = [&format!("--listen=six={six}"), &format!("--listen=four={four}")];
    let line = activate(&[four, six], &[], &flags.map(String::as_str));
    assert_serves_to_the_end(&line, &[four, six]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("six={six} four={four}"));
    }
}

#[test]
fn named_sockets_keep_their_names() {
    let [four, six] = &free_addresses();
    let line = activate(&[four, six], &["--fdname=web:api"], &[]);
    assert_serves_to_the_end(&line, &[four, six]);
    for generation in 1..4 {
        assert_eq!(listeners_of(&line, generation), format!("web={four} api={six}"));
    }
}

#[test]
fn a_socket_name_wins_over_its_address() {
    let [four, six] = &free_addresses();
    let flags = ["--listen=api=127.0.0.1:1", "--listen=web=127.0.0.1:2"];
    let line = activate(&[four, six], &["--fdname=web:api"], &flags);
    assert_serves_to_the_end(&line, &[four, six]);
    assert_eq!(listeners_of(&line, 3), format!("api={six} web={four}"));
}

/// The path belongs to the parent that bound it, so the daemon does not unlink it.
#[test]
fn a_passed_unix_socket_is_served_and_its_path_remains() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("web.sock");
    let address = path.to_str().unwrap();
    let line = activate(&[address], &[], &[]);
    assert_serves_to_the_end(&line, &[address]);
    assert!(path.exists());
}

#[test]
fn a_datagram_socket_is_refused_by_name() {
    let address = format!("127.0.0.1:{}", free_port());
    let line = activate(&[&address], &["--datagram", "--fdname=dns"], &[]);
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"wake up", &address).unwrap();
    assert_eq!(line.exit_code(1), 78);
    let said = line.wait_for_end().pop().unwrap().text;
    assert!(said.contains("descriptor 3 (dns) is a datagram socket"), "{said}");
}
