//! The pid namespace of this process, and whether another process shares it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The inode of the initial pid namespace (`PROC_PID_INIT_INO`), which is the same on every
/// machine.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A directory that exists where systemd manages the system or the container, sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Returns whether this process shares a pid namespace with the process that set `variable`
/// (`NAME=value`) for it. Only then does a pid mean the same process to both.
///
/// No system call answers this, so the function looks at the oldest ancestor in the namespace. If
/// that ancestor was also started with the variable, the variable was set outside the namespace.
pub(crate) fn is_shared_with_setter_of(variable: &[u8]) -> bool {
    if fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_NAMESPACE) {
        return true;
    }
    // /proc belongs to an outer namespace, so its pids differ from ours.
    if own_numbers() != Some(1) {
        return false;
    }
    let oldest = oldest_ancestor(std::process::id());
    match fs::read(format!("/proc/{oldest}/environ")) {
        Ok(environment) => !environment.split(|byte| *byte == 0).any(|one| one == variable),
        // The ancestor belongs to another user, or `ProtectProc=` hides it.
        Err(_) => Path::new(BOOTED).is_dir(),
    }
}

/// Returns the number of pids that this process has in the namespaces that /proc shows,
/// proc_pid_status(5).
fn own_numbers() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map(|numbers| numbers.split_whitespace().count())
}

/// Returns the oldest ancestor of `pid` in this namespace: the one whose parent is outside it.
fn oldest_ancestor(mut pid: u32) -> u32 {
    while let Some(parent) = parent(pid).filter(|parent| *parent != 0) {
        pid = parent;
    }
    pid
}

/// Returns the parent of a process, proc_pid_status(5). A parent outside this namespace is 0.
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
