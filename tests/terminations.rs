//! Tests of SIGTERM while two generations run: to the old one, to the new one and to both.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::signals::{BAKE, NO_BAKE, assert_finishes, assert_refuses, baking, draining, serve};
use crate::support::{Client, Event, Gate, Line, SLOW_DRAIN, exit_code, freeze, signal, thaw};

#[test]
fn a_terminate_while_a_successor_hangs_ends_both() {
    let line = serve(NO_BAKE);
    line.put_script("echo $$ >\"$FOLDER/pid\"; echo waiting >&2; exec sleep infinity");
    line.signal(1, Signal::SIGHUP);
    line.wait_for(0, "waiting");
    line.signal(1, Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    let pid = fs::read_to_string(line.folder().join("pid")).unwrap();
    assert_eq!(exit_code(pid.trim().parse().unwrap()), 128 + Signal::SIGTERM as i32);
    line.wait_for_end();
}

/// The successor ignores SIGTERM and starts afterwards. It still never serves.
#[test]
fn a_terminate_during_a_start_ends_both_generations() {
    let line = serve(NO_BAKE);
    let mut gate = Gate::new(&line);
    line.put_script(&format!("trap '' TERM; {}; exec \"$REAL\" \"$@\"", Gate::PASS));
    line.signal(1, Signal::SIGHUP);
    line.wait_for(0, "at the gate");
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted);
    gate.open();
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
    assert!(
        !line.records().iter().any(|record| record.is(2, Event::GenerationServing)),
        "{}",
        line.text()
    );
}

/// During the bake SIGTERM reaches the old generation. The successor takes over and serves.
#[test]
fn a_terminate_to_the_old_generation_ends_the_bake() {
    let (line, held) = baking();
    line.signal(1, Signal::SIGTERM);
    let pid = line.pid_of(2);
    line.wait_for(1, Event::HandoffHastened.with("successor_pid", pid));
    line.wait_for(2, Event::GenerationServing);
    line.assert_serves();
    assert_finishes(held);
    assert_eq!(line.exit_code(1), 0);
    line.put_script("exit 1");
    line.fail_to_hand_over_from(2);
    line.assert_serves();
}

/// The old generation keeps serving, and the next handoff works.
#[test]
fn a_terminate_to_the_successor_in_the_bake_rolls_back() {
    let (line, held) = baking();
    line.signal(2, Signal::SIGTERM);
    let failure = line.wait_for(1, Event::HandoffFailed);
    assert_eq!(failure.field("failure"), Some("told-to-stop"), "{failure:?}");
    assert_eq!(line.exit_code(2), 0);
    line.assert_serves();
    let mark = line.mark();
    line.signal(1, Signal::SIGHUP);
    let ready = line
        .wait_since(mark, "the next successor", |record| record.is(2, Event::GenerationAccepting));
    line.wait_since(mark, "readiness", |record| record.is(1, Event::SuccessorReady));
    line.signal(1, Signal::SIGTERM);
    line.wait_since(mark, "the takeover", |record| record.is(2, Event::GenerationServing));
    assert_finishes(held);
    assert_eq!(line.exit_code(1), 0);
    line.assert_serves();
    signal(ready.pid, Signal::SIGTERM);
    assert_eq!(exit_code(ready.pid), 0);
}

/// SIGTERM reaches the new generation while the old one drains. Neither accepts again.
#[test]
fn a_terminate_during_a_drain_ends_both_generations() {
    let (line, held) = draining();
    line.signal(2, Signal::SIGTERM);
    line.wait_for(1, Event::GenerationStep.with("input", "ServiceStopping"));
    // The old generation still drains. New clients must be refused, because no process will answer
    // them.
    assert_refuses(&line);
    assert_finishes(held);
    assert_eq!(line.exit_code(1), 0);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for_end();
    assert_eq!(line.count(Event::GenerationResumed), 0);
}

/// The order in which the generations receive SIGTERM does not matter.
#[test]
fn a_terminate_to_both_generations_leaves_nothing_behind() {
    for round in 0..12 {
        let line = Line::start_with(|command, folder| {
            command.arg("--listen").arg(folder.join("socket")).args(BAKE).args(SLOW_DRAIN);
            command.arg("--pid-file").arg(folder.join("pid"));
        });
        line.wait_for(1, Event::GenerationServing);
        line.signal(1, Signal::SIGHUP);
        line.wait_for(1, Event::SuccessorReady);
        let is_socket = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        };
        assert!(is_socket(&line.folder().join("socket")));
        let both = [line.pid_of(1), line.pid_of(2)];
        // Both receive SIGTERM before either has acted, so their messages to each other cross.
        for number in [Signal::SIGSTOP, Signal::SIGTERM, Signal::SIGCONT] {
            signal(both[round % 2], number);
            signal(both[1 - round % 2], number);
        }
        assert_eq!((line.exit_code(1), line.exit_code(2)), (0, 0));
        line.wait_for_end();
        for left in ["socket", "pid"] {
            assert!(
                !line.folder().join(left).exists(),
                "{left} is left behind in round {round}:\n{}",
                line.text()
            );
        }
    }
}

/// A rolled-back generation drains longer than the service lives. It must not keep the address.
#[test]
fn a_rolled_back_generation_gives_the_address_free() {
    let (line, held) = baking();
    // Only the second generation can accept this client. The drain waits for its first request.
    freeze(line.pid_of(1));
    let on_second = line.hold();
    thaw(line.pid_of(1));
    line.signal(2, Signal::SIGTERM);
    line.wait_for(1, Event::HandoffFailed);
    drop(held);
    line.signal(1, Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    assert_refuses(&line);
    assert_finishes(on_second);
    assert_eq!(line.exit_code(2), 0);
}

/// The clients that wait for a permit still wait after a rollback. The generation that was rolled
/// back must not accept them, because its limit does not count the connections of the other one.
#[test]
fn a_rolled_back_generation_leaves_the_waiting_clients() {
    let line = Line::serve(&[&BAKE[..], &["--max-connections", "1"]].concat());
    let mut first = Client::connect(&line.address()).unwrap();
    first.echo(b"first").unwrap();
    line.signal(1, Signal::SIGHUP);
    let next = line.wait_for(1, Event::SuccessorReady).field("successor_pid").unwrap().to_owned();
    let mut second = Client::connect(&line.address()).unwrap();
    second.echo(b"second").unwrap();
    let mut waiting = Client::connect(&line.address()).unwrap();
    waiting.write_all(b"waiting").unwrap();
    signal(next.parse().unwrap(), Signal::SIGTERM);
    line.wait_for(1, Event::HandoffFailed);
    assert_eq!(exit_code(next.parse().unwrap()), 0);
    assert_eq!(line.count(Event::GenerationEnded.with("ended", 1)), 1, "{}", line.text());
    drop(first);
    waiting.expect(b"waiting").unwrap();
}
