//! Rules for a unit whose daemon runs a program (`handoffd run`).
//!
//! The processes of the program belong to the unit too, so systemd also stops and restricts them.

use super::rules::{Finding, Severity};
use super::unit::Unit;

/// Applies the rules for a unit that runs a program, and adds the problems to `findings`.
pub(super) fn examine(unit: &Unit, findings: &mut Vec<Finding>) {
    if unit.get("ExecStop").is_empty() && unit.get("KillMode") != "none" {
        findings.push(Finding {
            severity: Severity::Breaks,
            setting: "ExecStop=".into(),
            why: "on a stop, systemd tells the program to stop at once, although its connections \
                are still open; use the command of handoffd-run@.service, which tells handoffd \
                alone"
                .into(),
        });
    }
    if unit.is_yes("MemoryDenyWriteExecute") {
        findings.push(Finding {
            severity: Severity::Risks,
            setting: "MemoryDenyWriteExecute=yes".into(),
            why: "a program that compiles code while it runs, such as Node or Java, does not \
                start; use MemoryDenyWriteExecute=no"
                .into(),
        });
    }
}
