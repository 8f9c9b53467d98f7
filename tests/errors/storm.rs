//! Thousands of handoffs under load with a fault in every tenth: a system call of either side
//! fails, or one side is killed. No client is refused. Only connections of a killed process are
//! reset. Every exit code is true, and nothing is left behind at the end.
//!
//! The successor is killed before it is ready, the predecessor after the successor has started to
//! accept. A service whose only process is killed is down, and its restart is the service manager's
//! task.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::matrix::{self, Plan};
use crate::support::{
    Event, Line, REAL, Storm, Tally, Tracer, assert_becomes, kinds, signal, threads,
};

/// How many clients reconnect for each request, and how many keep their connection.
const SHORT: usize = 2;
const PERSISTENT: usize = 6;

/// What happens to the connections of an old generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnHandoff {
    Drain,
    Carry,
}

/// The fault of a handoff.
#[derive(Clone, Debug)]
enum Fault {
    None,
    /// A call of the old generation fails.
    Old(Plan),
    /// A call of the new generation fails.
    New(Plan),
    /// The old generation is killed when an event is in the log. The number is the distance from
    /// the old generation to the generation that logs the event.
    KillOld(u64, Event),
    /// The new generation is killed at a call before it is ready.
    KillNew(Plan),
}

/// Pseudo-random numbers, the same for the same seed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn choose<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The calls of a handoff without a fault.
struct Calls {
    old: Vec<Plan>,
    new: Vec<Plan>,
    new_before_ready: Vec<Plan>,
}

impl Calls {
    fn fault(&self, random: &mut Random) -> Fault {
        if random.below(10) > 0 {
            return Fault::None;
        }
        match random.below(4) {
            0 => Fault::Old(random.choose(&self.old).clone()),
            1 => Fault::New(random.choose(&self.new).clone()),
            2 => {
                let records = [
                    (1, Event::GenerationAccepting),
                    (0, Event::SuccessorReady),
                    (0, Event::HandoffCommitted),
                    (0, Event::DrainStarted),
                ];
                let (after, event) = *random.choose(&records);
                Fault::KillOld(after, event)
            }
            _ => Fault::KillNew(random.choose(&self.new_before_ready).clone()),
        }
    }
}

fn serve(on_handoff: OnHandoff) -> Line {
    let line = Line::start_program(Path::new(REAL), |command, folder| {
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--bake",
            "0",
            "--workers",
            "2",
            "--first-request-grace",
            "60s",
        ]);
        command
            .arg("--control")
            .arg(folder.join("control"))
            .arg("--pid-file")
            .arg(folder.join("pid"));
        if on_handoff == OnHandoff::Drain {
            command.arg("--no-carry");
        }
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

fn calls(on_handoff: OnHandoff) -> Calls {
    let old = {
        let line = serve(on_handoff);
        let tracer = Tracer::attach(&line, line.first_pid(), &[]);
        line.asked(&["reload"]).well();
        tracer.wait()
    };
    let new = {
        let line = serve(on_handoff);
        let trace = matrix::put_traced(&line, "");
        line.asked(&["reload"]).well();
        line.wait_for(2, Event::GenerationServing);
        line.signal(2, Signal::SIGTERM);
        line.wait_for_end();
        fs::read_to_string(trace).unwrap()
    };
    let before_ready = new.split("KIND=ready").next().unwrap();
    // The first half: a start may need fewer calls than the traced one, and a later call would kill
    // the generation after it has taken over, at any time.
    let kill = |(call, numbers): (String, BTreeSet<usize>)| {
        let first_half = numbers.len().div_ceil(2);
        numbers.into_iter().take(first_half).map(move |number| Plan {
            call: call.clone(),
            when: number.to_string(),
            error: "",
        })
    };
    Calls {
        old: matrix::single_plans(&old),
        new: matrix::single_plans(&new),
        new_before_ready: matrix::count(before_ready).into_iter().flat_map(kill).collect(),
    }
}

/// The path by which the active generation was executed, and its successor will be.
///
/// A script that executes the daemon under strace changes this path to that of the executed file.
struct Program {
    path: PathBuf,
    made: usize,
}

impl Program {
    fn of(line: &Line) -> Self {
        Self { path: line.program(), made: 0 }
    }

    /// Makes the next successor run under strace. Returns the path that its own successor will
    /// have.
    fn put_traced(&mut self, line: &Line, options: &str) -> PathBuf {
        self.made += 1;
        let next = line.folder().join(format!("program-{}", self.made));
        symlink(REAL, &next).unwrap();
        let trace = line.folder().join("trace");
        line.put_script(&format!(
            "exec strace -D -o '{}' {options} '{}' \"$@\"",
            trace.display(),
            next.display()
        ));
        if self.path != line.program() {
            fs::rename(line.program(), &self.path).unwrap();
        }
        next
    }

    /// Replaces the script by the daemon.
    fn put_real(&self, line: &Line) {
        line.put_real();
        if self.path != line.program() {
            fs::rename(line.program(), &self.path).unwrap();
        }
    }
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    !status.lines().any(|line| line == "TracerPid:\t0")
}

/// Returns the resources of a process that could grow.
fn holdings(pid: u32) -> (BTreeMap<String, usize>, usize) {
    (kinds(pid), threads(pid))
}

fn files(line: &Line) -> Vec<String> {
    let names = fs::read_dir(line.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ours = |name: &String| {
        ["trace", "program-", "handoffd"].iter().any(|prefix| name.starts_with(prefix))
    };
    let mut names: Vec<_> = names.filter(|name| !ours(name)).collect();
    names.sort();
    names
}

/// Runs the handoffs, and prints a summary.
pub(crate) fn run(on_handoff: OnHandoff, handoffs: usize, seed: u64) {
    let calls = calls(on_handoff);
    let line = serve(on_handoff);
    line.asked(&["reload"]).well();
    let (mut generation, mut seen) = (2, 0);
    let serves = |generation: u64, seen: &mut usize| {
        let what = format!("generation {generation} serves");
        line.wait_after(seen, &what, |record| record.is(generation, Event::GenerationServing)).pid
    };
    let mut pid = serves(2, &mut seen);
    assert_becomes(&1, || line.processes().len());
    // When asleep, the process has also closed its channel to its predecessor.
    assert_becomes(&true, || line.is_asleep());
    let before = (holdings(pid), files(&line));
    let storm = Storm::start(&line.address(), SHORT, PERSISTENT);
    let mut program = Program::of(&line);
    let (mut random, mut counts, mut kills) =
        (Random(seed), BTreeMap::<&str, [usize; 2]>::new(), 0);
    for number in 0..handoffs {
        let mut fault = calls.fault(&mut random);
        // strace stays attached to a new generation for its whole life, and a process can have only
        // one tracer.
        if matches!(fault, Fault::Old(_)) && is_traced(pid) {
            fault = Fault::None;
        }
        let context = || format!("handoff {number}, seed {seed}, {fault:?}\n{}", last_lines(&line));
        let (mut tracer, mut next) = (None, None);
        match &fault {
            Fault::New(plan) => {
                next = Some(program.put_traced(&line, &format!("-e {}", plan.inject())))
            }
            Fault::KillNew(Plan { call, when, .. }) => {
                next = Some(
                    program
                        .put_traced(&line, &format!("-e inject={call}:signal=SIGKILL:when={when}")),
                );
            }
            Fault::Old(plan) => tracer = Some(Tracer::attach(&line, pid, &["-e", &plan.inject()])),
            Fault::None | Fault::KillOld(..) => {}
        }
        let mark = line.mark();
        let operator = line.ask(&["reload"]);
        if let Fault::KillOld(after, event) = fault {
            line.wait_since(mark, event.id(), |record| record.is(generation + after, event));
            signal(pid, Signal::SIGKILL);
        }
        let answered = operator.wait();
        if let Some(tracer) = tracer {
            matrix::detach_when_asleep(pid, tracer);
        }
        if let Some(next) = next {
            program.put_real(&line);
            if answered.code == 0 {
                program.path = next;
            }
        }
        let status = line.asked(&["status", "--json"]);
        assert_eq!(status.code, 0, "{status:?} after {answered:?}, {}", context());
        let status: Value = serde_json::from_str(&status.out).unwrap();
        let serving = status["serving"].as_u64().unwrap();
        let is_unknown = matches!(fault, Fault::KillOld(..)) && answered.code == 75;
        // A killed generation may not have told the operator that the handoff had begun.
        let told = if is_unknown { serving } else { generation + u64::from(answered.code == 0) };
        assert_eq!(serving, told, "{answered:?} after {}", context());
        let (name, was_killed) = match fault {
            Fault::None => ("none", false),
            Fault::Old(_) => ("a call of the old generation", false),
            Fault::New(_) => ("a call of the new generation", false),
            Fault::KillOld(..) => ("the old generation is killed", true),
            // The new generation has no client, because it is killed before it is ready.
            Fault::KillNew(_) => ("the new generation is killed", false),
        };
        assert!(name != "none" || answered.code == 0, "{answered:?} after {}", context());
        kills += usize::from(was_killed);
        counts.entry(name).or_default()[usize::from(answered.code != 0)] += 1;
        if serving > generation {
            generation += 1;
            pid = serves(generation, &mut seen);
        }
    }
    let tally = storm.end();
    assert_becomes(&vec![pid], || line.processes());
    assert_becomes(&before.0, || holdings(pid));
    // The next generation removes the draft of the pid file that a killed process left.
    line.asked(&["reload"]).well();
    assert_becomes(&before.1, || files(&line));
    println!(
        "{on_handoff:?}, {handoffs} handoffs, seed {seed}: {} short, {} requests",
        tally.short, tally.persistent
    );
    println!("  {} closed between requests, {} crossed a close", tally.closed, tally.crossed);
    for (fault, [done, failed]) in &counts {
        println!("  {fault}: {done} handed over, {failed} failed");
    }
    // A test whose faults hit nothing proves nothing.
    assert!(
        counts.get("the new generation is killed").is_some_and(|[_, failed]| *failed > 0),
        "{counts:?}"
    );
    println!("  losses with {kills} kills: {:?}", tally.losses);
    assert_losses(&tally, kills, &line);
}

/// Asserts that no client was refused or served wrongly, and that only killed processes lost
/// connections.
fn assert_losses(tally: &Tally, kills: usize, line: &Line) {
    let lost = |kind: &str| {
        tally
            .losses
            .iter()
            .filter(|(name, _)| name.starts_with(kind))
            .map(|(_, count)| *count)
            .sum::<u64>()
    };
    let explained = lost("reset: ") + lost("unanswered: ");
    assert_eq!(
        tally.losses.values().sum::<u64>(),
        explained,
        "{:?}\n{}",
        tally.losses,
        last_lines(line)
    );
    let held = u64::try_from(kills * (SHORT + PERSISTENT)).unwrap();
    assert!(explained <= held, "{:?} with {kills} kills", tally.losses);
    assert!(tally.short > 0 && tally.persistent > 0, "{tally:?}");
}

fn last_lines(line: &Line) -> String {
    let text = line.text();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
