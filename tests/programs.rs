//! Tests of programs that the daemon runs: they are replaced under load, and a bad one is rolled
//! back.
//!
//! The programs are shell scripts, and this daemon itself as an ordinary echo server.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Callers, Client, Event, Line, REAL, assert_becomes, exit_code, signal};

/// The arguments of an echo server that listens on a private port and logs nothing.
pub(crate) const PRIVATE: [&str; 5] =
    ["--listen", "127.0.0.1:{port}", "--log", "off", "--no-carry"];
/// The arguments of an echo server that takes the listener by name and logs nothing.
pub(crate) const INHERITING: [&str; 5] =
    ["--listen", "web=127.0.0.1:9", "--log", "off", "--no-carry"];

/// Runs a program on a listener `web`. `prepare` adds the flags and the program.
pub(crate) fn run(prepare: impl FnOnce(&mut Command, &Path)) -> Line {
    Line::start_by(|folder| {
        let mut command = Command::new(folder.join("handoffd"));
        command.args(["run", "--listen", "web=127.0.0.1:0", "--log", "debug", "--control"]);
        command.arg(folder.join("control"));
        prepare(&mut command, folder);
        command
    })
}

/// Runs the program `FOLDER/app`, which the test can replace, with these flags and arguments.
pub(crate) fn run_app(script: &str, flags: &[&str], arguments: &[&str]) -> Line {
    let line = run(|command, folder| {
        put(folder, script);
        command.args(flags).arg("--").arg(folder.join("app")).args(arguments);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// Writes the program of [`run_app`].
pub(crate) fn put(folder: &Path, script: &str) {
    put_script(folder, "app", script);
}

/// Writes an executable script to `FOLDER/NAME`.
pub(crate) fn put_script(folder: &Path, name: &str, script: &str) {
    let new = folder.join(format!("{name}.new"));
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

/// A program that serves, with the arguments that it is given.
pub(crate) fn good() -> String {
    format!("exec {REAL} \"$@\"")
}

/// Returns the pid of the program that was started as the `count`th.
pub(crate) fn started(line: &Line, count: usize) -> u32 {
    line.wait_for_count(count, Event::ProgramStarted);
    let records = line.records();
    let starts: Vec<_> =
        records.iter().filter(|record| record.is_event(Event::ProgramStarted)).collect();
    starts[count - 1].field("program_pid").unwrap().parse().unwrap()
}

/// Replaces a program again and again under load, and loses nothing.
fn survives_replacement(arguments: &[&str]) {
    const HANDOFFS: u64 = 10;
    let line = run_app(&good(), &["--bake", "0"], arguments);
    let callers = Callers::start(&line.address(), 4);
    for generation in 1..=HANDOFFS {
        let answer = line.asked(&["reload"]).well();
        assert!(answer.contains(&format!("generation {} serves", generation + 1)), "{answer}");
    }
    let calls = callers.finish();
    assert!(calls.served > 10 && calls.refused == 0 && calls.broken == 0, "{calls:?}");
    line.signal(HANDOFFS + 1, Signal::SIGTERM);
    line.wait_for_end();
}

#[test]
fn a_private_program_is_replaced_and_loses_nothing() {
    survives_replacement(&PRIVATE);
}

#[test]
fn an_inheriting_program_is_replaced_and_loses_nothing() {
    survives_replacement(&INHERITING);
}

/// An established connection stays with the program that serves it until the client ends it.
#[test]
fn a_connection_stays_with_its_private_program() {
    let line = run_app(&good(), &["--bake", "0"], &PRIVATE);
    let mut old = Client::connect(&line.address()).unwrap();
    old.echo(b"before").unwrap();
    line.asked(&["reload"]).well();
    old.echo(b"after").unwrap();
    line.assert_serves();
    old.half_close().unwrap();
    old.expect_end().unwrap();
    line.wait_for(1, Event::GenerationEnded);
}

/// The reload fails with what the program wrote last, and the old program serves on.
#[test]
fn a_program_that_fails_to_start_fails_the_reload() {
    let line = run_app(&good(), &[], &PRIVATE);
    for (script, reason) in [
        (
            "echo no database >&2; exit 3",
            "ended before it was ready, with exit code 3; last output: no database",
        ),
        ("kill -SEGV $$", "ended before it was ready, with SIGSEGV"),
    ] {
        put(line.folder(), script);
        line.asked(&["reload"]).names(70, &[reason]);
        line.assert_serves();
    }
    fs::remove_file(line.folder().join("app")).unwrap();
    line.asked(&["reload"]).names(70, &["app: No such file or directory"]);
    line.assert_serves();
}

#[test]
fn a_program_that_is_never_ready_fails_the_reload() {
    let line = run_app(&good(), &["--ready-timeout", "500ms"], &PRIVATE);
    put(line.folder(), "exec sleep 1000");
    line.asked(&["reload"]).names(70, &["was not ready within 0.5 s"]);
    line.assert_serves();
}

#[test]
fn a_program_that_dies_in_the_bake_is_rolled_back() {
    let line = run_app(&good(), &["--bake", "60s"], &PRIVATE);
    put(
        line.folder(),
        &format!("{REAL} \"$@\" & sleep 0.5; echo out of memory >&2; kill $!; exit 9"),
    );
    line.asked(&["reload"]).names(76, &["ended with exit code 9; last output: out of memory"]);
    line.assert_serves();
}

/// Clients that come while no program runs wait for the next one.
#[test]
fn a_program_that_dies_is_started_again() {
    let line = run_app(&good(), &[], &PRIVATE);
    for death in 1..=3 {
        signal(started(&line, death), Signal::SIGKILL);
        line.wait_for_count(death, Event::ProgramRestarting);
        line.assert_serves();
    }
    let status = line.asked(&["status", "--json"]).well();
    assert!(status.contains("\"exits_by_signal\":{\"9\":"), "{status}");
}

#[test]
fn without_restart_the_generation_ends_with_its_program() {
    let line = run_app(&good(), &["--restart", "never"], &PRIVATE);
    signal(started(&line, 1), Signal::SIGKILL);
    assert_eq!(line.exit_code(1), 128 + 9);
    assert!(line.text().contains("ended with SIGKILL"), "{}", line.text());
}

/// The parent of the daemon ignored SIGCHLD, and execve(2) keeps that.
#[test]
fn the_exit_code_of_a_program_is_known_despite_sigchld() {
    let line = Line::start_by(|folder| {
        let mut command = Command::new("perl");
        command.args(["-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV or die"]);
        command.arg(folder.join("handoffd")).args(["run", "--restart", "never"]);
        command.args(["--ready", "after:10ms", "--attach", "inherit", "--log", "debug"]);
        command.args(["--listen", "web=127.0.0.1:0", "--", "sh", "-c", "sleep 1; exit 3"]);
        command
    });
    assert_eq!(line.exit_code(1), 3);
}

/// A program that ignores the stop signal is killed with all its children.
#[test]
fn a_program_that_ignores_the_stop_is_killed() {
    let line = run(|command, folder| {
        put(folder, "trap '' TERM; : > \"$(dirname \"$0\")/ignores\"; sleep 1000 & sleep 1000");
        command.args(["--attach", "inherit", "--ready", "after:0", "--stop-timeout", "200ms"]);
        command.arg("--").arg(folder.join("app"));
    });
    line.wait_for(1, Event::GenerationServing);
    assert_becomes(&true, || line.folder().join("ignores").exists());
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::ProgramKilled);
    // The log ends only when the last process with its standard error has ended.
    line.wait_for_end();
}

/// The kernel tells the program to stop when its generation is killed.
#[test]
fn a_program_stops_when_its_generation_dies() {
    let line = run_app(&good(), &[], &PRIVATE);
    let program = started(&line, 1);
    line.signal(1, Signal::SIGKILL);
    assert_eq!(exit_code(program), 0);
}

/// A changed environment file and a changed link to the working directory take effect.
#[test]
fn a_reload_reads_the_environment_and_the_directory_again() {
    let line = run(|command, folder| {
        for release in ["one", "two"] {
            fs::create_dir(folder.join(release)).unwrap();
        }
        symlink("one", folder.join("current")).unwrap();
        fs::write(folder.join("env"), "COLOUR='dark red'\n").unwrap();
        put(folder, &format!("echo \"$COLOUR in $(pwd -P)\" >> \"$OUT\"; {}", good()));
        command.arg("--env-file").arg(folder.join("env"));
        command.arg("--working-directory").arg(folder.join("current"));
        command.arg("--env").arg(format!("OUT={}", folder.join("out").display()));
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    fs::write(line.folder().join("env"), "COLOUR=blue\n").unwrap();
    symlink("two", line.folder().join("next")).unwrap();
    fs::rename(line.folder().join("next"), line.folder().join("current")).unwrap();
    line.asked(&["reload"]).well();
    let folder = fs::canonicalize(line.folder()).unwrap();
    let expected = format!("dark red in {0}/one\nblue in {0}/two\n", folder.display());
    assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), expected);
}

/// After its successor has died, the old generation serves with its program again.
#[test]
fn a_private_program_serves_again_when_its_successor_dies() {
    let line = run_app(&good(), &["--bake", "0"], &PRIVATE);
    let mut old = Client::connect(&line.address()).unwrap();
    old.echo(b"before").unwrap();
    line.asked(&["reload"]).well();
    line.signal(2, Signal::SIGKILL);
    line.wait_for(1, Event::GenerationResumed);
    line.assert_serves();
    old.echo(b"after").unwrap();
    // The same program serves: it was not told to stop while a connection was left.
    assert_eq!(line.count(Event::ProgramStarted), 2);
}

/// The program was told to stop, so it is started again when its successor dies.
#[test]
fn an_inheriting_program_starts_again_when_its_successor_dies() {
    let line = run_app(&good(), &["--bake", "0", "--stop-timeout", "300ms"], &INHERITING);
    let mut old = Client::connect(&line.address()).unwrap();
    old.echo(b"before").unwrap();
    line.asked(&["reload"]).well();
    // A program that was not told yet just goes on.
    line.wait_for(1, Event::ProgramStopping);
    line.signal(2, Signal::SIGKILL);
    line.wait_for(1, Event::GenerationResumed);
    line.wait_for_count(3, Event::ProgramReady);
    line.assert_serves();
}

/// A service that stops refuses new clients, while a program finishes its connections.
#[test]
fn a_stopping_service_keeps_no_listener_open() {
    let line = run_app(&good(), &["--drain-timeout", "10m"], &PRIVATE);
    let (address, mut client) = (line.address(), Client::connect(&line.address()).unwrap());
    client.echo(b"before").unwrap();
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted);
    assert_becomes(&true, || Client::connect(&address).is_err());
    client.echo(b"after").unwrap();
    drop(client);
    line.wait_for_end();
}

#[test]
fn every_instance_serves() {
    let line = run_app(&good(), &["--instances", "3", "--bake", "0"], &PRIVATE);
    line.wait_for_count(3, Event::ProgramReady);
    let status = line.asked(&["status", "--json"]).well();
    assert_eq!(status.matches("\"state\":\"ready\"").count(), 3, "{status}");
    let table = line.asked(&["status"]).well();
    let rows = table.lines().filter(|row| row.split_whitespace().nth(2) == Some("ready"));
    assert_eq!(rows.count(), 3, "{table}");
    let callers = Callers::start(&line.address(), 4);
    line.asked(&["reload"]).well();
    let calls = callers.finish();
    assert!(calls.served > 3 && calls.refused + calls.broken == 0, "{calls:?}");
}

/// The listener of `--stdin` is descriptor 0, and `{address}` is its address.
#[test]
fn a_program_may_get_a_listener_as_standard_input() {
    let script = "readlink /proc/$$/fd/0 > \"$OUT\"; echo \"$1 $2\" >> \"$OUT\"; exec sleep 1000";
    let line = run(|command, folder| {
        put(folder, script);
        command.args(["--attach", "inherit", "--ready", "after:100ms", "--stdin", "web"]);
        command.arg("--env").arg(format!("OUT={}", folder.join("out").display()));
        command.arg("--").arg(folder.join("app")).args(["{address}", "{fd:web}{generation}"]);
    });
    line.wait_for(1, Event::GenerationServing);
    let said = fs::read_to_string(line.folder().join("out")).unwrap();
    assert!(said.starts_with("socket:["), "{said}");
    assert!(said.ends_with(&format!("]\n{} 31\n", line.address())), "{said}");
}

#[test]
fn a_missing_working_directory_is_named_in_the_reload() {
    let line = run(|command, folder| {
        put(folder, &good());
        fs::create_dir(folder.join("work")).unwrap();
        command.arg("--working-directory").arg(folder.join("work"));
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    fs::remove_dir(line.folder().join("work")).unwrap();
    line.asked(&["reload"]).names(70, &["/work", "No such file"]);
    line.assert_serves();
}

#[test]
fn a_broken_environment_file_fails_the_reload() {
    let line = run(|command, folder| {
        put(folder, &good());
        fs::write(folder.join("env"), "A=b\n").unwrap();
        command.arg("--env-file").arg(folder.join("env"));
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    fs::write(line.folder().join("env"), "A=b\nwhat\n").unwrap();
    line.asked(&["reload"]).names(70, &["env: line 2 is not NAME=VALUE"]);
    line.assert_serves();
}
