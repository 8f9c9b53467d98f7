//! Tests of a server of its own: what it learns of the life of its generation, and what it can do.
//!
//! The server is the example `life`.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::{
    Client, Event, Line, Record, Tracer, adopt_orphans, assert_becomes, example, exit_code, freeze,
    signal, thaw,
};

/// Starts the example in this mode.
pub(crate) fn start(mode: &str) -> Line {
    start_on(mode, "127.0.0.1:0")
}

/// Starts the example in this mode on this address.
pub(crate) fn start_on(mode: &str, address: &str) -> Line {
    let line = Line::start_program(&example("life"), |command, folder| {
        command.args([mode, address]).current_dir(folder);
        command.env("RUNTIME_DIRECTORY", folder);
    });
    line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
    line
}

/// Replaces the server by a signal. Returns the new pid, or why the handoff failed.
pub(crate) fn replace(line: &Line, pid: u32) -> Result<u32, Record> {
    let mark = line.mark();
    signal(pid, Signal::SIGHUP);
    let outcome = line.wait_since(mark, "the outcome of the handoff", |record| {
        record.is_event(Event::HandoffCommitted) || record.is_event(Event::HandoffFailed)
    });
    match outcome.field("successor_pid") {
        Some(pid) => Ok(pid.parse().unwrap()),
        None => Err(outcome),
    }
}

/// Stops the service, and waits until all of its processes have ended.
pub(crate) fn stop(line: &Line, pid: u32) {
    signal(pid, Signal::SIGTERM);
    line.wait_for_end();
}

/// Returns the addresses of the two listeners.
pub(crate) fn addresses(line: &Line) -> (String, String) {
    let record = line.wait("accepting", |record| record.is_event(Event::GenerationAccepting));
    let listeners = record.field("listeners").unwrap().to_owned();
    let of = |name: &str| {
        let found = listeners.split(' ').find_map(|one| one.strip_prefix(name));
        found.unwrap().to_owned()
    };
    (of("echo="), of("admin="))
}

/// Returns what the worker has noted: which process began or ended, in order.
pub(crate) fn noted(line: &Line) -> Vec<String> {
    let text = fs::read_to_string(line.folder().join("work")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_server_rolls_back_with_its_reason() {
    let line = start("roll-back");
    fs::write(line.folder().join("broken"), "").unwrap();
    let failed = replace(&line, line.first_pid()).unwrap_err();
    assert!(
        failed.text.contains("rolled the handoff back: the cache is broken"),
        "{}",
        failed.text
    );
    Client::connect(&addresses(&line).0).unwrap().echo(b"served").unwrap();
    fs::remove_file(line.folder().join("broken")).unwrap();
    let pid = replace(&line, line.first_pid()).unwrap();
    stop(&line, pid);
}

/// The server of the successor returns although nothing has told it to stop.
#[test]
fn a_server_that_returns_in_the_bake_is_the_reason() {
    let line = start("long-bake-once");
    bake(&line);
    // Only the successor can accept this client.
    freeze(line.first_pid());
    Client::connect(&addresses(&line).0).unwrap().expect_end().unwrap();
    thaw(line.first_pid());
    let failed = line.wait("the failure", |record| record.is_event(Event::HandoffFailed));
    assert_eq!(failed.field("failure"), Some("given-back"), "{failed:?}");
    stop(&line, line.first_pid());
}

#[test]
fn a_server_refuses_to_start_with_its_reason() {
    let line = start("refuse");
    fs::write(line.folder().join("broken"), "").unwrap();
    let failed = replace(&line, line.first_pid()).unwrap_err();
    assert!(failed.text.contains("the server has failed: there is no database"), "{}", failed.text);
    // The successor was not killed: its `main` has returned.
    let ended = || {
        let files = fs::read_dir(line.folder()).unwrap().flatten();
        let is_mark = |name: &OsStr| name.to_str().unwrap().starts_with("ended-");
        files.filter(|one| is_mark(&one.file_name())).count()
    };
    assert_becomes(&1, ended);
    stop(&line, line.first_pid());
}

/// The first generation never becomes ready, and does not return either.
#[test]
fn a_server_that_is_stuck_at_its_start_ends_with_the_reason() {
    let line = Line::start_program(&example("life"), |command, folder| {
        fs::write(folder.join("broken"), "").unwrap();
        command.args(["stuck", "127.0.0.1:0"]).current_dir(folder);
    });
    assert_eq!(exit_code(line.first_pid()), 71);
    let hung = line.wait("the reason", |record| record.is_event(Event::ServerHung));
    assert!(
        hung.text.contains("the server did not report within 2 s that it is ready"),
        "{hung:?}"
    );
    line.wait_for_end();
}

#[test]
fn a_server_that_warms_up_gets_more_time() {
    let line = start("warm-up");
    // The operator waits longer than was announced at first.
    line.asked(&["reload"]).well();
    let committed = line.wait("the commit", |record| record.is_event(Event::HandoffCommitted));
    let second = committed.field("successor_pid").unwrap().parse().unwrap();
    let third = replace(&line, second).unwrap();
    stop(&line, third);
}

#[test]
fn a_server_passes_a_state_to_its_successor() {
    let line = start("offer");
    let count = || fs::read_to_string(line.folder().join("count")).unwrap_or_default();
    assert_becomes(&"1".to_owned(), count);
    let mut pid = line.first_pid();
    for expected in 2..5 {
        pid = replace(&line, pid).unwrap();
        assert_becomes(&expected.to_string(), count);
    }
    stop(&line, pid);
}

#[test]
fn a_server_that_ignores_the_cut_is_gone() {
    for mode in ["deaf", "blocked"] {
        let line = start(mode);
        let mut held = Client::connect(&addresses(&line).0).unwrap();
        held.echo(b"held").unwrap();
        let pid = replace(&line, line.first_pid()).unwrap();
        assert_eq!(exit_code(line.first_pid()), 0, "{mode}");
        assert_eq!(line.count(Event::GenerationEnded.with("cut", 1)), 1, "{mode}");
        // A server that blocks its thread cannot be dropped, so its process is ended.
        let reported = if mode == "deaf" { Event::ServerDropped } else { Event::ServerHung };
        line.wait_for_count(1, reported);
        // The new generation adds the last report of the old one to its totals.
        assert_becomes(&[1, 0], || ["cut", "drained"].map(|name| line.counter("echo", name)));
        drop(held);
        signal(pid, Signal::SIGQUIT);
        line.wait_for_end();
    }
}

/// Signals, deadlines and handoffs do not need a thread of the server's runtime.
#[test]
fn a_server_that_blocks_all_its_threads_is_replaced() {
    for mode in ["blocking", "blocking-here"] {
        let line = start(mode);
        let (address, _) = addresses(&line);
        let block = || {
            let mut client = Client::connect(&address).unwrap();
            client.expect(b"blocked").unwrap();
            client
        };
        let held = block();
        let next = replace(&line, line.first_pid()).unwrap();
        assert_eq!(exit_code(line.first_pid()), 0, "{mode}");
        let held = [held, block()];
        signal(next, Signal::SIGTERM);
        assert_eq!(exit_code(next), 0, "{mode}");
        drop(held);
        line.wait_for_end();
        assert_eq!(line.count(Event::GenerationEnded.with("cut", 1)), 2, "{mode}");
    }
}

/// A thread that blocks for ever does not keep the process after the panic.
#[test]
fn a_server_that_panics_ends_its_process() {
    for mode in ["panicking", "panicking-here"] {
        let line = start(mode);
        let client = Client::connect(&addresses(&line).0).unwrap();
        assert_eq!(exit_code(line.first_pid()), 101, "{mode}");
        drop(client);
        line.wait_for_end();
    }
}

/// The process has reached its limit of threads when it ends.
#[test]
fn a_server_that_can_start_no_thread_stops_well() {
    let line = start("echo");
    let inject = ["-f", "-e", "inject=clone,clone3:error=EAGAIN"];
    let tracer = Tracer::attach(&line, line.first_pid(), &inject);
    signal(line.first_pid(), Signal::SIGTERM);
    assert_eq!(exit_code(line.first_pid()), 0);
    let trace = tracer.wait();
    assert!(trace.contains("(INJECTED)"), "{trace}");
}

#[test]
fn connections_of_an_own_server_are_counted() {
    let line = start("echo");
    let (address, _) = addresses(&line);
    // A connection that ends before the drain does not belong to it.
    Client::once(&address, b"before").unwrap();
    assert_becomes(&0, || line.counter("echo", "active"));
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    let pid = replace(&line, line.first_pid()).unwrap();
    line.wait("the drain", |record| record.is_event(Event::DrainStarted.with("connections", 1)));
    held.half_close().unwrap();
    held.expect_end().unwrap();
    line.wait("the end", |record| {
        record.is_event(Event::GenerationEnded.with("ended", 1).with("cut", 0))
    });
    assert_becomes(&[0, 1], || ["cut", "drained"].map(|name| line.counter("echo", name)));
    stop(&line, pid);
}

/// The server is called again while its earlier call still waits for a connection.
#[test]
fn an_own_server_accepts_again_when_its_successor_dies() {
    let line = start("echo");
    let (address, _) = addresses(&line);
    let mut held = Client::connect(&address).unwrap();
    held.echo(b"held").unwrap();
    let next = replace(&line, line.first_pid()).unwrap();
    signal(next, Signal::SIGKILL);
    line.wait("the old generation", |record| record.is_event(Event::GenerationResumed));
    held.echo(b"still").unwrap();
    Client::connect(&address).unwrap().echo(b"again").unwrap();
    let pid = replace(&line, line.first_pid()).unwrap();
    drop(held);
    stop(&line, pid);
}

/// Starts a handoff that stays in the bake. Returns the pid of the successor.
pub(crate) fn bake(line: &Line) -> u32 {
    signal(line.first_pid(), Signal::SIGHUP);
    let ready = line.wait("the bake", |record| record.is_event(Event::SuccessorReady));
    ready.field("successor_pid").unwrap().parse().unwrap()
}

#[test]
fn a_server_inside_a_runtime_is_refused_with_a_hint() {
    adopt_orphans();
    let mut command = std::process::Command::new(example("life"));
    let said = command.args(["in-runtime", "127.0.0.1:0"]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && text.contains("#[tokio::main]"), "{text}");
    assert!(!Path::new("lock").exists());
}
