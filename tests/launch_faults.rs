//! Failed system calls in a launch: the old generation logs which call failed and keeps
//! serving. The next handoff succeeds. strace makes the calls fail.

use crate::launch::assert_recovers;
use crate::support::{Line, Record, Tracer};

/// Asserts that a handoff has failed in this way, with this error of the kernel.
fn assert_failure(failure: &Record, kind: &str, error: &str) {
    assert_eq!(failure.field("failure"), Some(kind), "{failure:?}");
    assert!(failure.text.contains(error), "{failure:?}");
}

#[test]
fn a_failed_fork_is_reported_and_the_next_handoff_works() {
    let line = Line::serve(&["--bake", "0"]);
    // strace counts calls for each process: first the daemon's fork fails, later the intermediate
    // process's.
    let inject = "inject=clone,clone3,fork,vfork:error=EAGAIN:when=1";
    let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", inject]);
    for _ in ["the first fork", "the second fork"] {
        let failure = line.fail_to_hand_over_from(1);
        assert_failure(&failure, "fork", "Resource temporarily unavailable");
        line.assert_serves();
    }
    let seen = tracer.detach();
    let failed = seen
        .lines()
        .filter(|line| line.contains("(INJECTED)"))
        .filter_map(|line| line.split(' ').next());
    let by: Vec<&str> = failed.collect();
    assert!(by.len() == 2 && by[0] != by[1], "{seen}");
    assert_recovers(&line);
}

#[test]
fn an_exec_without_memory_is_reported_as_such() {
    let line = Line::serve(&["--bake", "0"]);
    let tracer =
        Tracer::attach(&line, line.first_pid(), &["-f", "-e", "inject=execve:error=ENOMEM"]);
    let failure = line.fail_to_hand_over_from(1);
    assert_failure(&failure, "exec", "Cannot allocate memory");
    line.assert_serves();
    assert_eq!(tracer.detach().matches("(INJECTED)").count(), 1);
    assert_recovers(&line);
}

#[test]
fn a_failed_descriptor_setup_does_not_blame_the_program() {
    let line = Line::serve(&["--bake", "0"]);
    let tracer = Tracer::attach(
        &line,
        line.first_pid(),
        &["-f", "-e", "inject=dup2,dup3:error=EMFILE:when=1"],
    );
    // strace counts calls for each process: first the daemon's own call fails, then the child's.
    for _ in ["the daemon", "the child"] {
        let failure = line.fail_to_hand_over_from(1);
        assert_failure(&failure, "fork", "Too many open files");
        line.assert_serves();
    }
    tracer.detach();
    assert_recovers(&line);
}

/// The predecessor cannot create the channel to its successor, because no descriptor is free.
#[test]
fn a_failed_channel_is_reported_and_the_next_handoff_works() {
    let line = Line::serve(&["--bake", "0"]);
    let tracer = Tracer::attach(&line, line.first_pid(), &["-e", "inject=socketpair:error=EMFILE"]);
    let failure = line.fail_to_hand_over_from(1);
    assert_failure(&failure, "fork", "Too many open files");
    tracer.detach();
    assert_recovers(&line);
}

/// Not every architecture has dup2: elsewhere the call is dup3, which the predecessor makes too.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_successor_without_room_for_its_listeners_reports_it() {
    let line = Line::serve(&["--listen", "127.0.0.1:0"]);
    let tracer =
        Tracer::attach(&line, line.first_pid(), &["-f", "-e", "inject=dup2:error=EMFILE:when=2"]);
    let failure = line.fail_to_hand_over_from(1);
    assert_failure(&failure, "fork", "Too many open files");
    assert_eq!(tracer.detach().matches("(INJECTED)").count(), 1);
    assert_recovers(&line);
}
