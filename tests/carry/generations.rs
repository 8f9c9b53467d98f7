//! A daemon that carries its connections, and its handoffs from generation to generation.
//!
//! A handoff is over when the new generation is active and the old process has exited with 0. All
//! its connections must be served elsewhere by then. The duration is printed and not checked.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Event, Line, REAL, Record, assert_becomes, exit_code, holds, kinds, signal};
use crate::tally::distribution;

/// The flag that enables the carry.
const CARRY: [&str; 1] = ["--carry"];
/// Connections that are not carried are cut after the drain timeout. It is long enough to differ
/// clearly from a carry, and short enough to fail soon.
const LIMITS: [&str; 4] = ["--bake", "0", "--drain-timeout", "10s"];

/// A daemon and its succession of generations.
#[derive(Debug)]
pub(crate) struct Generations {
    pub(crate) line: Line,
    /// The number of the active generation.
    pub(crate) generation: u64,
    pub(crate) pid: u32,
    seen: usize,
    /// How long each handoff took, until the old process had ended, in microseconds.
    took: Vec<u32>,
}

impl Generations {
    /// Starts a daemon with these arguments that carries connections.
    pub(crate) fn carrying(arguments: &[&str]) -> Self {
        Self::start(|command, _| {
            command.args(arguments).args(CARRY).args(LIMITS);
        })
    }

    /// Starts a daemon that drains connections instead.
    pub(crate) fn draining(arguments: &[&str]) -> Self {
        Self::start(|command, _| {
            command.args(arguments).args(["--no-carry", "--bake", "0", "--drain-timeout", "1s"]);
        })
    }

    /// Starts a daemon from a configuration file that carries connections. Its listener `echo`
    /// echoes, and `proxy` relays to `upstream`.
    pub(crate) fn carrying_by_file(upstream: &str) -> Self {
        Self::start(|command, folder| {
            let text = format!(
                "carry = true\nbake = '0s'\ndrain_timeout = '10s'\n\
                 [listener.echo]\naddress = '127.0.0.1:0'\nservice = 'echo'\n\
                 [listener.proxy]\naddress = '127.0.0.1:0'\nservice = 'proxy'\nupstreams = ['{upstream}']\n"
            );
            let file = folder.join("handoffd.toml");
            fs::write(&file, text).unwrap();
            command.arg("--config").arg(file);
        })
    }

    fn start(prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let line = Line::start_program(Path::new(REAL), |command, folder| {
            prepare(command, folder);
            command.args(["--log", "info"]).arg("--control").arg(folder.join("control"));
        });
        line.wait_for(1, Event::GenerationServing);
        let pid = line.first_pid();
        Self { line, generation: 1, pid, seen: 0, took: Vec::new() }
    }

    /// Starts a handoff by a signal, and waits until the old process has ended.
    pub(crate) fn hand_over(&mut self) {
        let asked = Instant::now();
        signal(self.pid, Signal::SIGHUP);
        self.succeed(asked);
    }

    /// Starts a handoff by the `reload` command, which waits until all connections have moved.
    pub(crate) fn reload(&mut self) {
        let asked = Instant::now();
        self.line.asked(&["reload", "--wait-drained"]).well();
        self.succeed(asked);
    }

    fn succeed(&mut self, asked: Instant) {
        let old = self.pid;
        self.generation += 1;
        let what = format!("generation {} as the head", self.generation);
        let is_head = |record: &Record| record.is(self.generation, Event::GenerationServing);
        self.pid = self.line.wait_after(&mut self.seen, &what, is_head).pid;
        assert_eq!(exit_code(old), 0, "{}", self.line.text());
        self.took.push(u32::try_from(asked.elapsed().as_micros()).unwrap());
    }

    /// Stops the daemon and returns its whole log. The log must have no warning or error.
    pub(crate) fn stop(self) -> Vec<Record> {
        signal(self.pid, Signal::SIGTERM);
        assert_eq!(exit_code(self.pid), 0);
        let records = self.line.wait_for_end();
        let complaint = records.iter().find(|record| record.is_complaint());
        assert_eq!(complaint, None);
        records
    }

    /// Describes how long the handoffs took.
    pub(crate) fn took(&self) -> String {
        format!("handoffs, to the end of the old process: {}", distribution(&self.took))
    }
}

/// Resources of a process that could grow from generation to generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// The target of each descriptor that is neither a socket nor a pipe, sorted. For sockets and
    /// pipes see [`count`].
    pub(crate) descriptors: Vec<String>,
    /// The names of the environment variables. Their values differ, such as the generation number.
    pub(crate) variables: Vec<String>,
    pub(crate) arguments: Vec<u8>,
}

impl Holdings {
    pub(crate) fn of(pid: u32) -> Self {
        let is_other = |held: &String| !held.starts_with("socket:") && !held.starts_with("pipe:");
        let mut descriptors: Vec<String> = holds(pid).into_values().filter(is_other).collect();
        descriptors.sort();
        let name = |variable: String| variable.split('=').next().unwrap().to_owned();
        let variables = crate::support::environment(pid).into_iter().map(name).collect();
        Self {
            descriptors,
            variables,
            arguments: fs::read(format!("/proc/{pid}/cmdline")).unwrap(),
        }
    }
}

/// Returns how many descriptors of a kind a process holds: `socket` or `pipe`. Threads keep some
/// pipes for the next transfer.
pub(crate) fn count(pid: u32, kind: &str) -> usize {
    kinds(pid).remove(kind).unwrap_or(0)
}

/// Waits until a process has closed its channels to an ended predecessor, and the descriptor of
/// that process. It learns of that end later than other observers.
pub(crate) fn wait_until_alone(pid: u32) {
    // The type is in the fifth column, in hexadecimal, and the inode in the seventh: proc(5). Only
    // these channels are seqpacket sockets.
    const SEQPACKET: &str = "0005";
    let of_predecessor = || {
        let held: Vec<String> = holds(pid).into_values().collect();
        let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let channels = rows
            .filter(|row| row[4] == SEQPACKET && held.contains(&format!("socket:[{}]", row[6])));
        channels.count() + held.iter().filter(|target| target.contains("pidfd")).count()
    };
    assert_becomes(&0, of_predecessor);
}

/// Returns the size of the environment that a process started with, in bytes.
pub(crate) fn born_with(pid: u32) -> usize {
    fs::read(format!("/proc/{pid}/environ")).unwrap().len()
}

/// Returns the resident memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns the time since `start`, rounded down to milliseconds.
pub(crate) fn since(start: Instant) -> Duration {
    Duration::from_millis(u64::try_from(start.elapsed().as_millis()).unwrap())
}
