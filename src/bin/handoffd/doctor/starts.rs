//! A rule about how systemd restarts the daemon after a failed start.

use super::rules::{Finding, Severity};
use super::unit::Unit;

/// Finds a command in `ExecStartPre=` that systemd would retry forever if it failed, always after
/// the same short delay.
pub(super) fn failed_starts(unit: &Unit, findings: &mut Vec<Finding>) {
    let can_fail =
        unit.get("ExecStartPre").lines().any(|command| !command.contains("ignore_errors=yes"));
    let is_restarted = !matches!(
        unit.get("Restart"),
        "no" | "on-success" | "on-watchdog" | "on-abort" | "on-abnormal"
    );
    let is_bounded =
        unit.get("StartLimitIntervalUSec") != "0" || !matches!(unit.get("RestartSteps"), "" | "0");
    if !unit.get("ExecStartPre").is_empty() && can_fail && is_restarted && !is_bounded {
        let why = "if this command fails, systemd runs it again every RestartSec= forever, \
                   because RestartPreventExitStatus= does not apply to it; remove the command, or \
                   set RestartSteps=";
        findings.push(Finding {
            severity: Severity::Risks,
            setting: "ExecStartPre=".to_owned(),
            why: why.to_owned(),
        });
    }
}
