//! Test of a thousand handoffs: the last generation holds no more resources than the first.

use std::fs;
use std::path::Path;

use crate::support::{Client, Event, Handoffs, Line, Storm, assert_becomes, exit_code, signal};
use nix::sys::signal::Signal;

const HANDOFFS: u64 = 1_000;

/// Resources of a process that could grow from generation to generation.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    /// The kind of each descriptor, sorted.
    descriptors: Vec<String>,
    threads: usize,
    children: Vec<u32>,
}

impl Holdings {
    fn of(pid: u32) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let log = fs::read_link(format!("/proc/{pid}/fd/2")).ok();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            // A descriptor that was closed meanwhile is skipped.
            let (number, link) =
                (entry.file_name().into_string().unwrap(), fs::read_link(entry.path()).ok()?);
            // The caller of the tests may leave descriptors open. The first generation inherits
            // them, and no later one does. The log is not such a descriptor, even if the test holds
            // the other end of its pipe under the same number.
            let stray = !["0", "1", "2"].contains(&number.as_str())
                && Some(&link) != log.as_ref()
                && fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|ours| ours == link);
            // Only the kind counts: socket:[12345] is a socket.
            (!stray).then(|| link.to_str().unwrap().split(":[").next().unwrap().to_owned())
        });
        let mut descriptors: Vec<String> = descriptors.collect();
        descriptors.sort();
        Self { descriptors, threads: count("task"), children: children(pid) }
    }
}

/// Returns every child of the process, including zombies.
fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| status(*pid, "PPid:").is_some_and(|ppid| ppid == u64::from(parent)))
        .collect()
}

/// Returns a number from `/proc/PID/status`.
fn status(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

/// Returns the environment that the process started with, sorted, without the generation number.
fn environment(pid: u32, generation: u64) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = bytes
        .split(|byte| *byte == 0)
        .map(|variable| String::from_utf8_lossy(variable).into_owned());
    let ordinal = format!("HANDOFFD_GENERATION={generation}");
    let mut variables: Vec<String> =
        variables.filter(|variable| !variable.is_empty() && *variable != ordinal).collect();
    variables.sort();
    variables
}

#[test]
fn a_thousand_handoffs_leave_nothing_behind() {
    let line = Line::start_program(Path::new(env!("CARGO_BIN_EXE_handoffd")), |command, _| {
        command.args(["--log", "info,handoffd::handoff=debug"]);
        // A client may take long from its connection to its first request.
        command.args(["--listen", "127.0.0.1:0", "--bake", "0", "--first-request-grace", "60s"]);
    });
    line.wait_for(1, Event::GenerationServing);
    let (first, born) = (Holdings::of(line.first_pid()), environment(line.first_pid(), 1));
    let address = line.address();
    let mut handoffs = Handoffs::of(&line);
    let mut seen = 0;
    let mut hand_over = || {
        let old = handoffs.pid;
        handoffs.next();
        assert_eq!(exit_code(old), 0);
        let gone = Event::GenerationGone.with("ended", handoffs.generation - 1);
        line.wait_after(&mut seen, "the end of the old generation", |record| {
            record.is(handoffs.generation, gone.clone())
        });
        (handoffs.pid, handoffs.generation)
    };

    let (second_pid, second) = hand_over();
    let (environment_then, memory_then) =
        (environment(second_pid, second), status(second_pid, "VmRSS:").unwrap());
    // These are all the variables that a handoff adds to the environment of a successor.
    let added: Vec<&str> =
        environment_then.iter().filter(|one| !born.contains(one)).map(String::as_str).collect();
    assert_eq!(added, ["HANDOFFD_CHANNEL=2:4", "LISTEN_FDS=1"]);
    assert!(born.iter().all(|one| environment_then.contains(one)));

    let traffic = Storm::start(&address, 1, 4);
    for _ in 2..HANDOFFS {
        hand_over();
    }
    let tally = traffic.end();
    assert!(tally.losses.is_empty(), "{:?}", tally.losses);
    // The last generation has served no connection, like the first.
    let (last_pid, last) = hand_over();
    assert_eq!(last, HANDOFFS + 1);
    assert_eq!(line.count(Event::GenerationDied), 0);
    assert_becomes(&first, || Holdings::of(last_pid));
    assert_eq!(environment(last_pid, last), environment_then);
    let memory = status(last_pid, "VmRSS:").unwrap();
    assert!(memory < memory_then + memory_then / 4, "{memory_then} KiB have become {memory}");
    println!(
        "{HANDOFFS} handoffs: {first:?}, {memory_then} KiB, now {memory}; {} connections and {} requests on kept ones",
        tally.short, tally.persistent
    );

    Client::once(&address, b"still there").unwrap();
    signal(last_pid, Signal::SIGTERM);
    assert_eq!(exit_code(last_pid), 0);
    line.wait_for_end();
}
