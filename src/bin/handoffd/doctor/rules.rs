//! The rules for a systemd unit. Each rule finds a setting that breaks a handoff, and explains why.
//!
//! Each rule was confirmed on a real systemd, or follows from the manual page that it names. A
//! property that the installed systemd does not know has an empty value, which no rule reports.

#[cfg(test)]
mod tests;

use std::time::Duration;

use handoffd::Config;
use handoffd::status::{Settings, Status};

use super::paths::{BoundPath, paths};
use super::starts::{failed_starts, limits_of_sockets};
use super::unit::Unit;
use super::{program, reload, run, sandbox};

/// The facts about the running daemon that the rules need.
pub(super) struct Daemon {
    pub(super) settings: Settings,
    /// The number of listeners that the daemon has bound. Sockets inherited from systemd do not
    /// count.
    pub(super) bound: usize,
    /// The paths of the Unix listeners that the daemon has bound itself, rather than inherited from
    /// systemd.
    pub(super) paths: Vec<BoundPath>,
    /// The number of running processes of the program that `handoffd run` starts.
    pub(super) programs: usize,
}

impl Daemon {
    /// Returns the facts about a daemon with the default settings. Used when no daemon answers.
    pub(super) fn assumed() -> Self {
        let settings = Settings::from(&Config::default());
        Self { settings, bound: 0, paths: Vec::new(), programs: 0 }
    }

    /// Returns the facts that a running daemon has reported.
    pub(super) fn of(status: &Status) -> Self {
        let bound = || status.listeners.iter().filter(|listener| listener.bound);
        Self {
            settings: status.settings,
            bound: bound().count(),
            paths: bound().filter_map(|listener| BoundPath::of(&listener.address)).collect(),
            programs: status.generations.iter().map(|report| report.programs.len()).sum(),
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
    /// A handoff works with this setting, but fails if another problem comes on top, such as a
    /// crash.
    Risks,
}
use Severity::{Breaks, Risks};

/// The oldest version of systemd with which handoffs were tested.
const OLDEST: u32 = 252;

/// Applies all rules to a unit, and returns the problems with the most serious ones first.
pub(super) fn examine(unit: &Unit, daemon: &Daemon) -> Vec<Finding> {
    let mut findings = Vec::new();
    main_process(unit, &mut findings);
    end_of_main_process(unit, &mut findings);
    failed_starts(unit, &mut findings);
    limits_of_sockets(unit, &mut findings);
    reload::examine(unit, daemon, &mut findings);
    stop(unit, daemon, &mut findings);
    sockets(unit, daemon, &mut findings);
    paths(unit, daemon, &mut findings);
    sandbox::examine(unit, &mut findings);
    program::examine(unit, &mut findings);
    if daemon.programs > 0 {
        run::examine(unit, &mut findings);
    }
    if unit.systemd < OLDEST {
        let setting = format!("systemd {}", unit.systemd);
        findings.push(Finding {
            severity: Risks,
            setting,
            why: format!("handoffd is not tested with systemd versions before {OLDEST}"),
        });
    }
    findings.sort_by_key(|finding| finding.severity == Risks);
    findings
}

impl Unit {
    /// Creates a finding that names a property of the unit and its value.
    pub(super) fn finding(&self, severity: Severity, property: &str, why: &str) -> Finding {
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
        "notify-reload" if unit.systemd < 253 => add(
            Breaks,
            "Type",
            "systemd before version 253 does not know this type and uses Type=simple; use \
            Type=notify",
        ),
        "notify-reload" if unit.systemd < 259 => {
            add(
                Breaks,
                "Type",
                "before version 259, systemd waits forever if the daemon cannot report the end of \
                a reload; use Type=notify",
            );
        }
        "notify-reload" => add(
            Risks,
            "Type",
            "systemctl reload exits with 0 even if the reload failed, which only the status text \
            shows; use Type=notify",
        ),
        "simple" | "exec" if program::keeps_first_process(unit) => {}
        _ => add(
            Breaks,
            "Type",
            "systemd does not learn that a new process has taken over, and stops the service when \
            the old one exits; use Type=notify",
        ),
    }
    match unit.get("NotifyAccess") {
        "main" => {}
        "none" => add(
            Breaks,
            "NotifyAccess",
            "systemd ignores all notifications from the daemon, so the start times out; use \
            NotifyAccess=main",
        ),
        _ => add(
            Risks,
            "NotifyAccess",
            "other processes of the unit can send notifications that stop the service; use \
            NotifyAccess=main",
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
            "while an old process drains, systemd does not notice that the main process died; use \
            ExitType=main",
        );
    }
    if unit.is_yes("RemainAfterExit") {
        add(
            Risks,
            "RemainAfterExit",
            "systemd shows the service as active even after it has ended; use \
            RemainAfterExit=no",
        );
    }
    if matches!(unit.get("Restart"), "no" | "on-success" | "on-watchdog") {
        add(
            Risks,
            "Restart",
            "if all processes die, systemd does not start the service again; use \
            Restart=on-failure",
        );
    }
    if matches!(unit.get("OOMPolicy"), "stop" | "kill") {
        add(
            Risks,
            "OOMPolicy",
            "if an old process is killed for lack of memory, systemd stops the new one too; use \
            OOMPolicy=continue",
        );
    }
    if unit.is_yes("NeedDaemonReload") {
        add(
            Risks,
            "NeedDaemonReload",
            "the unit file has changed: run systemctl daemon-reload and restart the service to \
            apply it",
        );
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
            "systemd kills old processes as soon as the main process has ended; use \
            KillMode=control-group",
        ),
        _ => add(
            Breaks,
            "KillMode",
            "a stop does not end old processes, which keep running; use KillMode=control-group",
        ),
    }
    match unit.get("KillSignal") {
        "15" | "2" | "" => {}
        "1" => add(Breaks, "KillSignal", "SIGHUP requests a reload, not a stop; use SIGTERM"),
        "3" => add(Breaks, "KillSignal", "SIGQUIT closes every connection at once; use SIGTERM"),
        _ => add(Breaks, "KillSignal", "the daemon does not drain on this signal; use SIGTERM"),
    }
    if unit.is_yes("SendSIGHUP") {
        add(
            Risks,
            "SendSIGHUP",
            "on a stop, systemd also sends SIGHUP, which requests a reload; use SendSIGHUP=no",
        );
    }
    let drain = Duration::from_millis(daemon.settings.drain_timeout_ms);
    if let Some(limit) = unit.time("TimeoutStopUSec").filter(|limit| *limit <= drain) {
        let why = format!(
            "--drain-timeout is {}, but systemd may kill the daemon before that time is over; use \
            a longer time",
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
            "systemd makes the socket blocking when another process gets it; use NonBlocking=true";
        findings.push(unit.finding(Risks, "NonBlocking", why));
    }
    for (name, socket) in &unit.sockets {
        if socket.get("Accept").is_some_and(|accept| accept == "yes") {
            let (setting, why) = (
                format!("Accept=yes in {name}"),
                "systemd passes single connections instead of the listening socket; use Accept=no"
                    .into(),
            );
            findings.push(Finding { severity: Breaks, setting, why });
        }
    }
    let room: usize = unit.get("FileDescriptorStoreMax").parse().unwrap_or(usize::MAX);
    if room < daemon.bound {
        let why = format!(
            "systemd cannot keep all {0} sockets of the daemon, so clients are refused after a \
            crash; use {0} or more",
            daemon.bound
        );
        findings.push(Finding { why, ..unit.finding(Risks, "FileDescriptorStoreMax", "") });
    }
}
