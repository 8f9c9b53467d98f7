//! Reads the unit that the daemon runs under, and says which settings will break a handoff, and why.
//!
//! What the rules are is in `rules` and `starts`, each with its reason; where the facts come from is in `unit`. Nothing is
//! changed.

mod rules;
mod starts;
mod unit;

use std::path::PathBuf;

use handoffd::{Control, Error, Settings, one_line};

use rules::{Daemon, Severity, examine};
use unit::Unit;

use crate::output::print;

/// Runs the command: on the unit of that name, or on that of whoever answers on the control socket.
pub(crate) fn run(control: PathBuf, unit: Option<String>) -> Result<(), Error> {
    let status = Control::at(control).status();
    let daemon = match &status {
        Ok(status) => Daemon {
            settings: status.settings,
            bound: status.listeners.iter().filter(|listener| listener.bound).count(),
        },
        // One that does not run is judged by the defaults.
        Err(_) => Daemon { settings: default_settings(), bound: 0 },
    };
    let name = match (unit, status) {
        (Some(name), _) => name,
        (None, Ok(status)) => {
            let head = status.generations.iter().find(|report| report.generation == status.serving);
            unit::of_process(head.and_then(|report| report.pid))?
        }
        (None, Err(error)) => return Err(error),
    };
    let unit = Unit::read(&name)?;
    let findings = examine(&unit, &daemon);
    let mut text = String::new();
    for finding in &findings {
        let severity = match finding.severity {
            Severity::Breaks => "breaks",
            Severity::Risks => "risks",
        };
        text += &one_line(&format!("{severity:6}  {}: {}", finding.setting, finding.why));
        text.push('\n');
    }
    let breaks = findings.iter().filter(|finding| finding.severity == Severity::Breaks).count();
    let risks = findings.len() - breaks;
    text += &format!("{name} under systemd {}: {breaks} that break a handoff, {risks} that risk one\n", unit.systemd);
    print("the findings", &text)?;
    if breaks > 0 { Err(Error::Unsound { unit: name, count: breaks }) } else { Ok(()) }
}

fn default_settings() -> Settings {
    let config = handoffd::Config::default();
    let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Settings {
        ready_timeout_ms: milliseconds(config.ready_timeout),
        bake_ms: milliseconds(config.bake),
        drain_timeout_ms: milliseconds(config.drain_timeout),
    }
}
