//! Tests of the notifications of a daemon whose process numbers are not those of the service
//! manager: under an init of its own, and in a container.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Line, Manager, assert_becomes, signal};

/// Reloads twice, and checks that no handoff sends a `MAINPID=`.
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

/// Sets the arguments of a daemon with a control socket that notifies `manager`.
fn arguments(command: &mut Command, folder: &std::path::Path, manager: &Manager) {
    command.args(["--listen", "127.0.0.1:0", "--bake", "0"]).arg("--control");
    command.arg(folder.join("control")).env("NOTIFY_SOCKET", manager.path());
}

#[test]
fn an_init_stays_the_main_process() {
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

/// Process 1 in the container is not ours, so the daemon has no init. The test runs with a private
/// `/proc` and with the manager's `/proc`.
#[test]
fn a_manager_outside_the_container_gets_no_main_pid() {
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

/// The second generation has no ancestor that shares the manager's process ids.
#[test]
fn a_daemon_that_enters_a_container_sends_no_main_pid() {
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
