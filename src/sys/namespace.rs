//! This module finds out whether another process is in the same pid namespace as this process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The inode of the initial pid namespace (`PROC_PID_INIT_INO`). It is the same on every machine.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A directory that exists where systemd manages the system or the container (see sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Returns whether the process that set the environment variable `variable` (`NAME=value`) is in
/// the same pid namespace as this process. In different namespaces, the same pid can refer to
/// different processes.
///
/// No system call answers this question, so this function reads the environment of the oldest
/// ancestor in this namespace. If that ancestor already has the variable, a process outside the
/// namespace has set it.
pub(crate) fn is_shared_with_setter_of(variable: &[u8]) -> bool {
    if fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_NAMESPACE) {
        return true;
    }
    // If this process has several pids, /proc shows the pids of an outer namespace, so the search
    // below would find the wrong process. Assume that the namespaces differ.
    if own_numbers() != Some(1) {
        return false;
    }
    let oldest = oldest_ancestor(std::process::id());
    match fs::read(format!("/proc/{oldest}/environ")) {
        Ok(environment) => !environment.split(|byte| *byte == 0).any(|one| one == variable),
        // The ancestor's environment is not readable, because the ancestor belongs to another user
        // or `ProtectProc=` hides it. Check whether systemd runs here instead.
        Err(_) => Path::new(BOOTED).is_dir(),
    }
}

/// Returns how many pids this process has, one in each namespace that /proc shows (see
/// proc_pid_status(5)).
fn own_numbers() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map(|numbers| numbers.split_whitespace().count())
}

/// Returns the oldest ancestor of `pid` in this pid namespace. The parent of that ancestor is
/// outside the namespace.
fn oldest_ancestor(mut pid: u32) -> u32 {
    while let Some(parent) = parent(pid).filter(|parent| *parent != 0) {
        pid = parent;
    }
    pid
}

/// Returns the pid of the parent of a process (see proc_pid_status(5)). Returns 0 if the parent is
/// outside this pid namespace.
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
