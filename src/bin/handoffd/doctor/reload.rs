//! Rules about a reload: its command, the control socket that the command needs, and its timeout.

use std::time::Duration;

use super::rules::{Daemon, Finding, Severity};
use super::unit::Unit;
use Severity::{Breaks, Risks};

/// Applies the rules about a reload, and adds the problems to `findings`.
pub(super) fn examine(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    command(unit, findings);
    control_socket(unit, findings);
    timeout(unit, daemon, findings);
}

/// Checks that `systemctl reload` reports whether the handoff has succeeded.
fn command(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add = |severity, setting: &str, why: String| {
        findings.push(Finding { severity, setting: setting.to_owned(), why });
    };
    let command = unit.get("ExecReload");
    let by_signal = unit.get("Type") == "notify-reload";
    if command.is_empty() && !by_signal {
        add(
            Risks,
            "ExecReload=",
            "systemctl reload fails without a command; use `/usr/bin/env /proc/${MAINPID}/exe \
            reload`"
                .into(),
        );
    }
    if !command.is_empty() && by_signal {
        add(
            Breaks,
            "ExecReload=",
            "with Type=notify-reload, systemd also sends a reload signal, even if this command \
            fails; use Type=notify"
                .into(),
        );
    }
    if command.contains("kill ") || command.contains("/kill") {
        let why = "the command returns at once and succeeds even if the handoff fails; use \
            `handoffd reload`";
        add(Breaks, "ExecReload=", why.into());
    }
    if command.contains("ignore_errors=yes") {
        add(
            Breaks,
            "ExecReload=-",
            "the prefix - makes systemd report a failed reload as a success; remove it".into(),
        );
    }
    if by_signal && !matches!(unit.get("ReloadSignal"), "" | "1") {
        add(
            Breaks,
            "ReloadSignal",
            "the daemon expects SIGHUP as the request to reload; use ReloadSignal=SIGHUP".into(),
        );
    }
}

/// Checks that the reload command finds the control socket.
fn control_socket(unit: &Unit, findings: &mut Vec<Finding>) {
    let command = unit.get("ExecReload");
    if command.contains(" reload")
        && unit.get("RuntimeDirectory").is_empty()
        && !unit.get("ExecStart").contains("--control")
    {
        let why =
            "`handoffd reload` finds no control socket; set RuntimeDirectory=, or give --control \
            to the daemon and to this command"
                .into();
        findings.push(Finding { severity: Breaks, setting: "RuntimeDirectory=".into(), why });
    }
}

/// How long the new process may take to answer at the end of the bake.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks that systemd waits until a handoff has ended.
fn timeout(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    let configured = Duration::from_millis(
        daemon.settings.ready_timeout_ms.saturating_add(daemon.settings.bake_ms),
    );
    let handoff = configured.saturating_add(ANSWER_TIMEOUT);
    if let Some(limit) = unit.time("TimeoutStartUSec").filter(|limit| *limit <= handoff) {
        let why = format!(
            "this limit also applies to a reload, which may take {} (--ready-timeout, --bake and \
            5 s), so systemd may report a successful reload as failed; use a longer time",
            humantime::format_duration(handoff)
        );
        let setting = format!("TimeoutStartSec={}", humantime::format_duration(limit));
        findings.push(Finding { severity: Breaks, setting, why });
    }
}
