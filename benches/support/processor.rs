//! Looks at the processors: what a process has used of them, and how much of them nobody uses.

use std::fs;
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// All that a process has used, its threads included, also those that have ended; and also of one
/// that has ended itself, until it is reaped. What `/proc` says in ticks of 10 ms, in nanoseconds.
pub(crate) fn time_of(pid: Pid) -> Duration {
    let clock = clock_getcpuclockid(pid).expect("the clock of a process that is not reaped yet");
    let time = clock_gettime(clock).expect("its time");
    Duration::from_nanos(time.num_nanoseconds().unsigned_abs())
}

/// What all processors have been used for until now, in ticks: nothing, and altogether.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    idle: f64,
    all: f64,
}

impl Usage {
    /// Since the machine was started.
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").expect("the use of the processors");
        let ticks = stat.lines().next().expect("all of them together").split_whitespace();
        // Its name; user, nice, system, idle, waiting for a disk, and others. What guests used is
        // in the first two already.
        let ticks: Vec<f64> =
            ticks.skip(1).take(8).filter_map(|number| number.parse().ok()).collect();
        Self { idle: ticks[3] + ticks[4], all: ticks.iter().sum() }
    }

    /// In per cent, how idle they have been since.
    pub(crate) fn idle_since(self) -> f64 {
        let now = Self::now();
        (now.idle - self.idle) / (now.all - self.all) * 100.0
    }
}
