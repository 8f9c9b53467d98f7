//! The pid namespace of this process, and whether the parent that it was started for is in the same
//! one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The inode of the first pid namespace, which is the same on every machine (`PROC_PID_INIT_INO`).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A folder that exists where systemd manages the system or the container, sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Returns whether the process that has set `variable` (`NAME=value`) for this one numbers
/// processes as this one does.
///
/// No system call tells that, so it is found by the oldest ancestor in the namespace. If that
/// ancestor was started with the variable, too, the variable comes from outside.
pub(crate) fn is_shared_with_setter_of(variable: &[u8]) -> bool {
    if fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_NAMESPACE) {
        return true;
    }
    // With a /proc of an outer namespace the numbers there are not ours.
    if own_numbers() != Some(1) {
        return false;
    }
    let oldest = oldest_ancestor(std::process::id());
    match fs::read(format!("/proc/{oldest}/environ")) {
        Ok(environment) => !environment.split(|byte| *byte == 0).any(|one| one == variable),
        // It belongs to another user, or is hidden (`ProtectProc=`).
        Err(_) => Path::new(BOOTED).is_dir(),
    }
}

/// How many numbers this process has in the namespaces that /proc shows, proc_pid_status(5).
fn own_numbers() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map(|numbers| numbers.split_whitespace().count())
}

/// Goes up to the process whose parent is none of this namespace.
fn oldest_ancestor(mut pid: u32) -> u32 {
    while let Some(parent) = parent(pid).filter(|parent| *parent != 0) {
        pid = parent;
    }
    pid
}

/// The parent of a process, proc_pid_status(5).
fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ancestor_has_no_parent_here() {
        let oldest = oldest_ancestor(std::process::id());
        assert_eq!(parent(oldest), Some(0));
        assert_eq!(oldest_ancestor(oldest), oldest);
    }
}
