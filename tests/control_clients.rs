//! Clients of the control socket that leave, stall, flood it or may not ask: none of them hurts an
//! operator or the line.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{
    DEADLINE, Event, Gate, Line, Operator, REAL, SLOW_DRAIN, freeze, raise_descriptor_limit, thaw,
};

/// What a reload reports that was given up when its client's time was over.
const OUT_OF_TIME: &str = "not done within 1 s";

/// What a raw request is answered with.
fn converse(socket: &Path, request: &[u8]) -> String {
    let mut client = UnixStream::connect(socket).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    // The daemon may have answered and closed before it was all said: the request is longer than it
    // reads.
    let _ = client.write_all(request);
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    answer
}

/// The daemon is stopped before it accepts the client: that one has left when the daemon goes on.
#[test]
fn a_reload_that_was_given_up_is_not_carried_out_later() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    freeze(line.first_pid());
    let began = Instant::now();
    line.asked(&["reload", "--timeout", "1s"]).names(75, &[OUT_OF_TIME, "no answer in time on"]);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "the client's clock, not the daemon's: {:?}",
        began.elapsed()
    );
    let mut raw = UnixStream::connect(line.control()).unwrap();
    raw.write_all(b"{\"reload\":{}}\n").unwrap();
    drop(raw);
    thaw(line.first_pid());
    line.wait_for_count(2, Event::ControlRequestDropped);
    assert!(line.asked(&["status"]).well().contains("handoffs: 0 succeeded, 0 failed"));
    assert_eq!(line.count(Event::HandoffStarted), 0);
}

/// The daemon is stopped when the handoff has begun: the new generation gets ready meanwhile.
#[test]
fn a_handoff_whose_client_ran_out_of_time_is_taken_back() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    let reload = line.ask(&["reload", "--timeout", "1s"]);
    gate.wait(&line);
    freeze(line.first_pid());
    reload.wait().names(75, &[OUT_OF_TIME]);
    gate.open();
    line.wait_for(2, Event::GenerationAccepting);
    thaw(line.first_pid());
    line.wait_for(1, Event::HandoffFailed);
    assert!(line.asked(&["status"]).well().contains("last handoff: generation 2 was given up"));
    line.assert_serves();
}

#[test]
fn a_client_that_half_closes_still_waits_for_its_reply() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut client = UnixStream::connect(line.control()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"{\"reload\":{}}\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("{\"serving\":{\"generation\":2,"), "{answer}");
}

/// The test plays a daemon that never ends its line.
#[test]
fn a_daemon_that_sends_a_byte_at_a_time_does_not_hold_up_the_client() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("control");
    let daemon = UnixListener::bind(&path).unwrap();
    let mut command = Command::new(REAL);
    command.args(["reload", "--timeout", "1s", "--control"]).arg(&path);
    let reload = Operator::start(command);
    let (client, _) = daemon.accept().unwrap();
    // As long as the client listens, it gets a byte before it has waited long for one.
    let dripping = std::thread::spawn(move || {
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while (&client).write_all(b" ").is_ok() {
            let _ = (&client).read(&mut [0; 1024]);
        }
    });
    reload.wait().names(75, &[OUT_OF_TIME, "no answer in time on"]);
    dripping.join().unwrap();
}

/// An operator's request comes with its connection: a client that has sent none makes room.
#[test]
fn any_number_of_silent_clients_leaves_room_for_the_operator() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    raise_descriptor_limit();
    let silent: Vec<_> = (0..600).map(|_| UnixStream::connect(line.control()).unwrap()).collect();
    line.asked(&["status"]).well();
    line.asked(&["reload", "--timeout", "5s"]).well();
    drop(silent);
}

/// Their user is looked at before they are given a place.
#[test]
fn strangers_on_the_control_socket_do_not_keep_the_operator_out() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    std::fs::set_permissions(line.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(line.control(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "perl",
        "-MIO::Socket::UNIX",
        "-e",
    ]);
    command.arg("$| = 1; my @s = map { IO::Socket::UNIX->new($ARGV[0]) or die } 1..200; print qq(all\n); sleep 1000");
    command.arg(line.control());
    let mut strangers = Operator::start(command);
    assert_eq!(strangers.line(), "all");
    line.asked(&["status"]).well();
    line.asked(&["reload", "--timeout", "5s"]).well();
    assert!(line.count(Event::ControlDenied) < 20, "one record for each of them fills the log");
    // And the client hears why it is refused, though it was not read.
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(REAL)
        .args(["status", "--control"]);
    Operator::start({
        command.arg(line.control());
        command
    })
    .wait()
    .names(77, &["user 65534 may not ask"]);
}

/// Whatever the mode of the path: the kernel tells who asks.
#[test]
fn another_user_is_refused() {
    let line = Line::serve_controlled(&[]);
    std::fs::set_permissions(line.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(line.control(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "perl",
        "-MIO::Socket::UNIX",
        "-e",
    ]);
    command.arg("my $s = IO::Socket::UNIX->new($ARGV[0]) or die; print $s qq({\"reload\":{}}\\n); print <$s>");
    command.arg(line.control());
    let said = Operator::start(command).wait().well();
    assert!(
        said.contains(r#""why":"denied""#) && said.contains("user 65534 may not ask"),
        "{said}"
    );
    assert_eq!(line.count(Event::HandoffStarted), 0);
}

#[test]
fn clients_that_stall_hold_up_nobody() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let stalled: Vec<_> = (0..20).map(|_| UnixStream::connect(line.control()).unwrap()).collect();
    line.asked(&["reload"]).well();
    line.asked(&["status"]).well();
    drop(stalled);
}

#[test]
fn a_request_that_reaches_a_generation_that_has_retired_is_answered_by_its_successor() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let _held = line.hold();
    // Accepted by the first generation, and asked of when it is no longer the head.
    let mut early = UnixStream::connect(line.control()).unwrap();
    line.asked(&["status"]).well();
    line.asked(&["reload"]).well();
    early.write_all(b"{\"status\":{}}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(early).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"moved\":{}}\n");
}

#[test]
fn what_is_no_request_is_refused_and_named() {
    let line = Line::serve_controlled(&[]);
    for request in [
        &b"nonsense\n"[..],
        b"{}\n",
        b"{\"levitate\":{}}\n",
        b"{\"reload\":{\"timeout_ms\":-1}}\n",
        b"\n",
        b"\xff{}\n",
    ] {
        let said = converse(&line.control(), request);
        assert!(
            said.contains(r#""why":"denied""#) && said.contains("cannot read the request"),
            "{said}"
        );
    }
    assert!(converse(&line.control(), &[b'x'; 100_000]).contains("cannot read the request"));
    assert_eq!(line.count(Event::HandoffStarted), 0);
}

#[test]
fn a_handoff_goes_on_when_whoever_asked_for_it_goes_away() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    let reload = line.ask(&["reload"]);
    gate.wait(&line);
    drop(reload);
    gate.open();
    line.wait_for(2, Event::GenerationServing);
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
}
