//! Tests of a preloaded library that starts a thread before the daemon runs. Handoffs still work,
//! and a start that cannot work with such a thread is rejected.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::{Event, Line, Manager, Parent, Refusal};

/// C source of a library that starts a thread when it is loaded, as some allocators do.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>
static void *wait_for_ever(void *none) { for (;;) pause(); return none; }
__attribute__((constructor)) static void start(void) {
    pthread_t thread;
    if (pthread_create(&thread, 0, wait_for_ever, 0) == 0) pthread_setname_np(thread, "of-the-library");
}
"#;

/// Builds the library in `folder` and returns its path.
fn build(folder: &Path) -> PathBuf {
    let library = folder.join("library.so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-pthread", "-x", "c", "-", "-o"])
        .arg(&library)
        .stdin(Stdio::piped());
    let mut compiler = compiler.spawn().unwrap();
    compiler.stdin.take().unwrap().write_all(LIBRARY.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success());
    library
}

fn has_the_thread(pid: u32) -> bool {
    let names = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut names =
        names.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
    names.any(|name| name.trim() == "of-the-library")
}

#[test]
fn a_thread_of_a_preloaded_library_stops_no_handoff() {
    let manager = Manager::new();
    let line = Line::start_with(|command, folder| {
        command.args(["--listen", "127.0.0.1:0", "--bake", "0"]).env("LD_PRELOAD", build(folder));
        command.env("NOTIFY_SOCKET", manager.path());
    });
    line.wait_for(1, Event::GenerationServing);
    for generation in 1..=3 {
        assert!(has_the_thread(line.pid_of(generation)));
        line.hand_over_from(generation);
        manager.hear_until("MAINPID=");
        assert_eq!(line.exit_code(generation), 0);
    }
    line.assert_serves();
    line.signal(4, Signal::SIGTERM);
    assert_eq!(line.exit_code(4), 0);
    line.wait_for_end();
}

#[test]
fn sockets_are_adopted_despite_a_library_thread() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let library = build(folder.path());
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Parent::passing([socket.into()]).saying("LD_PRELOAD", library.to_str().unwrap());
    let line = parent.serve(&["--bake", "0"]);
    line.hand_over_from(1);
    line.assert_serves();
}

/// The successor finds the error before it takes its inheritance.
#[test]
fn a_config_error_is_reported_despite_a_library_thread() {
    let write =
        |folder: &Path, text: &str| std::fs::write(folder.join("handoffd.toml"), text).unwrap();
    let line = Line::start_with(|command, folder| {
        write(folder, "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'echo'\n");
        command.arg("--config").arg(folder.join("handoffd.toml")).env("LD_PRELOAD", build(folder));
    });
    line.wait_for(1, Event::GenerationServing);
    write(line.folder(), "nope = 1\n");
    let failed = line.fail_to_hand_over_from(1);
    assert!(failed.text.contains("handoffd.toml:1:1: unknown field `nope`"), "{failed:?}");
    line.assert_serves();
}

#[test]
fn an_init_with_a_library_thread_is_rejected() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let library = build(folder.path());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
        command.args(arguments).env("LD_PRELOAD", &library);
        Refusal::of(command)
    };
    let words = ["the process has 2 threads", "of-the-library", "LD_PRELOAD=", "library.so"];
    run(&["--init", "--listen", "127.0.0.1:0"]).names(78, &words);
    run(&["check", "--init", "--listen", "127.0.0.1:0"]).names(78, &words);
    // Without an init the threads are allowed, and `check` succeeds.
    let good = run(&["check", "--listen", "127.0.0.1:0"]);
    assert_eq!((good.code, good.said.as_str()), (0, ""));
}
