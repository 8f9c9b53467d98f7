//! Rules about the sandbox of a systemd unit. The sandbox must let the daemon start its successor,
//! communicate with systemd, and answer operators.

use super::program;
use super::rules::{Finding, Severity::Breaks};
use super::unit::Unit;

/// The system calls that a generation needs to start its successor. A sandbox must allow them.
const NEEDED_CALLS: [&str; 9] = [
    "clone",
    "close_range",
    "dup2",
    "execve",
    "fcntl",
    "pidfd_open",
    "pidfd_send_signal",
    "sendmsg",
    "socketpair",
];

/// The environment variables through which systemd passes sockets and settings to the daemon.
const NEEDED_VARIABLES: [&str; 6] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "WATCHDOG_USEC",
];

/// Applies the rules about the sandbox of a unit, and adds the problems to `findings`.
pub(super) fn examine(unit: &Unit, findings: &mut Vec<Finding>) {
    namespaces(unit, findings);
    control_socket(unit, findings);
    variables(unit, findings);
    address_families(unit, findings);
    system_calls(unit, findings);
}

/// Checks that the reload command can find the daemon, and that a new process can outlive the first
/// process of the unit.
fn namespaces(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    if unit.is_yes("PrivatePIDs") {
        add(
            Breaks,
            "PrivatePIDs",
            "the first process is process 1 of its pid namespace, so all later processes end with \
            it; use PrivatePIDs=no",
        );
    }
    if !matches!(unit.get("PrivateUsers"), "no" | "") && program::reloads_by_proc(unit) {
        add(
            Breaks,
            "PrivateUsers",
            "the reload command runs in another user namespace than the daemon and may not follow \
            /proc/${MAINPID}/exe, so every reload fails; use PrivateUsers=no, or the path of the \
            program in ExecReload=",
        );
    }
    let hidden = unit.get("InaccessiblePaths").split_whitespace();
    // A path may have the prefix `-` or `+`, which is not a part of the path.
    if hidden.map(|path| path.trim_start_matches(['-', '+'])).any(|path| path == "/proc") {
        add(
            Breaks,
            "InaccessiblePaths",
            "without /proc, the reload command does not find the daemon, and systemd does not \
            learn that a new process has taken over; remove /proc",
        );
    }
}

/// Checks that the daemon's user may write to the control socket, so that clients can connect to
/// it.
fn control_socket(unit: &Unit, findings: &mut Vec<Finding>) {
    let umask = u32::from_str_radix(unit.get("UMask"), 8);
    if umask.is_ok_and(|umask| umask & 0o200 != 0) {
        let why = "the daemon's user may not write to the control socket, so the reload command \
            cannot connect; use UMask=0077";
        findings.push(unit.finding(Breaks, "UMask", why));
    }
}

/// Checks that the unit removes no environment variable that systemd sets for the daemon.
fn variables(unit: &Unit, findings: &mut Vec<Finding>) {
    let has_control = unit.get("ExecStart").contains("--control");
    let needed = |name: &&str| {
        NEEDED_VARIABLES.contains(name) && !(has_control && *name == "RUNTIME_DIRECTORY")
    };
    let unset = unit.get("UnsetEnvironment").split_whitespace().filter(needed);
    let unset: Vec<_> = unset.collect();
    if !unset.is_empty() {
        let why = format!(
            "the daemon needs what systemd tells it by these variables: {}; keep them",
            unset.join(", ")
        );
        findings.push(Finding { why, ..unit.finding(Breaks, "UnsetEnvironment", "") });
    }
}

/// Checks that the daemon may use Unix sockets.
fn address_families(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    let families = unit.get("RestrictAddressFamilies");
    let listed =
        families.split_whitespace().any(|family| family.trim_start_matches('~') == "AF_UNIX");
    let forbids = if families.starts_with('~') { listed } else { !families.is_empty() && !listed };
    if forbids {
        add(
            Breaks,
            "RestrictAddressFamilies",
            "without AF_UNIX the daemon cannot notify systemd, so the start times out; allow \
            AF_UNIX",
        );
    }
}

/// Checks that the daemon may use the system calls that start a successor.
fn system_calls(unit: &Unit, findings: &mut Vec<Finding>) {
    let filter = unit.get("SystemCallFilter");
    let named: Vec<&str> = filter
        .trim_start_matches('~')
        .split_whitespace()
        .map(|call| call.split(':').next().unwrap_or(call))
        .collect();
    let denies = filter.starts_with('~');
    let missing: Vec<_> =
        NEEDED_CALLS.into_iter().filter(|call| named.contains(call) == denies).collect();
    if !filter.is_empty() && !missing.is_empty() {
        let why = format!(
            "a reload cannot start a new process without these system calls: {}; allow them",
            missing.join(", ")
        );
        findings.push(Finding { severity: Breaks, setting: "SystemCallFilter=".to_owned(), why });
    }
}
