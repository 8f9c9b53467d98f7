//! A service manager hears what it needs, from whom it listens to, and nothing else.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{
    Client, Event, Gate, Line, Manager, SLOW_DRAIN, Told, assert_becomes, signal,
};

/// A line on `127.0.0.1:0` with an operator's socket under `manager`, which hears first that it is
/// ready.
fn serve(manager: &Manager, arguments: &[&str], variables: &[(&str, &str)]) -> Line {
    let line = Line::start_with(|command, folder| {
        command.args(["--listen", "127.0.0.1:0"]).arg("--control").arg(folder.join("control"));
        command
            .args(arguments)
            .envs(variables.iter().copied())
            .env("NOTIFY_SOCKET", manager.path());
    });
    let (ready, before) = manager.hear_until("READY=1");
    assert_eq!(ready.pid, line.first_pid());
    assert!(before.iter().all(|told| told.value("FDSTORE").is_some()), "{before:?}");
    line
}

fn assert_only_by(told: &[Told], pid: u32) {
    assert!(told.iter().all(|told| told.pid == pid), "somebody else than {pid} spoke: {told:?}");
}

/// The socket is passed in, so a client can come before: it waits in the queue.
#[test]
fn ready_is_said_when_connections_are_accepted() {
    let manager = Manager::new();
    let line = serve(&manager, &[], &[]);
    // No log is read: the word alone has to be enough.
    line.assert_serves();
}

#[test]
fn a_handoff_that_a_signal_asks_for_is_told_with_one_word_at_each_end() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    line.signal(1, Signal::SIGHUP);
    let (reloading, before) = manager.hear_until("RELOADING=1");
    assert_only_by(&before, line.first_pid());
    assert!(reloading.value("MONOTONIC_USEC").unwrap().parse::<u64>().unwrap() > 0);
    let (handed_over, between) = manager.hear_until("READY=1");
    assert_only_by(&between, line.first_pid());
    assert_eq!(handed_over.pid, line.first_pid());
    assert_eq!(handed_over.value("MAINPID").unwrap(), line.pid_of(2).to_string());
    assert!(handed_over.value("STATUS").unwrap().starts_with("generation 2 serving"));
    assert_eq!(line.exit_code(1), 0);
    line.signal(2, Signal::SIGTERM);
    let (stopping, between) = manager.hear_until("STOPPING=1");
    assert_eq!(stopping.pid, line.pid_of(2));
    assert_only_by(&between, line.pid_of(2));
    line.wait_for_end();
    assert_only_by(&manager.rest(), line.pid_of(2));
}

/// READY would say that a reload went well: it is for those who were told that one began.
#[test]
fn a_handoff_that_fails_ends_in_ready_if_a_signal_asked_for_it_and_in_a_status_if_an_operator_did()
{
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    line.put_script("exit 1");
    line.asked(&["reload"]).names(70, &["ended before it was ready"]);
    let (status, before) =
        manager.hear_until("STATUS=generation 1 serving 0; the handoff to 2 failed");
    assert!(
        before
            .iter()
            .all(|told| told.value("READY").is_none() && told.value("RELOADING").is_none()),
        "{before:?}"
    );
    assert_eq!(status.value("READY"), None);
    for _ in 0..3 {
        line.fail_to_hand_over_from(1);
        manager.hear_until("RELOADING=1");
        let (ready, _) = manager.hear_until("READY=1");
        assert!(
            ready
                .value("STATUS")
                .unwrap()
                .contains("failed: the successor ended before it was ready"),
            "{ready:?}"
        );
        assert_eq!(ready.value("MAINPID"), None);
    }
    line.put_real();
    line.asked(&["reload"]).well();
    let (handed_over, before) = manager.hear_until("MAINPID=");
    assert!(before.iter().all(|told| told.value("RELOADING").is_none()), "{before:?}");
    assert_eq!(handed_over.value("READY"), Some("1"));
}

#[test]
fn the_head_tells_of_those_that_drain_and_they_say_nothing() {
    let manager = Manager::new();
    let line = serve(&manager, &[&["--bake", "0"], &SLOW_DRAIN[..]].concat(), &[]);
    let mut held = line.hold();
    line.signal(1, Signal::SIGHUP);
    manager.hear_until("MAINPID=");
    let (_, before) = manager.hear_until("STATUS=generation 2 serving 0; 1 draining, 1 left, ");
    assert_only_by(&before, line.pid_of(2));
    held.echo(b"still here").unwrap();
    let (_, before) = manager.hear_until("STATUS=generation 2 serving 0\n".trim_end());
    assert_only_by(&before, line.pid_of(2));
    assert_eq!(line.exit_code(1), 0);
}

#[test]
fn a_stop_is_told_by_the_head_alone_which_is_the_last_to_end() {
    let manager = Manager::new();
    let line = serve(&manager, &[&["--bake", "0"], &SLOW_DRAIN[..]].concat(), &[]);
    let mut held = line.hold();
    line.signal(1, Signal::SIGHUP);
    manager.hear_until("MAINPID=");
    line.wait_for(2, Event::GenerationServing);
    // As a service manager does: to all of them, and again.
    for generation in [1, 2, 1, 2] {
        line.signal(generation, Signal::SIGTERM);
    }
    let (stopping, before) = manager.hear_until("STOPPING=1");
    assert_eq!(stopping.pid, line.pid_of(2));
    assert_only_by(&before, line.pid_of(2));
    manager.hear_until("STATUS=generation 2 stopping, 0 left, ");
    held.echo(b"still here").unwrap();
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(line.exit_code(1), 0);
    assert_only_by(&manager.rest(), line.pid_of(2));
    let records = line.wait_for_end();
    let ended = records.iter().rfind(|record| record.is_event(Event::GenerationEnded)).unwrap();
    assert_eq!(ended.generation, 2);
}

#[test]
fn a_stop_gets_more_time_for_every_connection_that_ends_and_none_for_those_that_stay() {
    let manager = Manager::new();
    let line = serve(&manager, &SLOW_DRAIN, &[]);
    let mut held: Vec<_> = (0..3).map(|_| line.hold()).collect();
    line.signal(1, Signal::SIGTERM);
    manager.hear_until("STATUS=generation 1 stopping, 3 left, ");
    for left in (1..3).rev() {
        // Twice seen as it is, so that the next word is about what changes now.
        let stands = format!("STATUS=generation 1 stopping, {}", left + 1);
        let (_, before) = manager.hear_until(&stands);
        assert!(
            before.iter().all(|told| told.value("EXTEND_TIMEOUT_USEC").is_none()),
            "{before:?}"
        );
        held.pop().unwrap().echo(b"done").unwrap();
        let (extended, _) = manager.hear_until("EXTEND_TIMEOUT_USEC=");
        assert_eq!(extended.pid, line.first_pid());
    }
    held.pop().unwrap().echo(b"done").unwrap();
    line.wait_for_end();
}

#[test]
fn the_watchdog_hears_from_the_head_and_from_whoever_takes_over() {
    let manager = Manager::new();
    let line =
        serve(&manager, &["--bake", "0"], &[("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "")]);
    // Meant for another process: nothing is said.
    line.hand_over_from(1);
    manager.hear_until("MAINPID=");
    assert!(manager.rest().iter().all(|told| told.value("WATCHDOG").is_none()));
    drop(line);

    // The shell says whom it is meant for.
    let manager = Manager::new();
    let line =
        Line::start_under(&["sh", "-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""], |command, _| {
            command.args(["--listen", "127.0.0.1:0", "--bake", "0"]);
            command.env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "20000");
        });
    for generation in 1..4 {
        for _ in 0..3 {
            let (alive, _) = manager.hear_until("WATCHDOG=1");
            assert_eq!(alive.pid, line.pid_of(generation));
        }
        line.signal(generation, Signal::SIGHUP);
        let (_, before) = manager.hear_until("MAINPID=");
        assert_only_by(&before, line.pid_of(generation));
    }
}

#[test]
fn a_watchdog_that_cannot_be_is_named() {
    let manager = Manager::new();
    let line = Line::start_with(|command, _| {
        command
            .args(["--listen", "127.0.0.1:0"])
            .env("NOTIFY_SOCKET", manager.path())
            .env("WATCHDOG_USEC", "soon");
    });
    assert_eq!(line.exit_code(1), 78);
    let said = line.wait_for_end().pop().unwrap().text;
    assert!(said.contains("bad WATCHDOG_USEC=\"soon\""), "{said}");
}

#[test]
fn a_service_manager_that_is_gone_or_does_not_listen_holds_up_nobody() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    drop(manager);
    line.hand_over_from(1);
    line.assert_serves();
    assert_eq!(line.exit_code(1), 0);
    line.asked(&["reload"]).well();
    line.signal(3, Signal::SIGTERM);
    line.wait_for_end();
}

#[test]
fn a_stop_in_the_middle_of_a_reload_is_told_as_a_stop() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    line.signal(1, Signal::SIGHUP);
    gate.wait(&line);
    line.signal(1, Signal::SIGTERM);
    let (stopping, _) = manager.hear_until("STOPPING=1");
    assert_eq!(stopping.pid, line.first_pid());
    gate.open();
    line.wait_for_end();
    assert!(
        manager
            .rest()
            .iter()
            .all(|told| told.value("MAINPID").is_none() && told.value("READY").is_none())
    );
    // What the manager was given to keep, a process that another test has just forked may hold
    // until its exec.
    assert_becomes(&true, || Client::connect(&line.address()).is_err());
}

/// Reloads twice, and checks that each handoff is told without a number.
fn assert_no_main_process_is_named(line: &Line, manager: &Manager) {
    for generation in 2..=3 {
        line.asked(&["reload"]).well();
        let (handed_over, before) = manager.hear_until("READY=1");
        assert_eq!(
            handed_over.value("STATUS"),
            Some(format!("generation {generation} serving").as_str())
        );
        assert!(
            before.iter().chain([&handed_over]).all(|told| told.value("MAINPID").is_none()),
            "{handed_over:?}"
        );
    }
    line.assert_serves();
}

/// Prepares a daemon with an operator's socket that tells `manager` how it fares.
fn arguments(command: &mut Command, folder: &std::path::Path, manager: &Manager) {
    command.args(["--listen", "127.0.0.1:0", "--bake", "0"]).arg("--control");
    command.arg(folder.join("control")).env("NOTIFY_SOCKET", manager.path());
}

#[test]
fn an_init_that_stays_stays_the_main_process() {
    let manager = Manager::new();
    let line = Line::start_with(|command, folder| {
        arguments(command, folder, &manager);
        command.arg("--init");
    });
    manager.hear_until("READY=1");
    assert_no_main_process_is_named(&line, &manager);
    signal(line.first_pid(), Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
}

/// Process 1 in there is none of ours, so no init of ours stays; with a /proc of its own, and with
/// that of the manager.
#[test]
fn to_a_manager_outside_a_container_no_number_is_told() {
    for proc in [&["--mount-proc"][..], &[]] {
        let manager = Manager::new();
        let line = Line::start_by(|folder| {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--pid", "--fork", "--kill-child"]).args(proc);
            command
                .args(["sh", "-c", "\"$0\" \"$@\" & exec sleep 600"])
                .arg(folder.join("handoffd"));
            command.args(["--log", "debug"]);
            arguments(&mut command, folder, &manager);
            command
        });
        manager.hear_until("READY=1");
        assert_no_main_process_is_named(&line, &manager);
    }
}

/// The second generation has no ancestor left that knows the manager.
#[test]
fn a_daemon_that_enters_a_container_tells_no_number() {
    let manager = Manager::new();
    let mut container = Command::new("unshare");
    container.args([
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sleep",
        "600",
    ]);
    let mut container = container.spawn().unwrap();
    let inside =
        || fs::read_to_string(format!("/proc/{0}/task/{0}/children", container.id())).unwrap();
    assert_becomes(&true, || !inside().is_empty());
    let inside = inside().trim().to_owned();
    assert_becomes(&true, || {
        fs::read_to_string(format!("/proc/{inside}/comm")).unwrap().trim() == "sleep"
    });
    let line = Line::start_by(|folder| {
        let mut command = Command::new("nsenter");
        command.args(["--target", &inside, "--user", "--pid", "--mount", "--preserve-credentials"]);
        command.arg(folder.join("handoffd")).args(["--log", "debug"]);
        arguments(&mut command, folder, &manager);
        command
    });
    manager.hear_until("READY=1");
    assert_no_main_process_is_named(&line, &manager);
    container.kill().unwrap();
    container.wait().unwrap();
    line.wait_for_end();
}
