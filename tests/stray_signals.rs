//! Tests of stray signals: none ends the daemon by accident. SIGUSR2 starts a handoff. Other
//! signals whose default action is to kill are logged and ignored.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{
    Client, DEADLINE, Event, Line, SLOW_DRAIN, assert_becomes, exit_code, signal,
};

/// Signals that have an intended effect: HUP, INT, QUIT, the faults, KILL, USR2, TERM, and job
/// control.
const MEANT: [i32; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 17, 18, 19, 20, 21, 22, 23, 31];

/// Signals that are ignored silently: PIPE, XFSZ, WINCH, and two that the C library reserves.
const SILENT: [i32; 5] = [13, 25, 28, 32, 33];

/// Sends a signal by number, because some have no name.
fn send(pid: u32, number: i32) {
    let sent = Command::new("bash").args(["-c", &format!("kill -{number} {pid}")]).status();
    assert!(sent.unwrap().success(), "{number}");
}

#[test]
fn usr2_starts_a_handoff() {
    let line = Line::serve(&["--bake", "0"]);
    for generation in 1..=3 {
        line.signal(generation, Signal::SIGUSR2);
        line.wait_for(generation + 1, Event::GenerationServing);
    }
    line.assert_serves();
    line.signal(4, Signal::SIGTERM);
    line.wait_for_end();
    assert_eq!(line.count(Event::HandoffStarted), 3);
}

/// Either signal during a handoff starts another handoff afterwards. Both together start only one.
#[test]
fn usr2_during_a_handoff_is_remembered_like_hup() {
    let line = Line::serve(&[&["--bake", "60s"], &SLOW_DRAIN[..]].concat());
    line.signal(1, Signal::SIGUSR2);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(1, Signal::SIGUSR2);
    line.wait_for(1, Event::ReloadPending);
    line.signal(1, Signal::SIGHUP);
    line.wait_for_count(2, Event::ReloadPending);
    line.signal(1, Signal::SIGTERM);
    line.wait_for(2, Event::SuccessorReady);
    line.signal(2, Signal::SIGTERM);
    line.wait_for(3, Event::GenerationServing);
    line.signal(3, Signal::SIGTERM);
    line.wait_for_end();
    assert_eq!(line.count(Event::HandoffStarted), 2);
}

#[test]
fn usr2_before_the_handler_is_set_starts_a_handoff() {
    let line = Line::serve(&["--bake", "0"]);
    line.put_script(r#"kill -USR2 $$; exec "$REAL" "$@""#);
    line.hand_over_from(1);
    line.wait_for(3, Event::GenerationServing);
    line.assert_serves();
}

#[test]
fn a_stray_signal_before_the_handlers_are_set_is_ignored() {
    let line = Line::serve(&["--bake", "0"]);
    let strays = "USR1 ALRM IO PROF VTALRM PWR STKFLT XCPU RTMIN RTMAX PIPE XFSZ";
    line.put_script(&format!(r#"for one in {strays}; do kill -$one $$; done; exec "$REAL" "$@""#));
    line.hand_over_from(1);
    line.assert_serves();
    assert_eq!(line.exit_code(1), 0);
}

#[test]
fn every_other_signal_is_logged_and_ignored() {
    let line = Line::start_with(|command, folder| {
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "0", "--pid-file"])
            .arg(folder.join("pid"));
    });
    line.wait_for(1, Event::GenerationServing);
    let mut client = Client::connect(&line.address()).unwrap();
    for generation in 1..=2 {
        client.echo(b"before").unwrap();
        let pid = line.pid_of(generation);
        for number in (1..=64).filter(|number| !MEANT.contains(number)) {
            let mark = line.mark();
            send(pid, number);
            if !SILENT.contains(&number) {
                line.wait_since(mark, "the signal", |record| {
                    record.is(generation, Event::SignalIgnored)
                });
            }
            client.echo(b"still here").unwrap();
        }
        assert_eq!(fs::read_to_string(line.folder().join("pid")).unwrap().trim(), pid.to_string());
        let named = line.wait_for(generation, Event::SignalIgnored.with("signal", "SIGUSR1"));
        assert_eq!(named.field("signal"), Some("SIGUSR1"));
        if generation == 1 {
            line.hand_over_from(1);
            client = Client::connect(&line.address()).unwrap();
        }
    }
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
}

/// SIGUSR2 to the init reaches the active generation.
#[test]
fn an_init_forwards_usr2_and_ignores_stray_signals() {
    let line = Line::serve(&["--bake", "0", "--init"]);
    for number in (1..=64).filter(|number| !MEANT.contains(number)) {
        send(line.first_pid(), number);
    }
    signal(line.first_pid(), Signal::SIGUSR2);
    line.wait_for(2, Event::GenerationServing);
    signal(line.first_pid(), Signal::SIGUSR2);
    line.wait_for(3, Event::GenerationServing);
    line.assert_serves();
    signal(line.first_pid(), Signal::SIGTERM);
    assert_eq!(exit_code(line.first_pid()), 0);
    line.wait_for_end();
}

/// The log file may not grow any more. Only the write of the log fails.
#[test]
fn a_log_file_at_its_size_limit_does_not_stop_the_daemon() {
    let script =
        "ulimit -f 1; exec \"$1\" --listen \"$2/socket\" --bake 0 --log debug 1>&2 2>\"$2/log\"";
    let line = Line::start_program(Path::new("/bin/bash"), |command, folder| {
        command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_handoffd")]).arg(folder);
    });
    let (socket, log) = (line.folder().join("socket"), line.folder().join("log"));
    let serves = || Client::once(socket.to_str().unwrap(), b"still served?").is_ok();
    assert_becomes(&true, serves);
    let until = std::time::Instant::now() + DEADLINE;
    while fs::metadata(&log).unwrap().len() < 1024 {
        assert!(serves() && std::time::Instant::now() < until);
    }
    assert!((0..10).all(|_| serves()));
    signal(line.first_pid(), Signal::SIGHUP);
    assert_eq!(line.exit_code(1), 0);
    assert!((0..10).all(|_| serves()));
    let head = line.processes();
    assert_eq!(head.len(), 1, "{head:?}");
    signal(head[0], Signal::SIGTERM);
    line.wait_for_end();
}
