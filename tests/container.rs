//! The daemon as process 1 of a container, or under a supervisor that watches one process: the
//! first process stays until the end.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::pty::openpty;
use nix::sys::signal::Signal;

use crate::support::{
    Client, Event, Handoffs, Line, Parent, REAL, Refusal, SLOW_DRAIN, Storm, assert_becomes,
    exit_code, freeze, holds, signal, thaw,
};

/// Starts the daemon as process 1 of a pid namespace, and waits until it serves. Returns the
/// lineage, and the process id of process 1 outside of the namespace.
fn contained(arguments: &[&str]) -> (Line, u32) {
    let line = Line::start_by(|folder| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
            .arg(folder.join("handoffd"))
            .args(["--log", "debug", "--listen", "127.0.0.1:0", "--no-carry"])
            .args(arguments);
        command
    });
    line.wait_for(1, Event::GenerationServing);
    let first = line.processes().into_iter().find(|pid| inner(*pid) == Some(1)).unwrap();
    (line, first)
}

/// Returns the process id in the innermost namespace of a process, unless that is our namespace.
fn inner(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers: Vec<&str> =
        status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().collect();
    (numbers.len() > 1).then(|| numbers[numbers.len() - 1].parse().unwrap())
}

/// Returns the process id outside of the namespace for a number inside.
fn outer(line: &Line, number: u32) -> u32 {
    line.processes().into_iter().find(|pid| inner(*pid) == Some(number)).unwrap()
}

/// Clients connect during fifty handoffs, and none of them sees an error. When the container stops,
/// all its processes end.
#[test]
fn fifty_handoffs_in_a_container_lose_nothing() {
    let (line, first) = contained(&["--bake", "0"]);
    let storm = Storm::start(&line.address(), 2, 2);
    let mut seen = 0;
    for generation in 2..=51 {
        signal(first, Signal::SIGHUP);
        line.wait_after(&mut seen, "the next active generation", |record| {
            record.is(generation, Event::GenerationServing)
        });
    }
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}", tally.losses);
    assert!(tally.short > 0 && tally.persistent > 0);
    // The init keeps its standard streams, its signal descriptor and its channel, and nothing of
    // the service.
    let held: Vec<String> = holds(first).into_values().collect();
    assert!(held.len() == 2 && held.iter().any(|one| one.contains("signalfd")), "{held:?}");
    signal(first, Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
}

#[test]
fn a_container_ends_with_its_last_connection() {
    let (line, first) = contained(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let mut held = line.hold();
    signal(first, Signal::SIGHUP);
    line.wait_for(1, Event::DrainStarted);
    line.wait_for(2, Event::GenerationServing);
    signal(first, Signal::SIGTERM);
    line.wait_for(2, Event::DrainStarted);
    // The old generation keeps the listener until it learns of the stop, which it logs before it
    // closes the listener.
    line.wait_for(1, Event::GenerationStep.with("input", "ServiceStopping"));
    assert_becomes(&true, || Client::connect(&line.address()).is_err());
    held.echo(b"still here").unwrap();
    held.expect_end().unwrap();
    assert_eq!(line.exit_code(1), 0);
    let records = line.wait_for_end();
    let ended: Vec<_> =
        records.iter().filter(|record| record.is_event(Event::GenerationEnded)).collect();
    assert_eq!(ended.last().unwrap().generation, 2);
}

/// `docker stop` may arrive at any point of a handoff. The generation that receives the signal may
/// not be the one that has to pass the stop on.
#[test]
fn a_stop_during_a_handoff_ends_the_container() {
    for _ in 0..20 {
        let (line, first) = contained(&["--bake", "0"]);
        signal(first, Signal::SIGHUP);
        line.wait_for(1, Event::SuccessorReady);
        signal(first, Signal::SIGTERM);
        assert_eq!(line.exit_code(1), 0);
        line.wait_for_end();
    }
}

#[test]
fn a_container_exits_with_the_active_generations_status() {
    let (line, _) = contained(&["--bake", "0"]);
    signal(outer(&line, line.pid_of(1)), Signal::SIGKILL);
    assert_eq!(line.exit_code(1), 128 + 9);

    let (line, first) = contained(&["--bake", "0"]);
    signal(first, Signal::SIGHUP);
    line.wait_for(2, Event::GenerationServing);
    // A generation that still drained would resume instead.
    line.wait_for(1, Event::GenerationEnded);
    signal(outer(&line, line.pid_of(2)), Signal::SIGKILL);
    assert_eq!(line.exit_code(1), 128 + 9);

    let line = Line::start_by(|folder| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--pid", "--fork", "--kill-child"]);
        command.arg(folder.join("handoffd")).args(["--listen", "/no/such/folder/socket"]);
        command
    });
    assert_eq!(line.exit_code(1), 78);
}

#[test]
fn a_draining_generation_resumes_in_a_container_too() {
    let (line, first) = contained(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let _held = line.hold();
    signal(first, Signal::SIGHUP);
    line.wait_for(2, Event::GenerationServing);
    let mark = line.mark();
    signal(outer(&line, line.pid_of(2)), Signal::SIGKILL);
    line.wait_since(mark, "the first generation to be active again", |record| {
        record.is(1, Event::GenerationServing)
    });
    line.assert_serves();
    let mark = line.mark();
    signal(first, Signal::SIGHUP);
    line.wait_since(mark, "the next generation", |record| record.is(2, Event::GenerationServing));
    line.assert_serves();
}

#[test]
fn orphans_in_a_container_are_reaped() {
    let (line, first) = contained(&["--bake", "0"]);
    // The orphan is forked twice in the container, so it becomes a child of process 1.
    let orphan = Command::new("nsenter")
        .args(["--target", &first.to_string(), "--user", "--pid", "--preserve-credentials"])
        .args(["sh", "-c", "sh -c 'exit 3' & exec true"])
        .status();
    assert!(orphan.unwrap().success());
    let task = format!("/proc/{first}/task/{first}/children");
    assert_becomes(&1, || fs::read_to_string(&task).unwrap().split_whitespace().count());
    signal(first, Signal::SIGQUIT);
    assert_eq!(line.exit_code(1), 0);
}

#[test]
fn a_supervisor_sees_one_lasting_process() {
    let line = Line::serve(&["--bake", "0", "--init"]);
    assert_ne!(line.pid_of(1), line.first_pid());
    let mut head = Handoffs::of(&line);
    for _ in 0..3 {
        head.pid = line.first_pid();
        head.next();
        line.assert_serves();
    }
    assert!(Path::new(&format!("/proc/{}", line.first_pid())).exists());
    // The supervisor sees the exit status of the active generation once no draining generation
    // could resume.
    line.wait_for(3, Event::GenerationEnded);
    signal(head.pid, Signal::SIGKILL);
    assert_eq!(exit_code(line.first_pid()), 128 + 9);
    line.wait_for_end();
}

/// A parent such as a shell after `trap '' CHLD` passes the ignored signal on, and the kernel then
/// discards the exit status of each child.
#[test]
fn an_init_ends_although_its_parent_ignored_sigchld() {
    let ignoring = ["perl", "-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV or die"];
    let line = Line::start_under(&ignoring, |command, _| {
        command.args(["--listen", "127.0.0.1:0", "--init"]);
    });
    line.wait_for(1, Event::GenerationServing);
    signal(line.first_pid(), Signal::SIGTERM);
    assert_eq!(exit_code(line.first_pid()), 0);
}

/// The first generation may end before the init continues after the fork.
#[test]
fn an_init_ends_although_its_child_has_ended_before() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Only the init is traced. It calls close_range(2) right after the fork.
    let mut strace = Command::new("strace");
    strace.arg("-D").arg("-o").arg(folder.path().join("trace"));
    strace.args(["-e", "inject=close_range:delay_enter=500ms"]);
    strace.args(["perl", "-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV or die", REAL]);
    strace.args(["--init", "--listen", "/nonexistent/socket"]);
    Refusal::of(strace).names(78, &["/nonexistent/socket", "No such file"]);
    let trace = || fs::read_to_string(folder.path().join("trace")).unwrap();
    assert_becomes(&true, || trace().contains("exited with 78"));
    // The C library forks with clone(2).
    assert!(trace().split_once("clone(").unwrap().1.contains("(DELAYED)"), "{}", trace());
}

#[test]
fn a_second_interrupt_reaches_the_active_generation() {
    let line = Line::serve(&[&["--init"], &SLOW_DRAIN[..]].concat());
    let _held = line.hold();
    signal(line.first_pid(), Signal::SIGINT);
    line.wait_for(1, Event::DrainStarted);
    signal(line.first_pid(), Signal::SIGINT);
    assert_eq!(exit_code(line.first_pid()), 0);
    assert_eq!(line.wait_for(1, Event::GenerationEnded).field("cut"), Some("1"));
}

/// Passed sockets belong to the lineage: the init keeps none of them.
#[test]
fn the_init_keeps_no_passed_socket() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let line = Parent::passing([socket.into()]).serve(&["--init", "--bake", "0"]);
    Client::once(&address, b"are you there?").unwrap();
    signal(line.first_pid(), Signal::SIGHUP);
    line.wait_for(2, Event::GenerationServing);
    Client::once(&address, b"are you there?").unwrap();
    signal(line.first_pid(), Signal::SIGTERM);
    line.wait_for_end();
    assert!(Client::connect(&address).is_err(), "a process still holds the socket");
}

/// Ctrl-C signals every foreground process. The active generation gets the signal from the
/// terminal, and the init does not pass it on a second time.
#[test]
fn a_terminal_interrupt_is_received_once() {
    let terminal = openpty(None, None).unwrap();
    let line = Line::start_under(&["setsid", "--ctty"], |command, _| {
        command.args(["--listen", "127.0.0.1:0", "--init"]).args(SLOW_DRAIN).stdin(terminal.slave);
    });
    line.wait_for(1, Event::GenerationServing);
    let mut held = line.hold();
    // Two pending signals would merge into one, so the init stays stopped until the active
    // generation has received its own.
    freeze(line.first_pid());
    nix::unistd::write(&terminal.master, b"\x03").unwrap();
    line.wait_for(1, Event::DrainStarted);
    thaw(line.first_pid());
    // If the init had passed the interrupt on, it would arrive before this reload.
    signal(line.first_pid(), Signal::SIGHUP);
    line.wait_for(1, Event::ReloadIgnored);
    assert_eq!(line.count(Event::SignalReceived.with("signal", "SIGINT")), 1);
    held.echo(b"still here").unwrap();
    line.wait_for_end();
    assert_eq!(line.wait_for(1, Event::GenerationEnded).field("cut"), Some("0"));
}
