//! Tests of clients that meet a program when it ends, or does not run: none waits for an answer
//! that cannot come.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::programs::{INHERITING, PRIVATE, good, put, run_app, started};
use crate::support::{Client, Event, Line, REAL, Tracer, assert_becomes, signal};

/// A program that takes as long to end as `FOLDER/hold` exists.
fn slow_to_end() -> String {
    format!(
        "cd \"$(dirname \"$0\")\"; : > hold
        finish() {{
            : > stopping
            while [ -e hold ]; do sleep 0.05; done
            kill $server; wait $server; exit
        }}
        trap finish TERM
        {REAL} \"$@\" & server=$!
        while :; do wait; done"
    )
}

/// The program takes longer to stop than it may take to be ready. Both times count.
#[test]
fn a_program_that_still_stops_is_started_again() {
    let script = format!(
        "trap 'sleep 3; kill $server; wait $server; exit' TERM
        sh -c 'LISTEN_PID=$$ exec {REAL} \"$@\"' sh \"$@\" & server=$!
        while :; do wait; done"
    );
    let slow = ["--bake", "0", "--ready-timeout", "2s", "--stop-timeout", "20s"];
    let line = run_app(&script, &slow, &INHERITING);
    put(line.folder(), &good());
    line.asked(&["reload"]).well();
    line.wait_for(1, Event::ProgramStopping);
    line.signal(2, Signal::SIGKILL);
    line.wait_for(1, Event::GenerationResumed);
    line.assert_serves();
}

/// The clients in the backlog cannot be served any more: the active generation accepts none, and
/// the program of the old one has been told to stop.
#[test]
fn a_stopping_program_gets_no_clients_from_the_backlog() {
    let patient = ["--bake", "0", "--drain-timeout", "1h", "--stop-timeout", "1h"];
    let line = run_app(&slow_to_end(), &patient, &PRIVATE);
    put(line.folder(), &good());
    line.asked(&["reload"]).well();
    let stopping = line.folder().join("stopping");
    assert_becomes(&true, || stopping.exists());
    let no_accept = ["-f", "-e", "trace=accept4", "-e", "inject=accept4:error=ENFILE"];
    let tracer = Tracer::attach(&line, line.pid_of(2), &no_accept);
    let waiting: Vec<Client> = (0..4).map(|_| Client::connect(&line.address()).unwrap()).collect();
    line.signal(2, Signal::SIGTERM);
    line.wait_for(1, Event::GenerationStep.with("input", "ServiceStopping"));
    fs::remove_file(line.folder().join("hold")).unwrap();
    line.wait_for_end();
    drop((tracer, waiting));
}

/// The drain deadline comes before the end of `--stop-timeout`.
#[test]
fn a_program_that_is_killed_at_the_drain_deadline_is_logged() {
    let script = "trap '' TERM; : > \"$(dirname \"$0\")/ignores\"; sleep 1000 & sleep 1000";
    let flags = ["--attach", "inherit", "--ready", "after:0", "--drain-timeout", "300ms"];
    let line = run_app(script, &flags, &[]);
    assert_becomes(&true, || line.folder().join("ignores").exists());
    line.signal(1, Signal::SIGTERM);
    line.wait_for_end();
    assert_eq!(line.count(Event::ProgramKilled), 1);
}

/// A reload that repairs a broken program also serves the clients that wait for the old one.
fn serves_the_clients_that_waited(flags: &[&str]) {
    const RESTARTS: usize = 6;
    let script = format!("[ ! -e \"$(dirname \"$0\")/broken\" ] || exit 1; {}", good());
    let flags = [flags, &["--bake", "0", "--drain-timeout", "1h"]].concat();
    let line = run_app(&script, &flags, &PRIVATE);
    let broken = |folder: &Path| folder.join("broken");
    fs::write(broken(line.folder()), "").unwrap();
    signal(started(&line, 1), Signal::SIGKILL);
    // After this many failures, the pause is longer than a reload takes.
    line.wait_for_count(RESTARTS, Event::ProgramRestarting);
    let mut waiting = Client::connect(&line.address()).unwrap();
    fs::remove_file(broken(line.folder())).unwrap();
    line.asked(&["reload"]).well();
    waiting.echo(b"I have waited").unwrap();
    drop(waiting);
    assert_eq!(line.exit_code(1), 0);
}

#[test]
fn a_repaired_program_serves_the_clients_that_waited() {
    serves_the_clients_that_waited(&[]);
}

/// The listeners are closed by then, but the program still learns their addresses.
#[test]
fn a_program_starts_again_without_its_listeners() {
    serves_the_clients_that_waited(&["--env", "PUBLIC={address:web}", "--stdin", "web"]);
    serves_the_clients_that_waited(&["--attach", "detect", "--env", "PUBLIC={address}"]);
}

/// The program binds its private socket without removing the file that a killed process has left.
#[test]
fn a_killed_program_leaves_no_socket_in_the_way() {
    let echo = "$l = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 9) or die \"bind: $!\\n\";
        while ($c = $l->accept) { while (sysread $c, $b, 100) { syswrite $c, $b } close $c }";
    let script = format!("exec perl -MIO::Socket::UNIX -e '{echo}' \"$@\"");
    let line = run_app(&script, &[], &["{socket}"]);
    for death in 1..=2 {
        signal(started(&line, death), Signal::SIGKILL);
        line.wait_for_count(death, Event::ProgramRestarting);
        line.assert_serves();
    }
}

/// Counts the processes that run the script of [`run_app`].
fn running(line: &Line) -> usize {
    let script = line.folder().join("app").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let commands = processes.filter_map(|path| fs::read_to_string(path.join("cmdline")).ok());
    commands.filter(|command| command.split('\0').nth(1) == Some(&*script)).count()
}

/// A program that handoffd cannot watch does not run on beside the next one.
#[test]
fn a_program_that_cannot_be_watched_is_killed() {
    let flags = ["--attach", "inherit", "--ready", "after:10ms"];
    let line = run_app("while :; do sleep 1000; done", &flags, &[]);
    let inject = ["-e", "signal=none", "-e", "inject=pidfd_open:error=EMFILE:when=1"];
    let tracer = Tracer::attach(&line, line.first_pid(), &inject);
    signal(started(&line, 1), Signal::SIGKILL);
    started(&line, 2);
    assert!(tracer.detach().contains("INJECTED"));
    assert_eq!(line.count(Event::ProgramRestarting), 2);
    assert_becomes(&1, || running(&line));
}

/// Runs two processes of a program that is not started again, with clients of both.
fn run_two_without_restart() -> (Line, Vec<Client>) {
    let flags = ["--restart", "never", "--instances", "2", "--bake", "0", "--drain-timeout", "1h"];
    let line = run_app(&good(), &flags, &PRIVATE);
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(&line.address()).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.echo(b"before").unwrap());
    (line, clients)
}

/// A program that died in the drain is started when its generation serves again.
#[test]
fn a_program_without_restart_serves_when_its_successor_dies() {
    let (line, clients) = run_two_without_restart();
    line.asked(&["reload"]).well();
    signal(started(&line, 1), Signal::SIGKILL);
    line.wait_for(1, Event::ProgramEnded);
    line.signal(2, Signal::SIGKILL);
    line.wait_for(1, Event::GenerationResumed);
    line.assert_serves();
    drop(clients);
}

/// A program that dies in the drain does not make a requested stop a failure.
#[test]
fn a_stop_succeeds_if_a_program_without_restart_dies() {
    let (line, clients) = run_two_without_restart();
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted);
    signal(started(&line, 1), Signal::SIGKILL);
    line.wait_for(1, Event::ProgramEnded);
    drop(clients);
    assert_eq!(line.exit_code(1), 0);
}
