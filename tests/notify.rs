//! Tests of the notifications that the service manager receives: what they say, which process sends
//! them, and that nothing else is sent.

use nix::sys::signal::Signal;

use crate::life::addresses;
use crate::support::view::pause;
use crate::support::{
    Client, Event, Gate, Line, Manager, SLOW_DRAIN, Told, Tracer, assert_becomes, example, signal,
};

/// Starts a daemon with a control socket under `manager`, and waits for its `READY=1`.
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
    assert!(
        told.iter().all(|told| told.pid == pid),
        "a process other than {pid} sent a notification: {told:?}"
    );
}

/// The client connects right after `READY=1`, without waiting for a log record.
#[test]
fn ready_is_sent_when_connections_are_accepted() {
    let manager = Manager::new();
    let line = serve(&manager, &[], &[]);
    // The test does not read the log: the notification alone must be enough.
    line.assert_serves();
}

/// A handoff that SIGHUP starts sends `RELOADING=1` at its begin and `READY=1` at its end.
#[test]
fn a_handoff_by_signal_sends_reloading_and_ready() {
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

/// The kernel refuses every other call for lack of memory.
#[test]
fn a_shortage_of_memory_does_not_hide_the_main_process() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    let inject = "inject=epoll_ctl,sendmsg:error=ENOMEM:when=1+2";
    let tracer = Tracer::attach(&line, line.first_pid(), &["-e", inject]);
    line.signal(1, Signal::SIGHUP);
    let (handed_over, _) = manager.hear_until("MAINPID=");
    assert_eq!(handed_over.value("MAINPID").unwrap(), line.pid_of(2).to_string());
    assert!(tracer.wait().contains("(INJECTED)"));
}

/// The manager would stop the service at the end of the old process, so the old process continues.
#[test]
fn a_handoff_fails_if_the_manager_cannot_learn_of_it() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    let tracer = Tracer::attach(&line, line.first_pid(), &["-e", "inject=sendmsg:error=ENOBUFS"]);
    line.asked(&["reload"]).names(76, &["cannot tell the service manager the pid"]);
    tracer.detach();
    line.assert_serves();
    line.asked(&["reload"]).well();
    let (handed_over, _) = manager.hear_until("MAINPID=");
    assert_eq!(handed_over.pid, line.first_pid());
}

/// systemd restarts a service only when its reload command has ended. So the command does not wait
/// for a successor that hangs, although the successor has an hour to become ready.
#[test]
fn a_reload_ends_when_a_watched_generation_dies() {
    let manager = Manager::new();
    let line = serve(&manager, &["--ready-timeout", "1h"], &[]);
    line.put_script("echo hanging >&2; exec sleep 1000");
    let reload = line.ask(&["reload"]);
    line.wait_for(0, "hanging");
    // By then the daemon has told the client of the reload that the handoff has begun.
    line.asked(&["status"]).well();
    line.signal(1, Signal::SIGKILL);
    reload.wait().names(70, &["has died"]);
}

/// The successor takes over, but systemd is about to end it, because the main process has died.
#[test]
fn a_reload_fails_if_a_watched_generation_dies_in_the_bake() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "1h"], &[]);
    let reload = line.ask(&["reload"]);
    line.wait_for(2, Event::GenerationAccepting);
    // By then the daemon has told the client of the reload that the handoff has begun.
    line.asked(&["status"]).well();
    line.signal(1, Signal::SIGKILL);
    reload.wait().names(70, &["has died", "the service manager restarts the service"]);
}

/// After a signal, a failed handoff ends with `READY=1`, because `RELOADING=1` was sent. After
/// `reload` by an operator it only changes the status: `READY=1` would report a successful reload.
#[test]
fn a_failed_handoff_sends_ready_only_after_a_signal() {
    let manager = Manager::new();
    let line = serve(&manager, &["--bake", "0"], &[]);
    line.put_script("exit 1");
    line.asked(&["reload"]).names(70, &["ended before it was ready"]);
    let (status, before) = manager.hear_until(
        "STATUS=generation 1 serving, connections: 0; the handoff to generation 2 failed",
    );
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
                .contains("failed: the new process ended before it was ready"),
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

/// The status of the active generation counts the generations that drain and their connections. The
/// draining generations send nothing.
#[test]
fn only_the_active_generation_reports_the_drain() {
    let manager = Manager::new();
    let line = serve(&manager, &[&["--bake", "0"], &SLOW_DRAIN[..]].concat(), &[]);
    let mut held = line.hold();
    line.signal(1, Signal::SIGHUP);
    manager.hear_until("MAINPID=");
    let (_, before) = manager.hear_until(
        "STATUS=generation 2 serving, connections: 0; generation 1 draining, connections left: 1, ",
    );
    assert_only_by(&before, line.pid_of(2));
    held.echo(b"still here").unwrap();
    let (_, before) =
        manager.hear_until("STATUS=generation 2 serving, connections: 0\n".trim_end());
    assert_only_by(&before, line.pid_of(2));
    assert_eq!(line.exit_code(1), 0);
}

/// The active generation sends `STOPPING=1` and is the last process to end.
#[test]
fn only_the_active_generation_reports_a_stop() {
    let manager = Manager::new();
    let line = serve(&manager, &[&["--bake", "0"], &SLOW_DRAIN[..]].concat(), &[]);
    let mut held = line.hold();
    line.signal(1, Signal::SIGHUP);
    manager.hear_until("MAINPID=");
    line.wait_for(2, Event::GenerationServing);
    // A service manager signals all processes, possibly twice.
    for generation in [1, 2, 1, 2] {
        line.signal(generation, Signal::SIGTERM);
    }
    let (stopping, before) = manager.hear_until("STOPPING=1");
    assert_eq!(stopping.pid, line.pid_of(2));
    assert_only_by(&before, line.pid_of(2));
    manager.hear_until("STATUS=generation 2 stopping, connections left: 0, ");
    held.echo(b"still here").unwrap();
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(line.exit_code(1), 0);
    assert_only_by(&manager.rest(), line.pid_of(2));
    let records = line.wait_for_end();
    let ended = records.iter().rfind(|record| record.is_event(Event::GenerationEnded)).unwrap();
    assert_eq!(ended.generation, 2);
}

/// While no connection ends, the daemon does not ask for more time.
#[test]
fn a_stop_extends_its_timeout_when_a_connection_ends() {
    let manager = Manager::new();
    let line = serve(&manager, &SLOW_DRAIN, &[]);
    let mut held: Vec<_> = (0..3).map(|_| line.hold()).collect();
    line.signal(1, Signal::SIGTERM);
    manager.hear_until("STATUS=generation 1 stopping, connections left: 3, ");
    for left in (1..3).rev() {
        // Waits for an unchanged status first, so that the next notification is about the next
        // change.
        let stands = format!("STATUS=generation 1 stopping, connections left: {}", left + 1);
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

/// The successor continues the watchdog notifications after it has taken over.
#[test]
fn the_active_generation_feeds_the_watchdog() {
    let manager = Manager::new();
    let line =
        serve(&manager, &["--bake", "0"], &[("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "")]);
    // `WATCHDOG_PID` names another process, so the daemon sends nothing.
    line.hand_over_from(1);
    manager.hear_until("MAINPID=");
    assert!(manager.rest().iter().all(|told| told.value("WATCHDOG").is_none()));
    drop(line);

    // The shell sets `WATCHDOG_PID` to the daemon's own process id.
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

/// The thread that sends the notifications still runs, but the runtime of the server does not.
#[test]
fn a_server_that_hangs_does_not_feed_the_watchdog() {
    let feeds =
        |manager: &Manager| manager.rest().iter().any(|told| told.value("WATCHDOG").is_some());
    for mode in ["blocking", "blocking-here"] {
        let manager = Manager::new();
        let line = Line::start_program(&example("life"), |command, folder| {
            command.args([mode, "127.0.0.1:0"]).current_dir(folder);
            command.env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "20000");
        });
        (0..3).for_each(|_| drop(manager.hear_until("WATCHDOG=1")));
        let mut client = Client::connect(&addresses(&line).0).unwrap();
        client.expect(b"blocked").unwrap();
        pause(500);
        feeds(&manager);
        pause(500);
        assert!(!feeds(&manager), "{mode}");
        drop(client);
        signal(line.first_pid(), Signal::SIGQUIT);
        line.wait_for_end();
    }
}

#[test]
fn an_invalid_watchdog_setting_is_reported() {
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
fn a_missing_service_manager_delays_nothing() {
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
fn a_stop_during_a_reload_is_reported_as_a_stop() {
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
    // A process that another test has just forked may hold the stored sockets until its exec.
    assert_becomes(&true, || Client::connect(&line.address()).is_err());
}
