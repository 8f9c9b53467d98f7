//! Tests of what a reload reports when a program is not ready: the step that it has not done, and
//! the lines that explain why it has ended.

use std::ffi::OsString;
use std::fs;

use crate::programs::{INHERITING, PRIVATE, good, put, run, run_app};
use crate::support::{Event, example};

/// The program is never ready, and the reload says what it was waiting for.
fn is_late_because(flags: &[&str], good: &str, late: &str, arguments: &[&str], reason: &str) {
    let flags = [flags, &["--ready-timeout", "2s", "--bake", "0"]].concat();
    let line = run_app(good, &flags, arguments);
    put(line.folder(), late);
    line.asked(&["reload"]).names(70, &["the program was not ready within 2 s: ", reason]);
    line.assert_serves();
}

#[test]
fn a_program_that_never_listens_is_said_to_do_so() {
    is_late_because(&[], &good(), "exec sleep 1000", &PRIVATE, "it does not accept connections");
}

#[test]
fn a_program_that_writes_no_newline_is_said_to_do_so() {
    let script = format!("printf '\\n' >&9; {}", good());
    is_late_because(
        &["--attach", "inherit", "--ready", "descriptor:9"],
        &script,
        &good(),
        &INHERITING,
        "it has not written a newline to descriptor 9",
    );
}

/// An interpreter prints a long stack trace after the line that says what is wrong.
#[test]
fn the_cause_above_a_stack_trace_is_quoted() {
    let line = run_app(&good(), &[], &PRIVATE);
    put(
        line.folder(),
        "echo 'Error: no database' >&2; for n in 1 2 3 4 5 6 7 8 9; do echo \"  at $n\" >&2; done; \
        exit 1",
    );
    line.asked(&["reload"]).names(70, &["Error: no database | at 1 | "]);
}

/// A generation that fails because of its program removes its folder before it ends.
#[test]
fn a_failed_generation_leaves_no_folder() {
    let line = run(|command, folder| {
        put(folder, &good());
        command.args(["--ready-timeout", "1s", "--bake", "0"]);
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    for script in ["exit 1", "sleep 0.1; exit 1", "exec sleep 1000"] {
        put(line.folder(), script);
        line.asked(&["reload"]).names(70, &["the program "]);
        // The test's folder is the folder for temporary files.
        let entries = fs::read_dir(line.folder()).unwrap().map(|entry| entry.unwrap().file_name());
        let is_folder = |name: &OsString| name.to_string_lossy().starts_with("handoffd-");
        let left = entries.filter(is_folder).count();
        assert_eq!(left, 1, "the folder of the generation that serves, after {script}");
    }
}

/// The check itself says why it fails.
#[test]
fn a_check_that_fails_says_why() {
    let server = example("http");
    let script = format!("exec {} \"$1\"", server.display());
    let flags = ["--ready", "http:/", "--ready-timeout", "2s", "--bake", "0"];
    let line = run_app(&script, &flags, &["127.0.0.1:{port}"]);
    put(line.folder(), &format!("{} --listen \"$1\" --log off", good().replace("\"$@\"", "")));
    line.asked(&["reload"]).names(70, &["it answers GET /, but not in HTTP"]);
}
