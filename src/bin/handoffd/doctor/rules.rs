//! The rules for a systemd unit. Each rule finds a setting that breaks a handoff, and explains why.
//!
//! Each rule was confirmed on a real systemd, or follows from the manual page that it names. A
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
    /// The paths of the Unix listeners that the daemon has bound itself, rather than inherited from
    /// systemd.
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

/// The oldest version of systemd with which handoffs were tested.
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
            why: format!("handoffs are not tested with systemd older than {OLDEST}"),
        });
    }
    findings.sort_by_key(|finding| finding.severity == Risks);
    findings
}

impl Unit {
    /// Creates a finding that names a property of the unit and its value.
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
            add(Breaks, "Type", "systemd before 253 does not know this type and uses simple")
        }
        "notify-reload" if unit.systemd < 259 => {
            add(
                Breaks,
                "Type",
                "before systemd 259, a reload hangs forever if the daemon does not report its end",
            );
        }
        "notify-reload" => add(
            Risks,
            "Type",
            "systemctl reload exits with 0 even if the reload failed: only the status line says so",
        ),
        "simple" | "exec" if program::keeps_first_process(unit) => {}
        _ => add(
            Breaks,
            "Type",
            "systemd does not learn of a new main process, and stops the service when the first \
            one exits; use notify",
        ),
    }
    match unit.get("NotifyAccess") {
        "main" => {}
        "none" => add(
            Breaks,
            "NotifyAccess",
            "systemd ignores all messages of the daemon, and the start times out; use main",
        ),
        _ => add(
            Risks,
            "NotifyAccess",
            "systemd also accepts messages of other processes, which may stop the unit; use main",
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
            "while an old generation drains, systemd does not notice a dead main process; use main",
        );
    }
    if unit.is_yes("RemainAfterExit") {
        add(Risks, "RemainAfterExit", "systemd shows a service that has ended as active");
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
            "if an old generation runs out of memory, systemd stops the new one too; use continue",
        );
    }
    if unit.is_yes("NeedDaemonReload") {
        add(
            Risks,
            "NeedDaemonReload",
            "the unit file has changed: this takes effect only after daemon-reload and a restart",
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
            "with Type=notify-reload, systemd sends the signal as well, even if this command fails"
                .into(),
        );
    }
    if command.contains("kill ") || command.contains("/kill") {
        let why = "the command returns at once and always succeeds, even if the handoff fails; \
            use `handoffd reload`";
        add(Breaks, "ExecReload=", why.into());
    }
    if command.contains("ignore_errors=yes") {
        add(Breaks, "ExecReload=-", "systemd reports a failed reload as a success".into());
    }
    if command.contains(" reload")
        && unit.get("RuntimeDirectory").is_empty()
        && !unit.get("ExecStart").contains("--control")
    {
        let why =
            "`handoffd reload` finds no control socket; set it, or --control on both sides".into();
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
            "this also limits a reload, and --ready-timeout and --bake together are {}: systemd \
            reports a reload that would succeed as a failure",
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
            "systemd does not stop old generations, and leaves them running; use control-group",
        ),
    }
    match unit.get("KillSignal") {
        "15" | "2" | "" => {}
        "1" => add(Breaks, "KillSignal", "SIGHUP requests a handoff, not a stop; use SIGTERM"),
        "3" => add(Breaks, "KillSignal", "SIGQUIT cuts every connection; use SIGTERM"),
        _ => add(Breaks, "KillSignal", "the daemon does not drain on this signal; use SIGTERM"),
    }
    if unit.is_yes("SendSIGHUP") {
        add(Risks, "SendSIGHUP", "systemd also sends SIGHUP on a stop, which requests a handoff");
    }
    let drain = Duration::from_millis(daemon.settings.drain_timeout_ms);
    if let Some(limit) = unit.time("TimeoutStopUSec").filter(|limit| *limit <= drain) {
        let why = format!(
            "--drain-timeout is {}: systemd kills a stop without progress before that time is over",
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
            "another process that starts on the socket makes it blocking for the daemon; use true";
        findings.push(unit.finding(Risks, "NonBlocking", why));
    }
    for (name, socket) in &unit.sockets {
        if socket.get("Accept").is_some_and(|accept| accept == "yes") {
            let (setting, why) = (
                format!("Accept=yes in {name}"),
                "systemd passes connections, not a listening socket; use no".into(),
            );
            findings.push(Finding { severity: Breaks, setting, why });
        }
    }
    let room: usize = unit.get("FileDescriptorStoreMax").parse().unwrap_or(usize::MAX);
    if room < daemon.bound {
        let why = format!(
            "the daemon has bound {} sockets, more than this: after a crash, clients are refused",
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
            "the main process is process 1 of a pid namespace, so all generations end with it",
        );
    }
    if !matches!(unit.get("PrivateUsers"), "no" | "") {
        add(
            Risks,
            "PrivateUsers",
            "root is mapped to nobody in the unit, so `handoffd status` as root is refused",
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
            "without AF_UNIX the daemon cannot notify systemd: the start times out",
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
