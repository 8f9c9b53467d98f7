//! Leaks of descriptors and environment variables: none reach the started programs or later
//! generations.
//!
//! A leaked descriptor keeps a port or a client's connection alive. A leaked variable makes another
//! program send messages to our service manager. To find a leak of one per handoff, the tests
//! compare generations that are many handoffs apart.

use std::collections::BTreeMap;
use std::net::TcpListener;

use nix::sys::signal::Signal;

use crate::support::{
    Client, Event, Gate, Line, Parent, assert_becomes, children, environment, holds, holds_socket,
    kinds, threads,
};

/// The variables that a handoff adds; no others are allowed.
const HANDED_OVER: [&str; 3] = ["HANDOFFD_CHANNEL", "HANDOFFD_GENERATION", "LISTEN_FDS"];

fn names(variables: &[String]) -> Vec<&str> {
    variables.iter().map(|variable| variable.split_once('=').unwrap().0).collect()
}

fn value<'a>(variables: &'a [String], name: &str) -> &'a str {
    let variable =
        variables.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
    variable.unwrap_or_else(|| panic!("no {name} in {variables:?}"))
}

/// Returns the descriptors of a script that was started as a successor, without the script file
/// that its shell reads.
fn passed_to(script: u32, line: &Line) -> BTreeMap<i32, String> {
    let mut held = holds(script);
    held.retain(|_, what| *what != line.program().to_str().unwrap());
    held
}

#[test]
fn a_successor_gets_only_the_listeners_and_the_channel() {
    let line = Line::serve(&["--bake", "0", "--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
    // Connections are descriptors too.
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(&line.address()).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.echo(b"open").unwrap());
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    line.signal(1, Signal::SIGHUP);
    let script = gate.wait(&line);
    let (held, born_with) = (passed_to(script, &line), environment(script));
    assert_eq!(held.keys().copied().collect::<Vec<_>>(), [3, 4, 5, 6], "{held:?}");
    assert!(held.values().all(|what| what.starts_with("socket:")), "{held:?}");
    assert_eq!(value(&born_with, "LISTEN_FDS"), "3");
    assert!(value(&born_with, "HANDOFFD_CHANNEL").ends_with(":6"), "{born_with:?}");
    assert_eq!(value(&born_with, "HANDOFFD_GENERATION"), "2");
    // The successor has the listeners of the first generation and none of its connections.
    let first = holds(line.first_pid());
    let shared = (3..6).filter(|number| first.values().any(|what| *what == held[number])).count();
    assert_eq!(shared, 3);
    gate.open();
    line.wait_for(2, Event::GenerationServing);
    line.assert_serves();
}

#[test]
fn a_successor_inherits_the_environment() {
    let line = Line::serve(&["--bake", "0"]);
    let first = environment(line.first_pid());
    line.hand_over_from(1);
    let (second, both) = (environment(line.pid_of(2)), names(&first));
    let (added, kept): (Vec<_>, Vec<_>) = second
        .iter()
        .cloned()
        .partition(|variable| !both.contains(&names(std::slice::from_ref(variable))[0]));
    assert_eq!(kept, first);
    assert_eq!(names(&added), HANDED_OVER);
}

#[test]
fn a_parents_socket_variables_are_not_passed_on() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Parent::passing([socket.into()])
        .saying("LISTEN_FDNAMES", "web")
        .saying("WATCHDOG_USEC", "3000000");
    let line = parent.serve(&["--bake", "0"]);
    line.hand_over_from(1);
    let second = environment(line.pid_of(2));
    assert_eq!(
        second.iter().filter(|variable| variable.starts_with("LISTEN_")).count(),
        1,
        "{second:?}"
    );
    assert!(!names(&second).contains(&"LISTEN_PID"));
    assert_eq!(
        value(&second, "WATCHDOG_USEC"),
        "3000000",
        "the service manager's variable must be passed on"
    );
}

#[test]
fn descriptors_left_open_by_a_parent_are_not_passed_on() {
    let (stray, file) = (TcpListener::bind("127.0.0.1:0").unwrap(), tempfile::tempfile().unwrap());
    let parent = Parent::passing([TcpListener::bind("127.0.0.1:0").unwrap().into()])
        .leaving(9, stray.try_clone().unwrap().into())
        .leaving(50, file.try_clone().unwrap().into());
    let line = parent.serve(&["--bake", "0"]);
    assert!(
        holds_socket(line.first_pid(), &stray),
        "the first generation must hold the socket for this test"
    );
    line.hand_over_from(1);
    assert!(!holds_socket(line.pid_of(2), &stray));
    assert!(!holds_socket(line.pid_of(2), &file));
}

#[test]
fn twenty_handoffs_leave_nothing_behind() {
    let line = Line::serve(&["--bake", "0", "--workers", "1", "--listen", "[::1]:0"]);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    // The runtime has three descriptors, the signals three and the worker four. Two reserve numbers
    // for the channel to a successor, and the log has reopened standard error. None belongs to a
    // predecessor.
    let expected = [("anon_inode", 6), ("pipe", 1), ("socket", 8)];
    let expected = expected.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
    assert_becomes::<BTreeMap<_, _>>(&expected, || kinds(line.pid_of(2)));
    let second = settled(&line, 2);
    for generation in 2..22 {
        Client::once(&line.address(), b"in between").unwrap();
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
    }
    assert_becomes(&second, || settled(&line, 22));
    assert_eq!(line.processes(), [line.pid_of(22)]);
}

#[test]
fn failed_handoffs_leave_nothing_behind() {
    let line = Line::serve(&["--bake", "0"]);
    let before = (kinds(line.first_pid()), threads(line.first_pid()), 0);
    line.put_script("exit 3");
    for failures in 1..11 {
        line.signal(1, Signal::SIGHUP);
        line.wait_for_count(failures, Event::HandoffFailed);
    }
    std::fs::remove_file(line.program()).unwrap();
    for failures in 11..21 {
        line.signal(1, Signal::SIGHUP);
        line.wait_for_count(failures, Event::HandoffFailed);
    }
    line.assert_serves();
    let look =
        || (kinds(line.first_pid()), threads(line.first_pid()), children(line.first_pid()).len());
    assert_becomes(&before, look);
}

/// Returns a generation's resources: descriptors, threads, children, and the environment without
/// the generation number.
fn settled(line: &Line, generation: u64) -> (BTreeMap<String, usize>, usize, usize, Vec<String>) {
    let pid = line.pid_of(generation);
    let mut born_with = environment(pid);
    let own = format!("HANDOFFD_GENERATION={generation}");
    born_with.retain(|variable| *variable != own);
    (kinds(pid), threads(pid), children(pid).len(), born_with)
}
