//! What processes use: processor time and memory, and how idle the processors are.

use std::fs;
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Returns the processor time of a process with all its threads, including those that have ended. A
/// process that has ended can be asked until it is reaped. `/proc` has the same time in ticks of 10
/// ms; this clock counts nanoseconds.
pub(crate) fn time_of(pid: Pid) -> Duration {
    let clock =
        clock_getcpuclockid(pid).expect("find the clock of a process that is not reaped yet");
    let time = clock_gettime(clock).expect("read the clock");
    Duration::from_nanos(time.num_nanoseconds().unsigned_abs())
}

/// Returns the memory of a process that it shares with no other process, in bytes.
pub(crate) fn private_memory(pid: Pid) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .expect("read the memory of a living process");
    let size =
        |line: &str| line.strip_prefix("Private_")?.split_whitespace().nth(1)?.parse::<f64>().ok();
    rollup.lines().filter_map(size).sum::<f64>() * 1024.0
}

/// The use of all processors so far in ticks: idle time and total time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    idle: f64,
    all: f64,
}

impl Usage {
    /// Returns the use since the machine was started.
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").expect("read the use of the processors");
        let ticks =
            stat.lines().next().expect("find the line for all processors").split_whitespace();
        // The fields are the name, user, nice, system, idle, I/O wait, and others. The first two
        // already include the time of guests.
        let ticks: Vec<f64> =
            ticks.skip(1).take(8).filter_map(|number| number.parse().ok()).collect();
        Self { idle: ticks[3] + ticks[4], all: ticks.iter().sum() }
    }

    /// Returns how idle the processors have been since, in per cent.
    pub(crate) fn idle_since(self) -> f64 {
        let now = Self::now();
        (now.idle - self.idle) / (now.all - self.all) * 100.0
    }
}
