//! The error matrix: system calls of a handoff fail, one in each run.
//!
//! A plan names a call, which of its occurrences fails, and an error that the kernel could return.
//! strace(1) makes the call fail in the real binary. After each plan, the operator was told the
//! true outcome and exactly one generation serves. No client was refused or reset, nothing is left
//! behind, and the next handoff works.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::kernel_errors::errors;
use crate::support::{Callers, Event, Line, Tracer, assert_becomes, exit_code, signal};

/// How many plans run at once. Each mostly waits.
const AT_ONCE: usize = 4;
const CALLERS: usize = 2;

/// The extent of the matrix that is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The first and the last call of each name, with one error each.
    #[allow(dead_code, reason = "the other tests run a sample")]
    Sample,
    /// Every call, with every error that fits.
    #[allow(dead_code, reason = "the test of errors runs all of it")]
    Whole,
}

/// A call that fails.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) call: String,
    /// Which occurrence of the call fails, and whether later ones fail as well, in strace's
    /// notation.
    pub(crate) when: String,
    pub(crate) error: &'static str,
}

impl Plan {
    pub(crate) fn inject(&self) -> String {
        format!("inject={}:error={}:when={}", self.call, self.error, self.when)
    }
}

/// Returns which occurrences of each call a trace has. Of the operations of `fcntl`, only the one
/// that duplicates a descriptor counts.
///
/// If several threads are traced, each line starts with its thread, and strace counts the calls of
/// each thread separately.
pub(crate) fn count(trace: &str) -> BTreeMap<String, BTreeSet<usize>> {
    let (mut seen, mut calls) =
        (BTreeMap::<_, usize>::new(), BTreeMap::<String, BTreeSet<usize>>::new());
    for line in trace.lines() {
        let without_thread = line.trim_start_matches(|one: char| one.is_ascii_digit());
        let thread = &line[..line.len() - without_thread.len()];
        let name = without_thread.trim_start().split('(').next().unwrap_or_default();
        if name.is_empty() || !name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_') {
            continue;
        }
        let number = seen.entry((thread, name)).or_default();
        *number += 1;
        let can_fail = match name {
            "fcntl" => line.contains("F_DUPFD"),
            _ => true,
        };
        if can_fail {
            calls.entry(name.to_owned()).or_default().insert(*number);
        }
    }
    calls
}

/// Returns a plan for each call of a trace and each error that it can return.
pub(crate) fn single_plans(trace: &str) -> Vec<Plan> {
    plans(&count(trace), Extent::Whole)
        .into_iter()
        .filter(|plan| !plan.when.contains(".."))
        .collect()
}

/// Returns a plan for each call of a trace, and for each name a plan in which ten calls fail.
pub(crate) fn plans(calls: &BTreeMap<String, BTreeSet<usize>>, extent: Extent) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (call, numbers) in calls {
        let errors = errors(call);
        let (numbers, errors) = match extent {
            Extent::Whole => (numbers.clone(), errors),
            Extent::Sample => {
                let ends = [numbers.first(), numbers.last()].into_iter().flatten().copied();
                (ends.collect(), &errors[..errors.len().min(1)])
            }
        };
        for error in errors {
            let single = numbers.iter().map(|number| number.to_string());
            let plan = |when| Plan { call: call.clone(), when, error };
            // Ten calls in a row fail, if all calls of that name can fail.
            let ten = (call != "fcntl").then(|| "1..10".to_owned());
            plans.extend(single.chain(ten).map(plan));
        }
    }
    plans
}

fn serve(flags: &[&str]) -> Line {
    let line = Line::start_with(|command, folder| {
        command.args(flags);
        command.args(["--listen", "127.0.0.1:0", "--bake", "0", "--workers", "2", "--control"]);
        command.arg(folder.join("control")).arg("--pid-file").arg(folder.join("pid"));
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

/// Returns the status that an operator gets.
pub(crate) fn status(line: &Line) -> Value {
    serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap()
}

/// Starts a handoff while a call fails, and checks every promise. Returns whether the plan hit a
/// call.
fn hand_over(line: &Line, finish: impl FnOnce() -> String) -> Result<bool, String> {
    let callers = Callers::start(&line.address(), CALLERS);
    let answered = line.asked(&["reload"]);
    let calls = callers.finish();
    assert_becomes(&true, || line.is_asleep());
    let trace = finish();
    let serving = status(line)["serving"].as_u64().unwrap();
    let told = if answered.code == 0 { 2 } else { 1 };
    if serving != told {
        return Err(format!("generation {serving} serves after {answered:?}\n{trace}"));
    }
    if answered.code != 0 && answered.err.lines().count() != 1 {
        return Err(format!("the reason is not exactly one line: {answered:?}"));
    }
    if calls.refused + calls.broken > 0 {
        return Err(format!("{calls:?} after {answered:?}\n{trace}"));
    }
    line.put_real();
    let next = line.asked(&["reload"]);
    if next.code != 0 {
        return Err(format!("the next handoff failed: {next:?}\n{trace}"));
    }
    let serving = status(line)["generations"][0]["pid"].as_u64().unwrap();
    // The init, if any, is the first process.
    let mut expected = vec![u64::from(line.first_pid()), serving];
    if !has_init(line) {
        expected.remove(0);
    }
    let sorted = |mut pids: Vec<u64>| {
        pids.sort_unstable();
        pids
    };
    let expected = sorted(expected);
    assert_becomes(&expected, || sorted(line.processes().into_iter().map(u64::from).collect()));
    line.assert_serves();
    let named = fs::read_to_string(line.folder().join("pid")).unwrap();
    if named.trim() != serving.to_string() {
        return Err(format!("the pid file names {named}, not {serving}\n{trace}"));
    }
    let mut left: Vec<_> =
        fs::read_dir(line.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| !name.to_str().unwrap().starts_with("trace"));
    left.sort();
    if left != ["control", "handoffd", "pid"] {
        return Err(format!("left behind: {left:?}"));
    }
    Ok(trace.contains("(INJECTED)"))
}

fn has_init(line: &Line) -> bool {
    let arguments =
        fs::read_to_string(format!("/proc/{}/cmdline", line.first_pid())).unwrap_or_default();
    arguments.split('\0').any(|argument| argument == "--init")
        && line.records().iter().all(|record| record.pid != line.first_pid())
}

/// Runs all plans, and returns how many of them hit a call.
pub(crate) fn run(
    who: &str,
    plans: &[Plan],
    one: impl Fn(&Plan) -> Result<bool, String> + Sync,
) -> usize {
    let (next, hit, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| one(plan))).unwrap_or_else(|panic| {
                            let text = panic.downcast_ref::<String>().map(String::as_str);
                            Err(text
                                .or_else(|| panic.downcast_ref::<&str>().copied())
                                .unwrap_or("a panic")
                                .to_owned())
                        });
                    match outcome {
                        Ok(was_hit) => {
                            hit.fetch_add(usize::from(was_hit), Ordering::Relaxed);
                        }
                        Err(why) => failed.lock().unwrap().push(format!("{plan:?}: {why}")),
                    }
                }
            });
        }
    });
    let (hit, failed) = (hit.into_inner(), failed.into_inner().unwrap());
    println!("{who}: {} plans, {} hit, {} ended well", plans.len(), hit + failed.len(), hit);
    assert!(failed.is_empty(), "{} plans failed:\n{}", failed.len(), failed.join("\n\n"));
    hit
}

/// Fails calls of the old generation.
pub(crate) fn old_generation(extent: Extent) {
    let line = serve(&[]);
    let tracer = Tracer::attach(&line, line.first_pid(), &[]);
    line.asked(&["reload"]).well();
    let plans = plans(&count(&tracer.wait()), extent);
    drop(line);
    let hit = run("the old generation", &plans, |plan| {
        let line = serve(&[]);
        let tracer = Tracer::attach(&line, line.first_pid(), &["-e", &plan.inject()]);
        hand_over(&line, || tracer.detach())
    });
    assert!(hit >= 20, "only {hit} plans hit");
}

/// Detaches from a process when its main thread is not inside a failing call, because strace would
/// leave it with ENOSYS. An ended process needs no detaching.
pub(crate) fn detach_when_asleep(pid: u32, tracer: Tracer) {
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert_becomes(&true, || {
        let stat = stat();
        stat.rsplit(") ").next().is_none_or(|rest| !rest.starts_with(['R', 't', 'T', 'D']))
    });
    tracer.detach();
}

/// Replaces the program by the daemon under strace. Returns the path of the trace.
pub(crate) fn put_traced(line: &Line, options: &str) -> PathBuf {
    let trace = line.folder().join("trace");
    line.put_script(&format!("exec strace -D -o '{}' {options} \"$REAL\" \"$@\"", trace.display()));
    trace
}

/// Fails calls of the new generation.
pub(crate) fn new_generation(extent: Extent) {
    let line = serve(&[]);
    let trace = put_traced(&line, "");
    line.asked(&["reload"]).well();
    line.wait_for(2, Event::GenerationServing);
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
    let plans = plans(&count(&fs::read_to_string(trace).unwrap()), extent);
    drop(line);
    let hit = run("the new generation", &plans, |plan| {
        let line = serve(&[]);
        let trace = put_traced(&line, &format!("-e {}", plan.inject()));
        hand_over(&line, || read(&trace))
    });
    assert!(hit >= 20, "only {hit} plans hit");
}

/// Fails calls of the process between the two forks and of the process that becomes the successor.
pub(crate) fn between_the_forks(extent: Extent) {
    let calls: &[(&str, &[&'static str])] = &[
        ("close_range", &["EMFILE", "ENOMEM"]),
        ("dup2", &["EMFILE", "EBUSY", "EINTR"]),
        ("execve", &["ENOMEM", "EIO", "EPERM", "EMFILE"]),
        ("clone", &["EAGAIN", "ENOMEM"]),
    ];
    let mut plans = Vec::new();
    for (call, errors) in calls {
        let errors = if extent == Extent::Whole { errors } else { &errors[..1] };
        let plan =
            |when: &str, error| Plan { call: (*call).to_owned(), when: when.to_owned(), error };
        plans.extend(errors.iter().flat_map(|error| [plan("1", error), plan("1..10", error)]));
    }
    let hit = run("the process between the forks", &plans, |plan| {
        let line = serve(&[]);
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &plan.inject()]);
        hand_over(&line, || tracer.detach())
    });
    assert!(hit >= 8, "only {hit} plans hit");
}

/// Fails calls of the init, the process that a container or a supervisor watches.
pub(crate) fn init(extent: Extent) {
    let calls: &[(&str, &[&'static str])] = &[
        ("poll", &["ENOMEM", "EINTR"]),
        ("recvmsg", &["ENOMEM", "EINTR"]),
        ("wait4", &["EINTR"]),
        ("read", &["EINTR"]),
    ];
    let numbers: &[&str] =
        if extent == Extent::Whole { &["1", "2", "3", "4", "5", "1..10"] } else { &["1", "1..10"] };
    let mut plans = Vec::new();
    for (call, errors) in calls {
        let plan =
            |when: &str, error| Plan { call: (*call).to_owned(), when: when.to_owned(), error };
        plans.extend(
            errors.iter().flat_map(|error| numbers.iter().map(move |when| plan(when, error))),
        );
    }
    let hit = run("the init", &plans, |plan| {
        let line = serve(&["--init"]);
        let tracer = Tracer::attach(&line, line.first_pid(), &["-e", &plan.inject()]);
        let was_hit = hand_over(&line, || tracer.detach())?;
        signal(line.first_pid(), Signal::SIGTERM);
        match exit_code(line.first_pid()) {
            0 => Ok(was_hit),
            code => Err(format!("the init ended with {code}\n{}", line.text())),
        }
    });
    assert!(hit >= 6, "only {hit} plans hit");
}

pub(crate) fn read(trace: &Path) -> String {
    fs::read_to_string(trace).unwrap_or_default()
}
