//! Clients of the control socket that leave, stall, flood it or lack permission: none affects an
//! operator or the lineage.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{
    DEADLINE, Event, Gate, Line, Operator, REAL, SLOW_DRAIN, freeze, raise_descriptor_limit,
    signal, thaw,
};

/// The error of a reload that was cancelled because its client's time had passed.
const OUT_OF_TIME: &str = "within the requested 1 s";

/// Sends a raw request and returns the reply.
fn converse(socket: &Path, request: &[u8]) -> String {
    let mut client = UnixStream::connect(socket).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    // The daemon may reply and close before reading all of a request that exceeds its limit.
    let _ = client.write_all(request);
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    answer
}

/// The daemon is stopped before it accepts the client. The client has left by the time the daemon
/// continues.
#[test]
fn an_abandoned_reload_is_not_carried_out_later() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    freeze(line.first_pid());
    let began = Instant::now();
    line.asked(&["reload", "--timeout", "1s"])
        .names(75, &[OUT_OF_TIME, "the daemon did not answer in time on"]);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "the client did not time out by its own clock: {:?}",
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

/// The daemon is stopped after the handoff has begun. The new generation becomes ready meanwhile.
#[test]
fn a_handoff_is_cancelled_when_its_client_times_out() {
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
    assert!(line.asked(&["status"]).well().contains("last handoff: generation 2 timed out"));
    line.assert_serves();
}

#[test]
fn a_client_that_half_closes_still_gets_its_reply() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut client = UnixStream::connect(line.control()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"{\"reload\":{}}\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("{\"serving\":{\"generation\":2,"), "{answer}");
}

/// The test plays a daemon that never finishes its reply.
#[test]
fn a_slow_daemon_does_not_delay_the_client_beyond_its_timeout() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("control");
    let daemon = UnixListener::bind(&path).unwrap();
    let mut command = Command::new(REAL);
    command.args(["reload", "--timeout", "1s", "--control"]).arg(&path);
    let reload = Operator::start(command);
    let (client, _) = daemon.accept().unwrap();
    // The client keeps receiving bytes, so no single read times out.
    let dripping = std::thread::spawn(move || {
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while (&client).write_all(b" ").is_ok() {
            let _ = (&client).read(&mut [0; 1024]);
        }
    });
    reload.wait().names(75, &[OUT_OF_TIME, "the daemon did not answer in time on"]);
    dripping.join().unwrap();
}

/// An operator sends a request immediately after connecting. A client that has sent nothing can be
/// disconnected to make room.
#[test]
fn silent_clients_leave_room_for_the_operator() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    raise_descriptor_limit();
    let silent: Vec<_> = (0..600).map(|_| UnixStream::connect(line.control()).unwrap()).collect();
    line.asked(&["status"]).well();
    line.asked(&["reload", "--timeout", "5s"]).well();
    drop(silent);
}

/// Returns a command of another user, in the folder of the lineage. The command reaches the control
/// socket by a relative path, because another user may not enter the folders above, such as /root.
fn stranger(line: &Line, program: &str) -> Command {
    std::fs::set_permissions(line.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(line.control(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
    command.current_dir(line.folder());
    command
}

/// The daemon checks the user of a connection before the connection takes a permit.
#[test]
fn clients_of_other_users_do_not_block_the_operator() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut command = stranger(&line, "perl");
    command.args(["-MIO::Socket::UNIX", "-e"]);
    command.arg("$| = 1; my @s = map { IO::Socket::UNIX->new($ARGV[0]) or die } 1..200; print qq(all\n); sleep 1000");
    command.arg("control");
    let mut strangers = Operator::start(command);
    assert_eq!(strangers.line(), "all");
    line.asked(&["status"]).well();
    line.asked(&["reload", "--timeout", "5s"]).well();
    assert!(line.count(Event::ControlDenied) < 20, "the log has a record for each rejected client");
    // The client learns why it is rejected although its request was not read.
    std::fs::copy(REAL, line.folder().join("stranger")).unwrap();
    let mut command = stranger(&line, "./stranger");
    command.args(["status", "--control", "control"]);
    Operator::start(command).wait().names(77, &["uid 65534 may not connect"]);
    // With the usual mode of the path, the kernel refuses the user.
    let mut command = stranger(&line, "./stranger");
    std::fs::set_permissions(line.control(), std::fs::Permissions::from_mode(0o600)).unwrap();
    command.args(["status", "--control", "control"]);
    Operator::start(command).wait().names(77, &["Permission denied"]);
}

/// The mode of the path does not matter: the kernel reports the client's user.
#[test]
fn another_user_is_refused() {
    let line = Line::serve_controlled(&[]);
    let mut command = stranger(&line, "perl");
    command.args(["-MIO::Socket::UNIX", "-e"]);
    command.arg("my $s = IO::Socket::UNIX->new($ARGV[0]) or die; print $s qq({\"reload\":{}}\\n); print <$s>");
    command.arg("control");
    let said = Operator::start(command).wait().well();
    assert!(
        said.contains(r#""why":"denied""#) && said.contains("uid 65534 may not connect"),
        "{said}"
    );
    assert_eq!(line.count(Event::HandoffStarted), 0);
}

#[test]
fn stalled_clients_delay_no_operator() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let stalled: Vec<_> = (0..20).map(|_| UnixStream::connect(line.control()).unwrap()).collect();
    line.asked(&["reload"]).well();
    line.asked(&["status"]).well();
    drop(stalled);
}

#[test]
fn a_retired_generation_redirects_requests_to_its_successor() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let _held = line.hold();
    // The first generation accepts this client, and the request arrives when that generation is no
    // longer active.
    let mut early = UnixStream::connect(line.control()).unwrap();
    line.asked(&["status"]).well();
    line.asked(&["reload"]).well();
    early.write_all(b"{\"status\":{}}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(early).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"moved\":{}}\n");
}

#[test]
fn an_invalid_request_is_rejected_by_name() {
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
fn a_handoff_continues_when_its_client_disconnects() {
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

/// A reload that no process can answer any more fails at once, although the new process had an hour
/// to become ready.
#[test]
fn a_reload_fails_at_once_when_nobody_is_left_to_answer() {
    let line = Line::serve_controlled(&["--ready-timeout", "1h"]);
    line.put_script("echo $$ >\"$FOLDER/pid\"; echo hanging >&2; exec sleep 1000");
    let reload = line.ask(&["reload"]);
    line.wait_for(0, "hanging");
    let hanging = std::fs::read_to_string(line.folder().join("pid")).unwrap();
    // By then the daemon has told the client of the reload that the handoff has begun.
    line.asked(&["status"]).well();
    line.signal(1, Signal::SIGKILL);
    signal(hanging.trim().parse().unwrap(), Signal::SIGKILL);
    reload.wait().names(70, &["has died", "no daemon answers"]);
}

/// The daemon answers before it waits for the successor, which is ready but hangs.
#[test]
fn a_hanging_successor_does_not_delay_the_answer() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    let reload = line.ask(&["reload", "--timeout", "5s"]);
    line.wait_for(1, Event::SuccessorReady);
    freeze(line.pid_of(2));
    let answered = reload.wait();
    assert!(!answered.err.contains("did not answer"), "{answered:?}");
    answered.names(75, &["within the requested 5 s"]);
}
