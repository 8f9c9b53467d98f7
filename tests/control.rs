//! Commands over the control socket: their exit code and their output report the actual outcome.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{
    Callers, Event, Gate, Line, Operator, Parent, REAL, SLOW_DRAIN, freeze, signal, thaw,
};

#[test]
fn a_reload_returns_once_the_new_generation_serves() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    for generation in 1..4 {
        let said = line.asked(&["reload"]).well();
        assert!(
            said.starts_with(&format!("generation {} serves, process ", generation + 1)),
            "{said}"
        );
        line.wait_for(generation + 1, Event::GenerationServing);
        line.assert_serves();
    }
}

/// The command prints the reason, and the old generation keeps serving.
#[test]
fn a_failed_reload_says_why() {
    let line = Line::serve_controlled(&["--bake", "1h", "--ready-timeout", "1s"]);
    let callers = Callers::start(&line.address(), 2);
    let never_ready: [(&str, &str); 4] = [
        ("exec \"$REAL\" --listen nowhere", "bad address \"nowhere\""),
        ("exit 0", "ended before it was ready"),
        ("kill -9 $$", "ended before it was ready"),
        ("exec sleep 1000", "not ready within 1 s"),
    ];
    for (script, reason) in never_ready {
        line.put_script(script);
        line.asked(&["reload"]).names(70, &["the new generation did not take over", reason]);
        line.assert_serves();
    }
    line.put_file(b"", "755");
    line.asked(&["reload"]).names(70, &["Exec format error"]);
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0));
}

#[test]
fn a_successor_that_dies_in_the_bake_is_a_rollback() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    let reload = line.ask(&["reload"]);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(2, Signal::SIGKILL);
    reload.wait().names(76, &["rolled back", "ended after it was ready"]);
    line.assert_serves();
    let reload = line.ask(&["reload"]);
    line.wait_for_count(2, Event::SuccessorReady);
    let first = line.pid_of(2);
    let second = line
        .wait("the second successor", |record| {
            record.is(2, Event::GenerationAccepting) && record.pid != first
        })
        .pid;
    signal(second, Signal::SIGTERM);
    reload.wait().names(76, &["stop request before it had taken over"]);
    line.assert_serves();
}

#[test]
fn a_second_reload_is_told_to_try_again() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    let first = line.ask(&["reload"]);
    gate.wait(&line);
    line.asked(&["reload"]).names(75, &["another handoff is in progress"]);
    gate.open();
    first.wait().well();
    assert_eq!(line.count(Event::HandoffStarted), 1);
}

#[test]
fn a_reload_with_an_outdated_expectation_does_nothing() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    line.asked(&["reload", "--expect-generation", "2"])
        .names(75, &["generation 1 serves, but the request expects generation 2"]);
    assert_eq!(line.count(Event::HandoffStarted), 0);
    line.asked(&["reload", "--expect-generation", "1"]).well();
    line.asked(&["reload", "--expect-generation", "1"])
        .names(75, &["generation 2 serves, but the request expects generation 1"]);
}

/// The handoff is cancelled, whether the successor is ready or not.
#[test]
fn a_reload_that_times_out_is_cancelled() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    line.asked(&["reload", "--timeout", "300ms"]).names(75, &["within the requested 0.3 s"]);
    line.wait_for(1, Event::SuccessorReady);
    line.put_script("exec sleep 1000");
    line.asked(&["reload", "--timeout", "300ms"]).names(75, &["within the requested 0.3 s"]);
    line.assert_serves();
    let said = line.asked(&["status"]).well();
    assert!(said.contains("last handoff: generation 2 timed out"), "{said}");
}

#[test]
fn a_reload_can_wait_for_the_last_old_connection() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let mut held = line.hold();
    let mut reload = line.ask(&["reload", "--wait-drained"]);
    let said = reload.line();
    assert!(
        said.starts_with("generation 2 serves")
            && said.ends_with("connections left in the old process: 1"),
        "{said}"
    );
    held.echo(b"still here").unwrap();
    held.expect_end().unwrap();
    assert_eq!(
        reload.line(),
        "generation 1 has drained; connections ended: 1, moved to the new process: 0, cut: 0"
    );
    reload.wait().well();
}

#[test]
fn a_client_waiting_for_the_drain_learns_of_a_dead_successor() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let _held = line.hold();
    let mut reload = line.ask(&["reload", "--wait-drained"]);
    reload.line();
    line.signal(2, Signal::SIGKILL);
    reload.wait().names(76, &["rolled back", "ended after it was ready"]);
    line.assert_serves();
}

#[test]
fn a_client_asks_again_when_its_generation_dies() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    let reload = line.ask(&["reload"]);
    line.wait_for(2, Event::GenerationAccepting);
    line.signal(1, Signal::SIGKILL);
    let said = reload.wait().well();
    assert!(said.starts_with("generation 2 serves"), "{said}");
}

/// The test plays the daemon, so that it dies at exactly these points.
#[test]
fn a_reload_fails_when_all_generations_die() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("control");
    let reload_that_meets = |last_word: &str| {
        let daemon = UnixListener::bind(&path).unwrap();
        let mut command = Command::new(REAL);
        command.arg("reload").arg("--control").arg(&path);
        let reload = Operator::start(command);
        let (mut client, _) = daemon.accept().unwrap();
        BufReader::new(&client).read_line(&mut String::new()).unwrap();
        std::fs::remove_file(&path).unwrap();
        client.write_all(last_word.as_bytes()).unwrap();
        drop((client, daemon));
        reload.wait()
    };
    reload_that_meets("{\"started\":{\"successor\":2,\"within_ms\":0}}\n")
        .names(70, &["has died", "no daemon answers"]);
    reload_that_meets("{\"started\":{\"succ").names(75, &["ended without an answer"]);
    reload_that_meets("").names(75, &["ended without an answer"]);
    reload_that_meets("what?\n").names(69, &["invalid answer", "what?"]);
}

#[test]
fn a_stop_during_a_handoff_is_reported_to_the_client() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    let reload = line.ask(&["reload"]);
    gate.wait(&line);
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted);
    gate.open();
    reload.wait().names(70, &["the service is stopping"]);
    line.wait_for_end();
}

#[test]
fn commands_fail_without_a_daemon_or_a_socket() {
    let line = Line::serve(&[]);
    for command in ["reload", "status"] {
        line.asked(&[command]).names(69, &["no daemon answers on", "control", "No such file"]);
    }
    drop(UnixListener::bind(line.control()).unwrap());
    line.asked(&["status"]).names(69, &["Connection refused"]);
}

#[test]
fn status_shows_every_generation() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let _one = line.hold();
    line.asked(&["reload"]).well();
    let _two = line.hold();
    line.asked(&["reload"]).well();
    let table = line.asked(&["status"]).well();
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split_whitespace().collect()).collect();
    let pid = |generation| line.pid_of(generation).to_string();
    for (row, generation, state) in [(1, 3, "serving"), (2, 2, "retiring"), (3, 1, "retiring")] {
        assert_eq!(rows[row][..3], [&generation.to_string(), &pid(generation), state], "{table}");
    }
    assert_eq!((rows[1][4], rows[2][4], rows[3][4]), ("0", "1", "1"), "{table}");
    assert!(table.contains("last handoff: generation 3 took over"), "{table}");
    let json = line.asked(&["status", "--json"]).well();
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["serving"], 3);
    let generations = status["generations"].as_array().unwrap();
    assert_eq!(generations.len(), 3);
    for report in generations {
        assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(report["build"], generations[0]["build"]);
        assert_eq!(report["configuration"].as_str().unwrap().len(), 64);
        assert_eq!(report["drain_left_ms"].is_number(), report["state"] == "retiring");
        assert_eq!(report["connections"]["oldest_ms"].is_number(), report["state"] == "retiring");
    }
    assert_eq!(status["listeners"][0]["address"], line.address());
    assert_eq!(status["last_handoff"]["outcome"], "committed");
}

#[test]
fn status_works_while_a_generation_is_stopped() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let _held = line.hold();
    line.asked(&["reload"]).well();
    line.wait_for(1, Event::DrainStarted);
    freeze(line.first_pid());
    let table = line.asked(&["status"]).well();
    assert!(table.lines().any(|row| row.starts_with("1 ") && row.contains("unknown")), "{table}");
    assert!(table.lines().any(|row| row.starts_with("2 ") && row.contains("serving")), "{table}");
    thaw(line.first_pid());
    let table = line.asked(&["status"]).well();
    assert!(table.lines().any(|row| row.starts_with("1 ") && row.contains("retiring")), "{table}");
}

#[test]
fn a_watch_follows_a_drain_to_its_end() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let mut held = line.hold();
    line.asked(&["reload"]).well();
    let mut watch = line.ask(&["status", "--watch"]);
    let said = watch.line();
    let expected =
        "generation 2 serving, connections: 0; generation 1 draining, connections left: 1, ";
    assert!(said.starts_with(expected), "{said}");
    held.echo(b"still here").unwrap();
    let rest = watch.wait().well();
    assert_eq!(rest.lines().last(), Some("generation 2 serving, connections: 0"), "{rest}");
}

#[test]
fn a_watch_follows_a_stop_to_its_end() {
    let line = Line::serve_controlled(&SLOW_DRAIN);
    let mut held = line.hold();
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted);
    let mut watch = line.ask(&["status", "--watch"]);
    let said = watch.line();
    assert!(said.starts_with("generation 1 stopping, connections left: 1, "), "{said}");
    line.asked(&["reload"]).names(75, &["the service is stopping"]);
    held.echo(b"still here").unwrap();
    watch.wait().well();
    line.wait_for_end();
    assert!(!line.control().exists());
}

#[test]
fn the_control_socket_is_private_and_survives_handoffs() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    let first = std::fs::metadata(line.control()).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o600);
    line.asked(&["reload"]).well();
    assert_eq!(std::fs::metadata(line.control()).unwrap().ino(), first.ino());
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
    assert!(!line.control().exists());
}

#[test]
fn a_parent_can_pass_the_control_socket() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("theirs");
    let control: OwnedFd = UnixListener::bind(&path).unwrap().into();
    let web: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
    let parent = Parent::passing([control, web]).saying("LISTEN_FDNAMES", "control:web");
    let line = parent.serve(&["--bake", "0"]);
    let ask = |words: &[&str]| {
        let mut command = Command::new(REAL);
        command.args(words).arg("--control").arg(&path);
        Operator::start(command).wait().well()
    };
    ask(&["reload"]);
    assert!(ask(&["status"]).contains("\nweb       127.0.0.1:"));
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
    assert!(path.exists(), "the daemon unlinked the parent's socket");
}

#[test]
fn the_control_socket_defaults_to_the_runtime_directory() {
    let line = Line::start_with(|command, folder| {
        command
            .args(["--listen", "127.0.0.1:0"])
            .env("RUNTIME_DIRECTORY", format!("{}:/other", folder.display()));
    });
    line.wait_for(1, Event::GenerationServing);
    assert!(line.control().exists());
    let mut command = Command::new(REAL);
    command.arg("status").env("RUNTIME_DIRECTORY", line.folder());
    Operator::start(command).wait().well();
}

#[test]
fn a_check_reads_everything_and_changes_nothing() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let check = |arguments: &[&str]| {
        let mut command = Command::new(REAL);
        command.current_dir(&folder).arg("check").args(arguments);
        Operator::start(command).wait()
    };
    let path = folder.path().join("socket");
    let good =
        ["--listen", path.to_str().unwrap(), "--listen", "web=127.0.0.1:1", "--pid-file", "pid"];
    let said = check(&good).well();
    assert!(said.contains("would listen on /") && said.contains("web=127.0.0.1:1"), "{said}");
    check(&["--listen", "nowhere"]).names(64, &["bad address \"nowhere\""]);
    check(&["--listen", "web=/no/such/folder/socket"])
        .names(78, &["web", "/no/such/folder/socket", "No such file"]);
    check(&["--pid-file", "/no/such/folder/pid"]).names(78, &["pid file", "/no/such/folder/pid"]);
    check(&["--control", "/no/such/folder/control"])
        .names(78, &["control", "/no/such/folder/control"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}
