//! Kills at any instant of a handoff: the other generation serves all clients.
//!
//! An instant is a log record of either generation, or a system call of a generation's main thread,
//! which performs the whole handoff. strace kills the process at each call in turn, before the
//! kernel executes the call. A handoff without a kill shows which calls exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::{Callers, Calls, Event, Line, Record, SLOW_DRAIN, Tracer, exit_code, signal};

const CALLERS: usize = 2;
const KILLED: i32 = 128 + Signal::SIGKILL as i32;

/// A system call and its ordinal among the calls of that name.
type Instant = (String, usize);

/// Records of a handoff: the writing generation, its event, and for a step the resulting state.
const RECORDS: [(u64, Event, Option<&str>); 10] = [
    (1, Event::SignalReceived, None),
    (1, Event::HandoffStarted, None),
    (2, Event::ListenerAdopted, None),
    (2, Event::GenerationAccepting, None),
    (2, Event::GenerationStep, Some("probation")),
    (1, Event::SuccessorReady, None),
    (1, Event::GenerationStep, Some("baking")),
    (1, Event::HandoffCommitted, None),
    (1, Event::DrainStarted, None),
    (2, Event::GenerationServing, None),
];

/// Returns whether `record` is the one in this row of [`RECORDS`].
fn is_row(record: &Record, (by, event, to): (u64, Event, Option<&str>)) -> bool {
    record.is(by, event) && to.is_none_or(|to| record.field("to") == Some(to))
}

fn serve() -> Line {
    let line = Line::start_with(|command, folder| {
        command
            .args(["--listen", "127.0.0.1:0", "--bake", "0", "--pid-file"])
            .arg(folder.join("pid"))
            .args(SLOW_DRAIN);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// Asserts that `head` is the only generation left: it serves, the pid file names it, and it can
/// hand over.
fn assert_is_head(line: &Line, head: &Record, what: &str) {
    let named = fs::read_to_string(line.folder().join("pid")).unwrap();
    assert_eq!(named.trim(), head.pid.to_string(), "the pid file, after {what}\n{}", line.text());
    line.assert_serves();
    line.put_real();
    let mark = line.mark();
    signal(head.pid, Signal::SIGHUP);
    line.wait_since(mark, &format!("a handoff, after {what}"), |record| {
        record.is(head.generation + 1, Event::GenerationServing)
    });
    line.assert_serves();
}

/// Asserts that no call was refused and that at most one call of each client was broken by the
/// kill.
fn assert_unhurt(calls: Calls, what: &str, line: &Line) {
    assert!(
        calls.refused == 0 && calls.broken <= CALLERS,
        "{calls:?} after {what}\n{}",
        line.text()
    );
}

/// Waits until the first generation is active again after the second one was killed. A client keeps
/// the first one alive. Returns a record for it.
fn recalled(line: &Line, mark: usize, what: &str) -> Record {
    let what = format!("a failed handoff, after {what}");
    let lost = line.wait_since(mark, &what, |record| {
        record.is(1, Event::GenerationStep.with("input", "SuccessorLost"))
    });
    line.wait_since(mark, &what, |record| record.is(1, Event::HandoffFailed));
    if lost.text.contains("BecomeActive") {
        line.wait_since(mark, &what, |record| record.is(1, Event::GenerationServing));
    }
    Record { generation: 1, pid: line.first_pid(), event: None, text: String::new() }
}

#[test]
fn a_predecessor_may_be_killed_at_any_log_record() {
    for row in RECORDS.into_iter().skip(1) {
        let what = format!("{row:?}");
        let line = serve();
        let callers = Callers::start(&line.address(), CALLERS);
        line.signal(1, Signal::SIGHUP);
        line.wait(&what, |record| is_row(record, row));
        signal(line.first_pid(), Signal::SIGKILL);
        let end = exit_code(line.first_pid());
        // The callers may have held its last connections, so it may have ended before the signal
        // arrived.
        assert!(end == KILLED || end == 0, "{end}");
        // The predecessor logs the start before it forks.
        match line
            .wait_since_or_end(0, "the successor", |record| record.is(2, Event::GenerationServing))
        {
            Some(head) => {
                assert_unhurt(callers.finish(), &what, &line);
                assert_is_head(&line, &head, &what);
            }
            None => assert_eq!(row.1, Event::HandoffStarted, "{}", line.text()),
        }
    }
}

#[test]
fn a_successor_may_be_killed_at_any_log_record() {
    for row in RECORDS.into_iter().skip(2) {
        let what = format!("{row:?}");
        let line = serve();
        let held = line.hold();
        let callers = Callers::start(&line.address(), CALLERS);
        let mark = line.mark();
        line.signal(1, Signal::SIGHUP);
        line.wait_since(mark, &what, |record| is_row(record, row));
        let successor = line.wait("the successor", |record| record.generation == 2).pid;
        signal(successor, Signal::SIGKILL);
        assert_eq!(exit_code(successor), KILLED);
        let head = recalled(&line, mark, &what);
        assert_unhurt(callers.finish(), &what, &line);
        drop(held);
        assert_is_head(&line, &head, &what);
    }
}

/// Returns how often each system call occurs in a trace.
fn count(trace: &str) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for line in trace.lines() {
        let name = line.split('(').next().unwrap_or_default();
        if !name.is_empty() && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_') {
            *calls.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    calls
}

/// Returns up to `most` instants for each call: the first ones and the last.
fn instants(calls: &BTreeMap<String, usize>, most: usize) -> Vec<Instant> {
    let chosen = |(name, count): (&String, &usize)| {
        let head = 1..=(*count).min(most - 1);
        let tail = (*count >= most).then_some(*count);
        head.chain(tail).map(|number| (name.clone(), number)).collect::<Vec<_>>()
    };
    calls.iter().flat_map(chosen).collect()
}

fn kill_at((call, number): &Instant) -> String {
    format!("inject={call}:signal=SIGKILL:when={number}")
}

#[test]
fn a_predecessor_may_be_killed_at_any_system_call() {
    let line = serve();
    let tracer = Tracer::attach(&line, line.first_pid(), &[]);
    line.hand_over_from(1);
    let calls = count(&tracer.wait());
    drop(line);
    assert!(calls.contains_key("clone") && calls.contains_key("sendto"), "{calls:?}");
    let mut survived = 0;
    for instant in instants(&calls, usize::MAX) {
        let what = format!("{instant:?}");
        let line = serve();
        let tracer = Tracer::attach(&line, line.first_pid(), &["-e", &kill_at(&instant)]);
        let callers = Callers::start(&line.address(), CALLERS);
        // Its main thread may already have been killed at an earlier call.
        line.signal(1, Signal::SIGHUP);
        let head = line
            .wait_since_or_end(0, "the successor", |record| record.is(2, Event::GenerationServing));
        let trace = tracer.wait();
        let calls = callers.finish();
        let has_forked =
            trace.lines().any(|line| line.starts_with("clone(") && !line.ends_with('?'));
        assert_eq!(head.is_some(), has_forked, "{what}\n{trace}\n{}", line.text());
        if let Some(head) = head {
            assert_unhurt(calls, &what, &line);
            assert_is_head(&line, &head, &what);
            survived += 1;
        }
    }
    assert!(survived >= 20, "{survived}");
}

#[test]
fn a_successor_may_be_killed_between_fork_and_exec() {
    // The daemon itself never makes these calls. The first close_range belongs to the intermediate
    // process, the others to the process that becomes the successor. Not every architecture has
    // dup2.
    let calls: &[&str] =
        if cfg!(target_arch = "x86_64") { &["close_range", "dup2", "execve"] } else { &["execve"] };
    for call in calls {
        let line = serve();
        let inject = format!("inject={call}:signal=SIGKILL:when=1");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        let callers = Callers::start(&line.address(), CALLERS);
        let failure = line.fail_to_hand_over_from(1);
        assert_eq!(failure.field("failure"), Some("ended-early"), "{call}: {failure:?}");
        let calls = callers.finish();
        assert_eq!((calls.refused, calls.broken), (0, 0), "{call}");
        assert!(tracer.detach().contains("+++ killed by SIGKILL"), "{call}");
        assert_is_head(
            &line,
            &Record { generation: 1, pid: line.first_pid(), event: None, text: String::new() },
            call,
        );
    }
}

/// Makes the next generation run under strace. The tracer is its grandchild, so the daemon keeps
/// its process id.
fn put_traced(line: &Line, trace: &Path, options: &str) {
    line.put_script(&format!("exec strace -D -o '{}' {options} \"$REAL\" \"$@\"", trace.display()));
}

#[test]
fn a_successor_may_be_killed_at_any_system_call() {
    let line = serve();
    let trace = line.folder().join("trace");
    put_traced(&line, &trace, "");
    line.hand_over_from(1);
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
    let calls = count(&fs::read_to_string(trace).unwrap());
    drop(line);
    // The first exec is strace's own, which the daemon's exec depends on.
    assert!(calls.contains_key("sendto") && calls["execve"] == 1, "{calls:?}");
    for instant in instants(&calls, 4) {
        let what = format!("{instant:?}");
        let line = serve();
        let held = line.hold();
        put_traced(&line, Path::new("/dev/null"), &format!("-e {}", kill_at(&instant)));
        let callers = Callers::start(&line.address(), CALLERS);
        let mark = line.mark();
        line.signal(1, Signal::SIGHUP);
        let done = |record: &Record| {
            record.is(1, Event::HandoffFailed) || record.is(2, Event::GenerationServing)
        };
        let came = line.wait_since(mark, &format!("an outcome, after {what}"), done);
        // A successor that survives the calls of the handoff is killed at a later call, or now.
        if came.generation == 2 {
            signal(came.pid, Signal::SIGKILL);
        }
        let head = recalled(&line, mark, &what);
        assert_unhurt(callers.finish(), &what, &line);
        drop(held);
        assert_is_head(&line, &head, &what);
    }
}
