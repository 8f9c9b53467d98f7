//! Rules about the program that a unit starts: its arguments and its file capabilities.

use super::rules::{Finding, Severity};
use super::unit::{Manager, Unit};

/// The argument that makes the first process fork the daemon and stay as its small init process.
const INIT: &str = "--init";

/// Applies the rules about the program, and adds the problems to `findings`.
pub(super) fn examine(unit: &Unit, findings: &mut Vec<Finding>) {
    findings.extend(init(unit));
    findings.extend(capabilities(unit));
}

/// Returns whether the first process of the unit keeps running. If so, the main process never
/// changes, and systemd need not learn of a new main process.
pub(super) fn keeps_first_process(unit: &Unit) -> bool {
    unit.has_argument(INIT)
}

/// Finds `--init` in a unit with a `Type=` that expects a ready message. With `--init`, a child of
/// the main process sends this message, so systemd may ignore it.
fn init(unit: &Unit) -> Option<Finding> {
    if !keeps_first_process(unit) || !unit.get("Type").starts_with("notify") {
        return None;
    }
    let (severity, why) = match unit.get("NotifyAccess") {
        "main" | "" => (
            Severity::Breaks,
            "systemd ignores the ready message, because a child of the main process sends it, so \
            the start times out",
        ),
        _ => (Severity::Risks, "systemd watches the init process, which serves no clients"),
    };
    let why = format!("{why}; remove {INIT}, which is meant for other supervisors");
    Some(Finding { severity, setting: format!("Type={} with {INIT}", unit.get("Type")), why })
}

/// Finds a reload command that uses `/proc` although the program has file capabilities. If a
/// process gains capabilities in an exec, its files in `/proc` belong to root (see proc_pid(5)).
fn capabilities(unit: &Unit) -> Option<Finding> {
    let is_gained = unit.has_file_capabilities && !unit.is_yes("NoNewPrivileges");
    if !reloads_by_proc(unit) || !is_gained || !runs_as_user(unit) {
        return None;
    }
    let why = "the program has file capabilities, so its user may not follow \
        /proc/${MAINPID}/exe, and the reload fails; \
               use the path of the program, or AmbientCapabilities= instead of setcap(8)";
    Some(Finding {
        severity: Severity::Breaks,
        setting: "ExecReload=".to_owned(),
        why: why.to_owned(),
    })
}

/// Returns whether the reload command starts the daemon's program through `/proc/PID/exe`, with
/// only the rights of the unit's user.
pub(super) fn reloads_by_proc(unit: &Unit) -> bool {
    let reload = unit.get("ExecReload");
    let is_privileged = unit.get("ExecReloadEx").contains("privileged");
    reload.contains("/proc/") && reload.contains("/exe") && !is_privileged
}

fn runs_as_user(unit: &Unit) -> bool {
    unit.manager != Manager::System
        || unit.is_yes("DynamicUser")
        || !matches!(unit.get("User"), "" | "root" | "0")
}
