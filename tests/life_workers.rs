//! Tests of a task that runs in only one generation at a time.
//!
//! The server is the example `life`, and a lock file is the witness.

use nix::sys::signal::Signal;

use crate::life::{addresses, bake, noted, replace, start, stop};
use crate::support::{Client, Event, Line, assert_becomes, example, exit_code, install, signal};

/// Checks that exactly one worker ran at any time, and that `pid` works now.
fn one_works(line: &Line, pid: u32) {
    assert_becomes(&Some(format!("begin {pid}")), || noted(line).pop());
    let folder = line.folder();
    assert!(!folder.join("overlap").exists(), "{:?}", noted(line));
    for pair in noted(line).windows(2) {
        // A worker that was killed has not said that it ended.
        let is_same = pair[0].split(' ').nth(1) == pair[1].split(' ').nth(1);
        assert!(pair[0].starts_with("begin") || !is_same || pair[1].starts_with("begin"));
    }
}

/// Returns how many times a worker moves. More by `HANDOFFS=1000 cargo test a_worker_never`.
#[expect(clippy::disallowed_methods, reason = "the caller of the tests chooses it")]
fn handoffs() -> u64 {
    std::env::var("HANDOFFS").map_or(30, |count| count.parse().unwrap())
}

/// Handoffs, handoffs that fail, and killed generations alternate.
#[test]
fn a_worker_never_runs_twice() {
    let line = start("alone");
    let (address, _) = addresses(&line);
    let mut pid = line.first_pid();
    for round in 0..handoffs() {
        one_works(&line, pid);
        match round % 3 {
            0 => pid = replace(&line, pid).unwrap(),
            1 => {
                install(line.folder(), "exit 1");
                replace(&line, pid).unwrap_err();
                line.put_link(example("life"));
            }
            _ => {
                // The connection keeps the old generation, which resumes when the new one dies.
                let mut held = Client::connect(&address).unwrap();
                held.echo(b"stay").unwrap();
                let next = replace(&line, pid).unwrap();
                one_works(&line, next);
                let mark = line.mark();
                signal(next, Signal::SIGKILL);
                line.wait_since(mark, "the old generation", |record| {
                    record.is_event(Event::GenerationResumed)
                });
                drop(held);
            }
        }
    }
    one_works(&line, pid);
    stop(&line, pid);
    assert_eq!(noted(&line).pop(), Some(format!("end {pid}")));
}

#[test]
fn a_worker_beside_a_service_moves_too() {
    let line = start("alone-service");
    one_works(&line, line.first_pid());
    let pid = replace(&line, line.first_pid()).unwrap();
    one_works(&line, pid);
    stop(&line, pid);
}

#[test]
fn a_worker_that_ignores_the_stop_prevents_the_handoff() {
    let line = start("alone-deaf");
    let failed = replace(&line, line.first_pid()).unwrap_err();
    assert_eq!(failed.field("failure"), Some("not-yielded"), "{failed:?}");
    assert!(Client::connect(&addresses(&line).0).unwrap().echo(b"served").is_ok());
    // At the end of the service, the task is dropped.
    stop(&line, line.first_pid());
    assert_eq!(line.count(Event::AloneDropped), 1);
}

/// While the process waits for the task, it answers the operator and acts on signals.
#[test]
fn a_server_that_waits_for_a_worker_still_listens() {
    let line = start("alone-long");
    let next = bake(&line);
    let pid = line.first_pid();
    // In the bake, the successor must not become active before the task has ended.
    signal(pid, Signal::SIGTERM);
    line.asked(&["status"]).well();
    assert_eq!(line.count(Event::HandoffCommitted), 0);
    signal(pid, Signal::SIGQUIT);
    line.wait_for_count(2, Event::GenerationServing);
    assert_eq!(exit_code(pid), 0);
    // At the end of the service, the process has no connection, but waits for the task.
    signal(next, Signal::SIGTERM);
    line.wait_for_count(2, Event::DrainStarted);
    line.asked(&["status"]).well();
    signal(next, Signal::SIGQUIT);
    assert_eq!(exit_code(next), 0);
    line.wait_for_end();
    assert_eq!(line.count(Event::AloneDropped), 2);
}

/// The successor becomes active only after the task of the old generation was dropped.
#[test]
fn a_cut_in_the_bake_drops_a_worker_before_the_commit() {
    let line = start("alone-long");
    let next = bake(&line);
    signal(line.first_pid(), Signal::SIGQUIT);
    assert_eq!(exit_code(line.first_pid()), 0);
    let records = line.records();
    let first = |event| records.iter().position(|record| record.is_event(event)).unwrap();
    assert!(first(Event::AloneDropped) < first(Event::HandoffCommitted), "{}", line.text());
    signal(next, Signal::SIGQUIT);
    line.wait_for_end();
}

/// The successor dies while the old generation, which was told to stop, waits for its task.
#[test]
fn a_stop_that_waits_for_a_worker_outlives_the_handoff() {
    let line = start("alone-long");
    let next = bake(&line);
    signal(line.first_pid(), Signal::SIGTERM);
    line.asked(&["status"]).well();
    signal(next, Signal::SIGKILL);
    line.wait_for_count(1, Event::DrainStarted.with("why", "stopping"));
    signal(line.first_pid(), Signal::SIGQUIT);
    line.wait_for_end();
}

/// The task needs longer than it has, so the handoff fails. Then the task begins again.
#[test]
fn a_slow_worker_begins_again_after_the_handoff_has_failed() {
    let line = start("alone-slow");
    let pid = line.first_pid();
    one_works(&line, pid);
    replace(&line, pid).unwrap_err();
    let again = [format!("begin {pid}"), format!("end {pid}"), format!("begin {pid}")];
    assert_becomes(&again.to_vec(), || noted(&line));
    stop(&line, pid);
}
