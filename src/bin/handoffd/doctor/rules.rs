//! The rules for a systemd unit. Each rule finds a setting that breaks a handoff, and gives the
//! reason.
//!
//! Each rule was observed on a real systemd, or follows from the manual page that it names. A
//! property that the installed systemd does not know has an empty value, which no rule reports.

#[cfg(test)]
mod tests;

use std::time::Duration;

use handoffd::status::{Settings, Status};

use super::paths::{BoundPath, paths};
use super::program;
use super::starts::failed_starts;
use super::unit::Unit;

/// The facts about the running daemon that the rules need.
pub(super) struct Daemon {
    pub(super) settings: Settings,
    /// The number of listeners that the daemon has bound. Sockets inherited from systemd do not
    /// count.
    pub(super) bound: usize,
    /// The paths of the Unix listeners that the daemon has bound, not inherited from systemd.
    pub(super) paths: Vec<BoundPath>,
}

impl Daemon {
    /// Returns the facts that a running daemon has reported.
    pub(super) fn of(status: &Status) -> Self {
        let bound = || status.listeners.iter().filter(|listener| listener.bound);
        Self {
            settings: status.settings,
            bound: bound().count(),
            paths: bound().filter_map(|listener| BoundPath::of(&listener.address)).collect(),
        }
    }
}

/// A problem that a rule has found in a systemd unit.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// The setting that causes the problem, with its value.
    pub(super) setting: String,
    pub(super) why: String,
}

/// How serious a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// The setting makes a handoff fail, or makes systemd report a wrong outcome.
    Breaks,
    /// The setting makes a handoff fail only if something else goes wrong too.
    Risks,
}
use Severity::{Breaks, Risks};

/// The oldest version of systemd on which the handoff was tested.
const OLDEST: u32 = 252;

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

/// Applies all rules to a unit, and returns the problems with the most serious ones first.
pub(super) fn examine(unit: &Unit, daemon: &Daemon) -> Vec<Finding> {
    let mut findings = Vec::new();
    main_process(unit, &mut findings);
    end_of_main_process(unit, &mut findings);
    failed_starts(unit, &mut findings);
    reload(unit, &mut findings);
    reload_timeout(unit, daemon, &mut findings);
    stop(unit, daemon, &mut findings);
    sockets(unit, daemon, &mut findings);
    paths(unit, daemon, &mut findings);
    sandbox(unit, &mut findings);
    program::examine(unit, &mut findings);
    if unit.systemd < OLDEST {
        let setting = format!("systemd {}", unit.systemd);
        findings.push(Finding {
            severity: Risks,
            setting,
            why: format!("nothing older than {OLDEST} was tried"),
        });
    }
    findings.sort_by_key(|finding| finding.severity == Risks);
    findings
}

impl Unit {
    /// Creates a finding that names a property of the unit and the value of the property.
    fn finding(&self, severity: Severity, property: &str, why: &str) -> Finding {
        Finding {
            severity,
            setting: format!("{property}={}", self.get(property)),
            why: why.to_owned(),
        }
    }
}

/// Checks that systemd learns which process is the main process.
fn main_process(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    match unit.get("Type") {
        "notify" => {}
        "notify-reload" if unit.systemd < 253 => {
            add(Breaks, "Type", "this systemd does not know it, and takes it for simple")
        }
        "notify-reload" if unit.systemd < 259 => {
            add(Breaks, "Type", "a reload whose end is not told hangs for ever before systemd 259");
        }
        "notify-reload" => {
            add(Risks, "Type", "a reload that failed ends with 0: only the status line says so")
        }
        "simple" | "exec" if program::keeps_first_process(unit) => {}
        _ => add(
            Breaks,
            "Type",
            "systemd does not hear of a new main process, and ends the service with the first; use notify",
        ),
    }
    match unit.get("NotifyAccess") {
        "main" => {}
        "none" => add(Breaks, "NotifyAccess", "nothing is heard: the start times out; use main"),
        _ => add(
            Risks,
            "NotifyAccess",
            "others than the main process are heard, and may stop the unit; use main",
        ),
    }
}

/// Checks that systemd notices when the main process ends, and then starts the service again.
fn end_of_main_process(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    if unit.get("ExitType") == "cgroup" {
        add(
            Breaks,
            "ExitType",
            "while an old generation drains, the death of the main process is not seen; use main",
        );
    }
    if unit.is_yes("RemainAfterExit") {
        add(Risks, "RemainAfterExit", "a service that has ended looks as if it ran");
    }
    if matches!(unit.get("Restart"), "no" | "on-success" | "on-watchdog") {
        add(
            Risks,
            "Restart",
            "when all generations die, nothing starts the service again; use on-failure",
        );
    }
    if matches!(unit.get("OOMPolicy"), "stop" | "kill") {
        add(
            Risks,
            "OOMPolicy",
            "one old generation that runs out of memory stops the new one too; use continue",
        );
    }
    if unit.is_yes("NeedDaemonReload") {
        add(
            Risks,
            "NeedDaemonReload",
            "the unit file has changed: that takes effect with daemon-reload and a restart alone",
        );
    }
}

/// Checks that `systemctl reload` reports whether the handoff has succeeded.
fn reload(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add = |severity, setting: &str, why: String| {
        findings.push(Finding { severity, setting: setting.to_owned(), why });
    };
    let command = unit.get("ExecReload");
    let by_signal = unit.get("Type") == "notify-reload";
    if command.is_empty() && !by_signal {
        add(
            Risks,
            "ExecReload=",
            "systemctl reload is refused; use `/usr/bin/env /proc/${MAINPID}/exe reload`".into(),
        );
    }
    if !command.is_empty() && by_signal {
        add(
            Breaks,
            "ExecReload=",
            "with Type=notify-reload the signal is sent as well, also when this command fails"
                .into(),
        );
    }
    if command.contains("kill ") || command.contains("/kill") {
        let why = "it returns at once and always succeeds, whatever becomes of the handoff; use `handoffd reload`";
        add(Breaks, "ExecReload=", why.into());
    }
    if command.contains("ignore_errors=yes") {
        add(Breaks, "ExecReload=-", "a reload that failed is reported as one that did not".into());
    }
    if command.contains(" reload")
        && unit.get("RuntimeDirectory").is_empty()
        && !unit.get("ExecStart").contains("--control")
    {
        let why =
            "there is nowhere to listen for `handoffd reload`; set it, or --control on both sides"
                .into();
        add(Breaks, "RuntimeDirectory=", why);
    }
    if by_signal && !matches!(unit.get("ReloadSignal"), "" | "1") {
        add(Breaks, "ReloadSignal", "only SIGHUP asks for a handoff".into());
    }
}

/// Checks that systemd waits until a handoff has ended.
fn reload_timeout(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    let handoff = Duration::from_millis(
        daemon.settings.ready_timeout_ms.saturating_add(daemon.settings.bake_ms),
    );
    if let Some(limit) = unit.time("TimeoutStartUSec").filter(|limit| *limit <= handoff) {
        let why = format!(
            "it bounds a reload, and --ready-timeout and --bake together are {}: one that would succeed is called a failure",
            humantime::format_duration(handoff)
        );
        let setting = format!("TimeoutStartSec={}", humantime::format_duration(limit));
        findings.push(Finding { severity: Breaks, setting, why });
    }
}

/// Checks that `systemctl stop` drains all generations.
fn stop(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    match unit.get("KillMode") {
        "control-group" | "" => {}
        "mixed" => add(
            Breaks,
            "KillMode",
            "old generations are killed as soon as the main process has ended; use control-group",
        ),
        _ => add(
            Breaks,
            "KillMode",
            "old generations are not told to stop, and are left behind; use control-group",
        ),
    }
    match unit.get("KillSignal") {
        "15" | "2" | "" => {}
        "1" => {
            add(Breaks, "KillSignal", "SIGHUP asks for a handoff, and not for an end; use SIGTERM")
        }
        "3" => add(Breaks, "KillSignal", "SIGQUIT cuts every connection; use SIGTERM"),
        _ => add(Breaks, "KillSignal", "the daemon does not take it for a stop; use SIGTERM"),
    }
    if unit.is_yes("SendSIGHUP") {
        add(Risks, "SendSIGHUP", "a stop also asks for a handoff");
    }
    let drain = Duration::from_millis(daemon.settings.drain_timeout_ms);
    if let Some(limit) = unit.time("TimeoutStopUSec").filter(|limit| *limit <= drain) {
        let why = format!(
            "--drain-timeout is {}: a stop that makes no progress is killed before its time",
            humantime::format_duration(drain)
        );
        let setting = format!("TimeoutStopSec={}", humantime::format_duration(limit));
        findings.push(Finding { severity: Risks, setting, why });
    }
}

/// Checks that systemd holds the listening sockets, so that clients can connect even after all
/// generations have died.
fn sockets(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    if !unit.sockets.is_empty() && unit.get("NonBlocking") == "no" {
        let why =
            "whatever else starts on the same socket turns it blocking while we serve; use true";
        findings.push(unit.finding(Risks, "NonBlocking", why));
    }
    for (name, socket) in &unit.sockets {
        if socket.get("Accept").is_some_and(|accept| accept == "yes") {
            let (setting, why) = (
                format!("Accept=yes in {name}"),
                "systemd passes connections, and no listener".into(),
            );
            findings.push(Finding { severity: Breaks, setting, why });
        }
    }
    let room: usize = unit.get("FileDescriptorStoreMax").parse().unwrap_or(usize::MAX);
    if room < daemon.bound {
        let why = format!(
            "the daemon has bound {} sockets: who comes after a crash is refused",
            daemon.bound
        );
        findings.push(Finding { why, ..unit.finding(Risks, "FileDescriptorStoreMax", "") });
    }
}

/// Checks that the unit's sandbox lets a generation start its successor, communicate with systemd,
/// and answer operators.
fn sandbox(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add =
        |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    if unit.is_yes("PrivatePIDs") {
        add(
            Breaks,
            "PrivatePIDs",
            "the main process is process 1 of its own namespace, and all others end with it",
        );
    }
    if !matches!(unit.get("PrivateUsers"), "no" | "") {
        add(
            Risks,
            "PrivateUsers",
            "root is nobody in there, so that `handoffd status` by root is refused",
        );
    }
    let families = unit.get("RestrictAddressFamilies");
    let listed =
        families.split_whitespace().any(|family| family.trim_start_matches('~') == "AF_UNIX");
    let forbids = if families.starts_with('~') { listed } else { !families.is_empty() && !listed };
    if forbids {
        add(
            Breaks,
            "RestrictAddressFamilies",
            "without AF_UNIX nothing can be said to systemd: the start times out",
        );
    }
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
        let why = format!("a generation needs {} to start its successor", missing.join(", "));
        findings.push(Finding { severity: Breaks, setting: "SystemCallFilter=".to_owned(), why });
    }
}
