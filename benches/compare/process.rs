//! Processes seen from outside: their descendants, their processor time and their memory.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::support::usage::time_of;

/// Returns a process and its descendants, as far as their parents live.
pub(crate) fn family(root: Pid) -> Vec<Pid> {
    let all = with_parents();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(all.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// Returns the processor time of these processes with all their threads, including those that have
/// ended.
pub(crate) fn processor_time(family: &[Pid]) -> Duration {
    family.iter().map(|pid| time_of(*pid)).sum()
}

/// Returns the memory of these processes in bytes. A page that several of them share counts once.
pub(crate) fn memory(family: &[Pid]) -> f64 {
    let one = |pid: &Pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .expect("read the memory of a living process");
        let kibibytes =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
        kibibytes
            .and_then(|number| number.parse::<f64>().ok())
            .expect("find the proportional set size")
            * 1024.0
    };
    family.iter().map(one).sum()
}

/// Kills every child of this process except those `spared`, and the orphans that become its
/// children by that. For a subreaper, these are all processes that a bench has left.
pub(crate) fn kill_children_but(spared: &[Pid]) {
    loop {
        let ours = |(child, parent): (Pid, Pid)| {
            (parent == Pid::this() && !spared.contains(&child)).then_some(child)
        };
        let children: Vec<Pid> = with_parents().into_iter().filter_map(ours).collect();
        if children.is_empty() {
            return;
        }
        for child in children {
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
        }
    }
}

/// Returns every process of the machine with its parent.
fn with_parents() -> Vec<(Pid, Pid)> {
    let entries = fs::read_dir("/proc").expect("list the processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // A process that has ended meanwhile is skipped.
    let with_parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The process name before the field, in parentheses, may contain any character.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((Pid::from_raw(pid), Pid::from_raw(parent)))
    };
    pids.filter_map(with_parent).collect()
}
