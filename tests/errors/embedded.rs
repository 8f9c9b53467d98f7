//! The matrix of errors for a server that embeds the library: the axum example, with all of its
//! threads.
//!
//! It has no control socket here. Its log says how a handoff ended, and its replies say which
//! generation serves.

use std::fs;
use std::io;

use nix::sys::signal::Signal;

use super::matrix::{self, Extent, Plan};
use crate::support::{
    Callers, Client, Event, Line, Record, Tracer, assert_becomes, example, signal,
};

const CALLERS: usize = 2;

/// Calls by which the runtime passes signals on to itself, over a pipe of its own: the kernel does
/// not fail them there, and tokio would lose the signal or panic. And those by which it looks at
/// the flags of a new connection: strace cannot tell them from those that make a descriptor.
const OF_THE_RUNTIME: [&str; 3] = ["fcntl", "recvfrom", "sendto"];

fn serve() -> Line {
    let line = Line::start_program(&example("axum"), |command, _| {
        command.arg("127.0.0.1:0");
    });
    line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
    line
}

/// A plan for each call of a trace that is not the runtime's own.
fn plans(trace: &str, extent: Extent) -> Vec<Plan> {
    let mut calls = matrix::count(trace);
    calls.retain(|name, _| !OF_THE_RUNTIME.contains(&name.as_str()));
    matrix::plans(&calls, extent)
}

fn get(client: &mut Client) -> io::Result<()> {
    client.get().map(drop)
}

/// Asks a process for a handoff. Returns the new process, or why there is none.
fn hand_over_from(line: &Line, pid: u32) -> Result<u32, String> {
    let is_outcome = |record: &Record| {
        record.is_event(Event::HandoffCommitted) || record.is_event(Event::HandoffFailed)
    };
    let mark = line.mark();
    signal(pid, Signal::SIGHUP);
    let outcome = line.wait_since(mark, "the outcome of the handoff", is_outcome);
    match outcome.field("successor_pid") {
        Some(successor) => Ok(successor.parse().unwrap()),
        None => Err(outcome.text),
    }
}

/// How many connections a plan may cost. A call on a connection that fails costs that one and no
/// other.
fn may_cost(plan: &Plan, trace: &str) -> usize {
    if plan.call == "epoll_ctl" { trace.matches("(INJECTED)").count() } else { 0 }
}

/// Asks for a handoff while something fails, and holds the server to the promise.
fn hand_over(line: &Line, plan: &Plan, finish: impl FnOnce() -> String) -> Result<bool, String> {
    let callers = Callers::start_with(&line.address(), CALLERS, get);
    let outcome = hand_over_from(line, line.first_pid());
    let calls = callers.finish();
    let serving = *outcome.as_ref().unwrap_or(&line.first_pid());
    assert_becomes(&true, || line.is_asleep());
    let trace = finish();
    if calls.refused > 0 || calls.broken > may_cost(plan, &trace) {
        return Err(format!("{calls:?} after {outcome:?}\n{trace}"));
    }
    line.put_link(example("axum"));
    let next =
        hand_over_from(line, serving).map_err(|why| format!("the next handoff: {why}\n{trace}"))?;
    assert_becomes(&vec![next], || line.processes());
    let expected = if outcome.is_ok() { 3 } else { 2 };
    match Client::connect(&line.address()).and_then(|mut client| client.get()) {
        Ok(generation) if generation == expected => Ok(trace.contains("(INJECTED)")),
        other => Err(format!("{other:?} instead of generation {expected}\n{trace}")),
    }
}

/// Has the tracer of the successor let go of it, or the tracer would follow the next one as well.
fn detach_from_successor(line: &Line) {
    let is_strace = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "strace\n")
    };
    let tracers = || line.processes().into_iter().filter(is_strace).collect::<Vec<_>>();
    for tracer in tracers() {
        signal(tracer, Signal::SIGINT);
    }
    assert_becomes(&vec![], tracers);
}

/// Calls of any thread of the old generation fail.
#[allow(
    dead_code,
    reason = "not in the sample: strace sometimes waits for ever for a process with threads"
)]
pub(crate) fn old_generation(extent: Extent) {
    let line = serve();
    let tracer = Tracer::attach(&line, line.first_pid(), &["-f"]);
    let successor = hand_over_from(&line, line.first_pid()).unwrap();
    assert_becomes(&vec![successor], || line.processes());
    let plans = plans(&tracer.detach(), extent);
    drop(line);
    let hit = matrix::run("an embedded server, the old generation", &plans, |plan| {
        let line = serve();
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &plan.inject()]);
        hand_over(&line, plan, || tracer.detach())
    });
    assert!(hit >= 20, "only {hit} plans hit");
}

/// Calls of any thread of the new generation fail.
pub(crate) fn new_generation(extent: Extent) {
    let put_traced = |line: &Line, options: &str| {
        let (trace, axum) = (line.folder().join("trace"), example("axum"));
        line.put_script(&format!(
            "exec strace -f -D -I 2 -o '{}' {options} '{}' \"$@\"",
            trace.display(),
            axum.display()
        ));
        trace
    };
    let line = serve();
    let trace = put_traced(&line, "");
    let successor = hand_over_from(&line, line.first_pid()).unwrap();
    signal(successor, Signal::SIGTERM);
    line.wait_for_end();
    let plans = plans(&matrix::read(&trace), extent);
    drop(line);
    let hit = matrix::run("an embedded server, the new generation", &plans, |plan| {
        let line = serve();
        let trace = put_traced(&line, &format!("-e {}", plan.inject()));
        hand_over(&line, plan, || {
            detach_from_successor(&line);
            matrix::read(&trace)
        })
    });
    assert!(hit >= 20, "only {hit} plans hit");
}
