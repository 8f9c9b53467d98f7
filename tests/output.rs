//! Tests of commands whose standard output cannot be written. The command reports the error and
//! exits with a code other than 0.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::fcntl::OFlag;

use crate::doctor::put_systemctl;
use crate::support::{Event, Line, REAL, Refusal, SLOW_DRAIN, assert_becomes};

/// Returns standard outputs that cannot be written, each with the expected reason.
fn unwritable() -> [(OwnedFd, &'static str); 3] {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let only_read = File::open("/dev/null").unwrap();
    let (_, without_reader) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    [
        (full.into(), "No space left on device"),
        (only_read.into(), "Bad file descriptor"),
        (without_reader, "Broken pipe"),
    ]
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(REAL);
    command.args(words);
    command
}

#[test]
fn a_command_with_unwritable_output_exits_with_74() {
    let line = Line::serve_controlled(&[]);
    put_systemctl(line.folder());
    let control = line.control();
    let of_line = ["--control", control.to_str().unwrap()];
    for (words, what) in [
        (&[&["status"][..], &of_line].concat()[..], "the status"),
        (&[&["status", "--json"][..], &of_line].concat(), "the status"),
        (&[&["status", "--watch"][..], &of_line].concat(), "the status"),
        (&[&["doctor", "a.service"][..], &of_line].concat(), "the findings"),
        (&["check", "--listen", "127.0.0.1:1"], "the outcome of the check, which succeeded"),
        (&["completions", "bash"], "the completions"),
        (&["--help"], "the help or the version"),
        (&["status", "--help"], "the help or the version"),
        (&["--version"], "the help or the version"),
    ] {
        for (output, why) in unwritable() {
            let mut command = command(words);
            command.env("PATH", format!("{}:/usr/bin:/bin", line.folder().display()));
            Refusal::writing_to(output, command)
                .names(74, &[&format!("cannot write {what}: {why}")]);
        }
    }
}

/// The error message on standard error says that the reload itself has succeeded.
#[test]
fn a_reload_with_unwritable_output_reports_its_success() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    for (serving, (output, why)) in (2..).zip(unwritable()) {
        let mut command = command(&["reload", "--control"]);
        command.arg(line.control());
        let said = format!("cannot write the outcome of the reload, which has succeeded: {why}");
        Refusal::writing_to(output, command).names(74, &[&said]);
        line.wait_for(serving, Event::GenerationServing);
    }
}

#[test]
fn a_failed_reload_with_unwritable_output_reports_why() {
    let line = Line::serve_controlled(&["--bake", "0"]);
    line.put_script("exit 0");
    let mut command = command(&["reload", "--control"]);
    command.arg(line.control());
    let (full, _) = unwritable().into_iter().next().unwrap();
    Refusal::writing_to(full, command).names(70, &["ended before it was ready"]);
}

#[test]
fn a_reload_with_unwritable_output_awaits_the_drain() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let mut held = line.hold();
    let mut command = command(&["reload", "--wait-drained", "--control"]);
    command.arg(line.control());
    let (full, _) = unwritable().into_iter().next().unwrap();
    let reload = std::thread::spawn(move || Refusal::writing_to(full, command));
    line.wait_for(1, Event::DrainStarted);
    assert!(!reload.is_finished());
    held.echo(b"still here").unwrap();
    held.expect_end().unwrap();
    assert_becomes(&true, || reload.is_finished());
    reload.join().unwrap().names(74, &["which has succeeded"]);
}
