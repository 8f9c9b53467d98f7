//! Looks at processes from outside: who descends from whom, what they have used of the processor,
//! what memory they hold.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::support::processor::time_of;

/// A process and all that descend from it, as far as their parents live.
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

/// All that these processes have used, their threads included, also those that have ended.
pub(crate) fn processor_time(family: &[Pid]) -> Duration {
    family.iter().map(|pid| time_of(*pid)).sum()
}

/// The bytes that these processes hold; a page that several share counts once.
pub(crate) fn memory(family: &[Pid]) -> f64 {
    let one = |pid: &Pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .expect("the memory of a living process");
        let kibibytes =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
        kibibytes.and_then(|number| number.parse::<f64>().ok()).expect("its share") * 1024.0
    };
    family.iter().map(one).sum()
}

/// Kills every child of ours but `spared`, and what becomes our child by that. For a reaper of
/// orphans these are all that anything started here has left.
pub(crate) fn kill_children_but(spared: Pid) {
    loop {
        let ours = |(child, parent): (Pid, Pid)| {
            (parent == Pid::this() && child != spared).then_some(child)
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

/// Every process of the machine, with its parent.
fn with_parents() -> Vec<(Pid, Pid)> {
    let entries = fs::read_dir("/proc").expect("the list of processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // One that has ended meanwhile is nobody's child.
    let with_parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it, in parentheses, may contain anything.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((Pid::from_raw(pid), Pid::from_raw(parent)))
    };
    pids.filter_map(with_parent).collect()
}
