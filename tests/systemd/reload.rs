//! Tests of `systemctl reload`: it starts the current file at the daemon's path, and its exit code
//! reports the true outcome.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{ADDRESS, Lab, PROGRAM};
use crate::support::{Client, Event, signal};
use crate::system::System;
use crate::traffic;

/// Returns a text field of a journal record.
fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_default()
}

/// The bake is shorter than usual, because most of a reload is the bake.
pub(crate) fn a_hundred_reloads_under_traffic_lose_no_client(system: System) {
    let lab = Lab::boot(system);
    lab.start_with("--bake 100ms");
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let storm = traffic::storm(&lab, 2, 2);
    for _ in 0..100 {
        lab.systemctl(&["reload", "handoffd.service"]).well();
    }
    let tally = storm.end();
    println!(
        "{:?}: {} short, {} persistent, {} crossed",
        system, tally.short, tally.persistent, tally.crossed
    );
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
    assert!(tally.short > 100 && tally.persistent > 100);
    assert_eq!((lab.show("ActiveState"), lab.show("NRestarts")), ("active".into(), "0".into()));
    assert_eq!(lab.status()["serving"], 101);
    assert_the_journal_is_true(&lab, 101);
}

/// Asserts that every record names the generation of its writer, and that systemd logged nothing
/// unusual.
fn assert_the_journal_is_true(lab: &Lab, generations: usize) {
    let mut writers: BTreeMap<String, String> = BTreeMap::new();
    for record in lab.journal() {
        let message = text(&record, "MESSAGE");
        assert!(
            !message.contains("not our child") && !message.contains("Supervising process"),
            "{message}"
        );
        if text(&record, "SYSLOG_IDENTIFIER") != "handoffd"
            || text(&record, "_TRANSPORT") != "journal"
        {
            continue;
        }
        let (pid, generation) = (text(&record, "_PID"), text(&record, "HANDOFFD_GENERATION"));
        let known = writers.entry(generation.to_owned()).or_insert_with(|| pid.to_owned());
        assert_eq!(known, pid, "generation {generation} logged from two processes: {message}");
        let priority: u32 = text(&record, "PRIORITY").parse().unwrap();
        assert!(priority > 4, "a warning or an error: {message}");
        if text(&record, "EVENT") == Event::GenerationServing.id() {
            assert_ne!(text(&record, "HANDOFFD_DRAINING"), "");
        }
    }
    assert_eq!(writers.len(), generations);
}

pub(crate) fn a_failed_reload_reports_why_and_changes_nothing(system: System) {
    let mut lab = Lab::serving(system);
    let storm = traffic::storm(&lab, 1, 1);
    let main = lab.main_pid();
    let dies_in_the_bake =
        "(until $REAL status --control /run/handoffd/control --json | grep -q '\"probation\"'; do :; done
        kill -9 $$) & exec $REAL";
    let never_ready: [(&str, &str); 3] = [
        ("exit 7", "the new process ended before it was ready"),
        ("exec $REAL --listen nowhere", "bad address \"nowhere\""),
        ("exec sleep 1000", "not ready within 30 s"),
    ];
    for (script, reason) in never_ready {
        lab.deploy_script(script);
        assert_fails(&lab, main, reason);
    }
    lab.deploy(|release| std::fs::write(release.join("handoffd"), "no program").unwrap());
    assert_fails(&lab, main, "Permission denied");
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
    // A successor that dies takes its accepted connections with it, but no client is refused.
    let callers = traffic::callers(&lab, ADDRESS);
    lab.deploy_script(dies_in_the_bake);
    assert_fails(&lab, main, "ended after it was ready");
    assert_eq!(callers.finish().refused, 0);
    let storm = traffic::storm(&lab, 1, 1);
    lab.deploy_good();
    lab.systemctl(&["reload", "handoffd.service"]).well();
    assert_ne!(lab.main_pid(), main);
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
    assert_eq!(lab.show("NRestarts"), "0");
}

/// Asserts that a reload fails with exit code 1, and that the old generation is still the main
/// process and serves. The journal has the reason from the predecessor and from the command that
/// systemd ran.
fn assert_fails(lab: &Lab, main: u32, reason: &str) {
    let before = lab.journal().len();
    let reload = lab.systemctl(&["reload", "handoffd.service"]);
    assert_eq!(reload.code, 1, "{reason}: {reload:?}");
    assert_eq!((lab.show("ActiveState"), lab.main_pid()), ("active".into(), main), "{reason}");
    lab.inside(|| Client::once(ADDRESS, b"still served?").unwrap());
    let records = lab.journal().split_off(before);
    let by_daemon = |record: &Value| {
        text(record, "EVENT") == Event::HandoffFailed.id()
            && text(record, "HANDOFFD_REASON").contains(reason)
    };
    let by_command = |record: &Value| {
        let message = text(record, "MESSAGE");
        message.starts_with("handoffd: ") && message.contains(reason)
    };
    assert!(records.iter().any(by_daemon), "{reason:?} in {records:#?}");
    assert!(records.iter().any(by_command), "{reason:?} in {records:#?}");
    assert!(lab.show("StatusText").contains(reason), "{}", lab.show("StatusText"));
}

pub(crate) fn ready_means_accepting_and_systemd_watches_the_main_pid(system: System) {
    let lab = Lab::boot(system);
    // The daemon binds the address itself, so before READY no process listens on it.
    lab.bind_without_socket_unit(&format!("--listen {ADDRESS}"));
    lab.systemctl(&["start", "handoffd.service"]).well();
    lab.inside(|| Client::once(ADDRESS, b"at once").unwrap());
    for generation in 2..5 {
        lab.systemctl(&["reload", "handoffd.service"]).well();
        let main = lab.main_pid();
        assert_eq!(lab.status()["generations"][0]["pid"], main);
        assert_eq!(lab.status()["serving"], generation);
        assert!(lab.processes().contains(&main));
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.outer(main))).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
        assert_eq!(lab.outer(1).to_string(), parent, "the main process is not a child of systemd");
    }
    // systemd notices the death of the main process, whatever its generation.
    signal(lab.outer(lab.main_pid()), Signal::SIGKILL);
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    lab.inside(|| Client::once(ADDRESS, b"again").unwrap());
}

pub(crate) fn the_second_of_two_concurrent_reloads_must_be_retried(system: System) {
    let lab = Lab::boot(system);
    // The bake lasts longer than the commands that follow.
    lab.install(
        "handoffd.service.d/bake.conf",
        &format!("[Service]\nExecStart=\nExecStart={PROGRAM} --bake 5s\n"),
    );
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let first = lab.start(&[PROGRAM, "reload"]);
    lab.wait("a successor", |lab| lab.status()["generations"].as_array().unwrap().len() == 2);
    lab.run(&[PROGRAM, "reload"]).names(75, &["another handoff is in progress"]);
    // systemd's own reload fails as well: the running handoff notifies only the first caller.
    let reload = lab.systemctl(&["reload", "handoffd.service"]);
    assert_eq!(reload.code, 1, "{reload:?}");
    first.wait().well();
    // This operator disconnects; the handoff continues without it.
    let gone = lab.start(&[PROGRAM, "reload"]);
    lab.wait("a successor", |lab| lab.status()["generations"].as_array().unwrap().len() == 2);
    drop(gone);
    lab.wait("the handoff", |lab| lab.status()["serving"] == 3);
    lab.run(&[PROGRAM, "reload", "--expect-generation", "2"])
        .names(75, &["generation 3 serves, but the request expects generation 2"]);
    lab.run(&[PROGRAM, "reload", "--expect-generation", "3"]).well();
    assert_eq!(lab.status()["serving"], 4);
}

pub(crate) fn systemd_may_be_reexecuted_during_a_handoff(system: System) {
    let lab = Lab::serving(system);
    let storm = traffic::storm(&lab, 1, 1);
    for (serving, command) in [(2, "daemon-reload"), (3, "daemon-reexec")] {
        let reload = lab.start(&[PROGRAM, "reload"]);
        lab.wait("a successor", |lab| lab.status()["generations"].as_array().unwrap().len() == 2);
        lab.systemctl(&[command]).well();
        reload.wait().well();
        lab.wait("the main process", |lab| lab.status()["generations"][0]["pid"] == lab.main_pid());
        assert_eq!(lab.status()["serving"], serving);
        assert_eq!(lab.show("ActiveState"), "active");
    }
    // systemd also resumes its own reload command after it has executed itself again.
    let reload = lab.start(&["systemctl", "reload", "--no-block", "handoffd.service"]);
    reload.wait().well();
    lab.systemctl(&["daemon-reexec"]).well();
    lab.wait("the handoff", |lab| {
        lab.status()["serving"] == 4 && lab.show("ActiveState") == "active"
    });
    lab.systemctl(&["reload", "handoffd.service"]).well();
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
}
