//! Rules about what systemd does after a failed start of the daemon.

use super::rules::{Finding, Severity};
use super::unit::Unit;

/// Finds the limits on failed starts at which systemd closes the service's socket, even though
/// clients wait for the service.
pub(super) fn limits_of_sockets(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add = |setting: String, value: &str, instead: &str| {
        let setting = format!("{setting}={value}");
        let why = format!(
            "after too many failed starts in this time, systemd closes the socket and resets \
             the waiting clients; use {instead}=0"
        );
        findings.push(Finding { severity: Severity::Risks, setting, why });
    };
    for (name, socket) in &unit.sockets {
        let get = |property| socket.get(property).map_or("", String::as_str);
        let interval = get("TriggerLimitIntervalUSec");
        if !matches!(interval, "" | "0") && get("TriggerLimitBurst") != "0" {
            let setting = "TriggerLimitIntervalSec";
            add(format!("{name}: {setting}"), interval, setting);
        }
    }
    let interval = unit.get("StartLimitIntervalUSec");
    if !unit.sockets.is_empty()
        && !matches!(interval, "" | "0")
        && unit.get("StartLimitBurst") != "0"
    {
        add("StartLimitIntervalSec".into(), interval, "StartLimitIntervalSec");
    }
}

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
