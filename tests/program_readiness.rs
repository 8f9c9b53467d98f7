//! Tests of how a program shows that it is ready and well: each sign counts, and a program that
//! fails its health check is started again.

use std::fs;

use crate::programs::{INHERITING, PRIVATE, good, put, put_script, run, run_app};
use crate::support::{Client, Event, REAL, Tracer, assert_becomes, example};

/// Each sign of readiness is waited for: the reload succeeds, and not before.
#[test]
fn every_sign_of_readiness_is_understood() {
    let inherit = ["--attach", "inherit"];
    for (sign, script) in [
        (&["--ready", "descriptor:5"][..], "echo ready >&5; exec 5>&-; exec sleep 1000"),
        (&["--ready", "alive"], "exec sleep 1000"),
        (&["--ready", "after:10ms"], "exec sleep 1000"),
        (&["--ready-command", "test", "-e", "/proc/self", ";"], "exec sleep 1000"),
    ] {
        let line = run_app(script, &[&inherit[..], &["--bake", "0"], sign].concat(), &[]);
        line.asked(&["reload"]).well();
    }
}

/// A private program answers a request over HTTP before it counts as ready, and again after that.
#[test]
fn a_check_over_http_is_asked_until_it_succeeds() {
    // An echo sends the request back, which is no reply of HTTP.
    let line = run(|command, folder| {
        put(folder, &good());
        command.args(["--ready", "http:/up", "--ready-timeout", "500ms"]);
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    assert_eq!(line.exit_code(1), 71);
    assert_eq!(line.count(Event::ProgramReady), 0);
    let server = example("http");
    let script = format!("exec {} \"$1\"", server.display());
    let line = run_app(&script, &["--ready", "http:/"], &["127.0.0.1:{port}"]);
    Client::connect(&line.address()).unwrap().get().unwrap();
}

/// A program that listens on its private port gets its clients there, whatever has shown that it is
/// ready, and wherever the port is mentioned.
#[test]
fn a_program_that_listens_on_its_port_is_private() {
    let listens_on = |port| format!("exec {REAL} --listen 127.0.0.1:{port} --log off --no-carry");
    for (flags, port) in [(["--ready", "notify"], "$PORT"), (["--env", "MINE={port}"], "$MINE")] {
        let line = run_app(&listens_on(port), &[&flags[..], &["--bake", "0"]].concat(), &[]);
        line.assert_serves();
        line.asked(&["reload"]).well();
        line.assert_serves();
    }
    // Its own log would look like the log of the daemon.
    let script = format!("exec {} 127.0.0.1:$PORT 2> /dev/null", example("http").display());
    let line = run_app(&script, &["--ready", "http:/", "--bake", "0"], &[]);
    line.asked(&["reload"]).well();
    Client::connect(&line.address()).unwrap().get().unwrap();
}

/// A check that fails in the bake rolls back; a check that fails later starts the program again.
#[test]
fn a_ready_program_is_checked_again() {
    let script = format!("touch \"$WELL\"; {}", good());
    let line = run(|command, folder| {
        put(folder, &script);
        let well = folder.join("well-{generation}");
        command.args(["--attach", "port", "--bake", "60s", "--check-interval", "20ms"]);
        command.arg("--env").arg(format!("WELL={}", well.display()));
        command.args(["--ready-command", "test", "-e"]).arg(well).arg(";");
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    fs::remove_file(line.folder().join("well-1")).unwrap();
    line.wait_for_count(1, Event::ProgramRestarting);
    line.wait_for_count(2, Event::ProgramReady);
    let status = line.asked(&["status", "--json"]).well();
    assert!(status.contains("\"exits_by_signal\":{\"9\":1}"), "{status}");
    let reload = line.ask(&["reload"]);
    line.wait_for(2, Event::ProgramReady);
    fs::remove_file(line.folder().join("well-2")).unwrap();
    reload.wait().names(76, &["the program failed its health check"]);
    line.assert_serves();
}

/// Asserts that a program keeps running while its checks cannot be made. `ready` holds the flags of
/// the check, and `error` is the injected error.
fn outlives_a_shortage(ready: &[&str], arguments: &[&str], error: &str) {
    let line = run_app(&good(), &[ready, &["--check-interval", "10ms"]].concat(), arguments);
    let pid = line.first_pid();
    let inject = format!("inject={error}");
    let tracer = Tracer::attach(&line, pid, &["-f", "-e", "signal=none", "-e", &inject]);
    let trace = line.folder().join(format!("trace-{pid}"));
    // A failed check would have ended the program before the next check.
    let failures = || fs::read_to_string(&trace).unwrap().matches("INJECTED").count();
    assert_becomes(&true, || failures() >= 3);
    tracer.detach();
    line.assert_serves();
    assert_eq!(line.count(Event::ProgramRestarting), 0, "{error}");
}

/// A check that cannot be made says nothing about the program.
#[test]
fn a_shortage_during_a_check_does_not_kill_the_program() {
    let socket = ["--listen", "{socket}", "--log", "off", "--no-carry"];
    let command = ["--ready-command", "true", ";"];
    for (ready, arguments, error) in [
        (&[][..], PRIVATE, "socket:error=EMFILE"),
        (&[], PRIVATE, "connect:error=EADDRNOTAVAIL"),
        (&[], socket, "connect:error=EAGAIN"),
        (&command, PRIVATE, "clone:error=EAGAIN"),
    ] {
        outlives_a_shortage(ready, &arguments, error);
    }
}

/// The shortage is logged once, and the next check that can be made counts again.
#[test]
fn a_check_that_cannot_be_made_is_logged_once() {
    let line = run(|command, folder| {
        put(folder, &good());
        put_script(folder, "check", "exit 0");
        command.args(["--attach", "port", "--check-interval", "10ms", "--ready-command"]);
        command.arg(folder.join("check")).args([";", "--"]);
        command.arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    fs::remove_file(line.folder().join("check")).unwrap();
    line.wait_for(1, Event::ProgramCheckImpossible);
    line.assert_serves();
    put_script(line.folder(), "check", "exit 1");
    line.wait_for(1, Event::ProgramRestarting);
    assert_eq!(line.count(Event::ProgramCheckImpossible), 1);
}

/// A program that inherits, although it was offered a port, cannot be checked by a connection.
#[test]
fn a_program_that_inherits_is_not_checked_on_its_port() {
    let line = run_app(&good(), &["--check-interval", "10ms", "--bake", "300ms"], &INHERITING);
    line.asked(&["reload"]).well();
    line.assert_serves();
    assert_eq!(line.count(Event::ProgramRestarting), 0);
}

/// A check that hangs does not keep the generation from giving up in time.
#[test]
fn a_check_that_hangs_is_given_up() {
    let line = run(|command, folder| {
        put(folder, "exec sleep 1000");
        command.args(["--attach", "inherit", "--ready-timeout", "300ms"]);
        command.args(["--ready-command", "sleep", "1000", ";", "--"]).arg(folder.join("app"));
    });
    assert_eq!(line.exit_code(1), 71);
    line.wait_for_end();
}
