//! Tests of what a program reports to the daemon and to the service manager: its notifications, its
//! watchdog, its counters, and its exit code.

use std::fs;

use nix::sys::signal::Signal;

use crate::counters::request;
use crate::programs::{INHERITING, PRIVATE, good, put, run, run_app, started};
use crate::support::{Client, Event, Line, Manager, REAL, exit_code, signal};

/// A command that sends `READY=1`, and waits for nothing.
const SEND_READY: &str = "perl -e 'socket(S, 1, 2, 0) and \
    connect(S, pack(\"Sa*\", 1, $ENV{NOTIFY_SOCKET})) and send(S, \"READY=1\", 0) or die'";

/// Runs the echo program with a service manager whose watchdog waits for this many milliseconds.
fn run_watched(manager: &Manager, milliseconds: u64, bake: &str) -> Line {
    let line = run(|command, folder| {
        put(folder, &good());
        command.args(["--bake", bake]);
        command.env("NOTIFY_SOCKET", manager.path());
        command.env("WATCHDOG_USEC", (milliseconds * 1000).to_string());
        command.arg("--").arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// The program is a daemon of ours, and answers its watchdog as such.
#[test]
fn a_program_that_stops_answering_is_started_again() {
    let manager = Manager::new();
    // Long enough that the program answers in time on a busy machine.
    let line = run_watched(&manager, 20_000, "0");
    line.wait_for(1, Event::ProgramWatched);
    signal(started(&line, 1), Signal::SIGSTOP);
    line.wait_for(1, Event::ProgramRestarting);
    assert!(line.text().contains("the program stopped answering its watchdog"), "{}", line.text());
    started(&line, 2);
    line.assert_serves();
}

/// A heartbeat waits for the answer of the program, and arrives in time all the same.
#[test]
fn the_watchdog_is_answered_beside_a_program() {
    let manager = Manager::new();
    let line = run_watched(&manager, 4000, "0");
    (0..2).for_each(|_| assert_answers(&manager, &line, 1));
}

/// Asserts that the next answer to the watchdog comes from this generation.
fn assert_answers(manager: &Manager, line: &Line, generation: u64) {
    let (alive, _) = manager.hear_until("WATCHDOG=1");
    assert_eq!(alive.pid, line.pid_of(generation));
}

/// The old generation is active during the bake and after it, and its answers depend on its own
/// program. The successor never answers.
#[test]
fn the_watchdog_is_answered_after_a_death_in_the_bake() {
    let manager = Manager::new();
    let line = run_watched(&manager, 10_000, "60s");
    let reload = line.ask(&["reload"]);
    line.wait_for(2, Event::ProgramWatched);
    line.wait_for(1, Event::SuccessorReady);
    assert_answers(&manager, &line, 1);
    line.signal(2, Signal::SIGKILL);
    reload.wait().names(76, &["the new process ended after it was ready"]);
    drop(manager.rest());
    (0..2).for_each(|_| assert_answers(&manager, &line, 1));
    signal(started(&line, 1), Signal::SIGSTOP);
    line.wait_for(1, Event::ProgramRestarting);
    line.assert_serves();
}

/// A wrapper starts the program, names it, and ends.
#[test]
fn a_wrapper_may_name_the_main_process() {
    // Only the wrapper reports a status.
    let script = format!(
        "env -u NOTIFY_SOCKET {REAL} \"$@\" & \
        systemd-notify --ready MAINPID=$! STATUS='well and up'; exit 0"
    );
    let line = run_app(&script, &["--ready", "notify"], &PRIVATE);
    let named = line.wait_for(1, Event::ProgramMainProcess);
    let main: u32 = named.field("program_pid").unwrap().parse().unwrap();
    assert_ne!(main, started(&line, 1));
    line.assert_serves();
    let table = line.asked(&["status"]).well();
    let row = table.lines().find(|row| row.ends_with("  1       well and up"));
    let shown =
        row.and_then(|row| row.split_whitespace().nth(1)).unwrap_or_else(|| panic!("{table}"));
    assert_eq!(shown, main.to_string(), "{table}");
    let one_line = line.asked(&["status", "--watch"]).well();
    assert_eq!(one_line, "generation 1 serving, connections: 0, program: well and up\n");
    signal(main, Signal::SIGKILL);
    line.wait_for(1, Event::ProgramRestarting);
    assert!(line.text().contains("the program ended with SIGKILL"), "{}", line.text());
    line.wait_for_count(2, Event::ProgramMainProcess);
    line.assert_serves();
    line.signal(1, Signal::SIGTERM);
    line.wait_for_end();
}

/// The wrapper has ended with exit code 0, but the main process is killed.
#[test]
fn a_killed_main_process_is_not_counted_as_its_wrapper() {
    let line = run(|command, folder| {
        let main = format!("env -u NOTIFY_SOCKET {REAL} \"$@\" &");
        put(folder, &format!("{main} systemd-notify MAINPID=$!; exit 0"));
        fs::write(folder.join("healthy"), "").unwrap();
        command.args(["--check-interval", "50ms", "--ready-command", "test", "-e"]);
        command.arg(folder.join("healthy")).args([";", "--"]).arg(folder.join("app")).args(PRIVATE);
    });
    line.wait_for(1, Event::ProgramMainProcess);
    line.wait_for(1, Event::GenerationServing);
    fs::remove_file(line.folder().join("healthy")).unwrap();
    line.wait_for(1, Event::ProgramRestarting);
    let status = line.asked(&["status", "--json"]).well();
    assert!(!status.contains("\"exits_by_code\":{\"0\""), "{status}");
}

/// A child of the program reports `READY=1` when the program has died and was reaped by the daemon.
#[test]
fn a_program_that_has_died_does_not_make_the_next_one_ready() {
    let script = format!(
        "cd \"$(dirname \"$0\")\"
        if [ -e again ]; then sleep 0.2; exit 3; fi
        : > again
        (while kill -0 $$ 2> errors; do sleep 0.01; done; {SEND_READY}) &
        {SEND_READY}; exec {REAL} \"$@\""
    );
    let line = run_app(&script, &["--ready", "notify"], &PRIVATE);
    signal(started(&line, 1), Signal::SIGKILL);
    line.wait_for_count(2, Event::ProgramRestarting);
    assert!(line.text().contains("ended before it was ready, with exit code 3"), "{}", line.text());
}

/// The named process has a group of its own, as a daemon has. Its worker ends with it.
fn ends_with_its_group(start: &str) {
    let script = format!(
        "cd \"$(dirname \"$0\")\"; rm -f worker
        echo 'trap \"\" TERM; echo $$ > main' > main.sh
        echo 'sleep 1000 & echo $! > new; mv new worker; wait' >> main.sh
        {start} &
        while [ ! -e worker ]; do sleep 0.01; done
        systemd-notify --ready MAINPID=$(cat main); wait"
    );
    let flags = ["--attach", "inherit", "--ready", "notify", "--stop-timeout", "100ms"];
    let line = run_app(&script, &flags, &[]);
    line.wait_for(1, Event::ProgramMainProcess);
    let of_the_killed = pid_in(&line, "worker");
    signal(pid_in(&line, "main"), Signal::SIGKILL);
    assert_eq!(exit_code(of_the_killed), 128 + 9);
    line.wait_for_count(2, Event::ProgramMainProcess);
    let of_the_stopped = pid_in(&line, "worker");
    line.signal(1, Signal::SIGTERM);
    assert_eq!(exit_code(of_the_stopped), 128 + 9);
    line.wait_for_end();
}

#[test]
fn the_group_of_a_named_process_ends_with_the_program() {
    ends_with_its_group("setsid sh main.sh");
    // The daemon does not lead its group, because it has forked again.
    ends_with_its_group("setsid sh -c 'sh main.sh & wait'");
}

/// Returns the pid that a program has written to this file in its folder.
fn pid_in(line: &Line, file: &str) -> u32 {
    fs::read_to_string(line.folder().join(file)).unwrap().trim().parse().unwrap()
}

/// A daemon has a session of its own, and is no descendant of the program that has started it.
#[test]
fn a_daemon_may_be_named_as_the_main_process() {
    let script = format!(
        "cd \"$(dirname \"$0\")\"; rm -f daemon
        setsid -f sh -c 'echo $$ > new; mv new daemon; exec {REAL} \"$@\"' sh \"$@\"
        while [ ! -e daemon ]; do sleep 0.01; done
        systemd-notify --ready MAINPID=$(cat daemon)"
    );
    let line = run_app(&script, &["--ready", "notify"], &PRIVATE);
    line.wait_for(1, Event::ProgramMainProcess);
    line.assert_serves();
    signal(pid_in(&line, "daemon"), Signal::SIGKILL);
    line.wait_for(1, Event::ProgramRestarting);
    line.wait_for_count(2, Event::ProgramMainProcess);
    line.assert_serves();
    let daemon = pid_in(&line, "daemon");
    line.signal(1, Signal::SIGTERM);
    assert_eq!(exit_code(daemon), 0);
    line.wait_for_end();
}

#[test]
fn a_stranger_is_no_main_process() {
    let script = format!("systemd-notify --ready MAINPID=1; {}", good());
    let line = run_app(&script, &["--ready", "notify"], &PRIVATE);
    let ignored = line.wait_for(1, Event::ProgramMainProcessIgnored);
    assert_eq!(ignored.field("program_pid").unwrap(), "1");
    line.assert_serves();
}

#[test]
fn a_program_that_leaves_the_foreground_fails_the_reload() {
    let line = run_app(&good(), &[], &PRIVATE);
    put(line.folder(), &format!("(sleep 1; exec {REAL} \"$@\") & exit 0"));
    line.asked(&["reload"]).names(70, &["exit code 0; the program must stay in the foreground"]);
    line.assert_serves();
}

#[test]
fn without_restart_the_exit_code_is_that_of_the_program() {
    let script = format!("trap 'kill $!; exit 7' TERM; {REAL} \"$@\" & wait; exit 1");
    let line = run_app(&script, &["--restart", "never"], &PRIVATE);
    line.assert_serves();
    signal(started(&line, 1), Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 7);
}

/// The counters of a private program do not name its address, which each generation changes.
#[test]
fn metrics_are_served_beside_a_program() {
    for (arguments, clients) in [(PRIVATE, true), (INHERITING, false)] {
        let line = run_app(&good(), &["--metrics", "127.0.0.1:0", "--bake", "0"], &arguments);
        for _ in 0..3 {
            Client::once(&line.address(), b"12345").unwrap();
            line.asked(&["reload", "--wait-drained"]).well();
        }
        let metrics = request(&line.address_of("metrics"), "GET /metrics HTTP/1.1");
        assert!(metrics.contains("\nhandoffd_program_starts_total 4\n"), "{metrics}");
        assert!(metrics.contains("\nhandoffd_program_exits_total{code=\"0\"} 3\n"), "{metrics}");
        let of_upstream = "\nhandoffd_upstream_connections_total{listener=\"web\",upstream=";
        let counted = format!("{of_upstream}\"instance-0\"}} 3\n");
        assert_eq!(metrics.contains(&counted), clients, "{metrics}");
        assert!(metrics.matches(of_upstream).count() < 2, "{metrics}");
    }
}

/// The settings of forwarded connections apply to those of a private program.
#[test]
fn an_idle_connection_to_a_program_is_closed() {
    let line = run_app(&good(), &["--idle-timeout", "100ms"], &PRIVATE);
    let mut client = Client::connect(&line.address()).unwrap();
    client.echo(b"12345").unwrap();
    client.expect_end().unwrap();
}
