//! The error matrix for a server that embeds the library: the example with its own accept loop,
//! with all its threads.
//!
//! The server has no control socket here. Its log says how a handoff ended, and its replies say
//! which generation serves.

use std::fs;
use std::io;

use nix::sys::signal::Signal;

use super::matrix::{self, Extent, Plan};
use crate::support::{
    Callers, Client, Event, Line, Record, Tracer, assert_becomes, example, signal,
};

const CALLERS: usize = 2;

/// Calls that the matrix leaves out. With `recvfrom` and `sendto` the runtime forwards signals to
/// itself over a pipe. The kernel does not fail them there, and tokio would lose the signal or
/// panic. With `fcntl` it reads the flags of a new connection. strace cannot distinguish that use
/// from the duplication of a descriptor.
const OF_THE_RUNTIME: [&str; 3] = ["fcntl", "recvfrom", "sendto"];

fn serve() -> Line {
    let line = Line::start_program(&example("http"), |command, _| {
        command.arg("127.0.0.1:0");
    });
    line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
    line
}

/// Returns a plan for each call of a trace that is not in [`OF_THE_RUNTIME`].
fn plans(trace: &str, extent: Extent) -> Vec<Plan> {
    let mut calls = matrix::count(trace);
    calls.retain(|name, _| !OF_THE_RUNTIME.contains(&name.as_str()));
    matrix::plans(&calls, extent)
}

fn get(client: &mut Client) -> io::Result<()> {
    client.get().map(drop)
}

/// Starts a handoff by a signal. Returns the new process, or the reason for the failure.
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

/// Returns how many connections a plan may cost. A failing call on a connection costs only that
/// connection.
fn may_cost(plan: &Plan, trace: &str) -> usize {
    if plan.call == "epoll_ctl" { trace.matches("(INJECTED)").count() } else { 0 }
}

/// Starts a handoff while a call fails, and checks every promise. Returns whether the plan hit a
/// call.
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
    line.put_link(example("http"));
    let next = hand_over_from(line, serving)
        .map_err(|why| format!("the next handoff failed: {why}\n{trace}"))?;
    assert_becomes(&vec![next], || line.processes());
    let expected = if outcome.is_ok() { 3 } else { 2 };
    match Client::connect(&line.address()).and_then(|mut client| client.get()) {
        Ok(generation) if generation == expected => Ok(trace.contains("(INJECTED)")),
        other => Err(format!("{other:?} instead of generation {expected}\n{trace}")),
    }
}

/// Detaches from the successor, because strace would follow the next process as well. See
/// [`Tracer::detach`].
fn detach_from_successor(line: &Line) {
    let is_strace = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "strace\n")
    };
    let tracers = || line.processes().into_iter().filter(is_strace).collect::<Vec<_>>();
    for tracer in tracers() {
        signal(tracer, Signal::SIGKILL);
    }
    assert_becomes(&vec![], tracers);
}

/// Fails calls of every thread of the old generation.
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

/// Fails calls of every thread of the new generation.
pub(crate) fn new_generation(extent: Extent) {
    let put_traced = |line: &Line, options: &str| {
        let (trace, server) = (line.folder().join("trace"), example("http"));
        line.put_script(&format!(
            "exec strace -f -D -I 2 -o '{}' {options} '{}' \"$@\"",
            trace.display(),
            server.display()
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
