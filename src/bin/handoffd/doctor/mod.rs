//! The `doctor` command, which reports the settings of the daemon's systemd unit that would break a
//! handoff, and why.
//!
//! The modules `rules`, `reload`, `starts`, `paths`, `program` and `run` contain the rules.
//! The module `unit` reads the settings of the unit. The command changes nothing.

mod paths;
mod program;
mod reload;
mod rules;
mod run;
mod starts;
mod unit;

use std::path::PathBuf;

use handoffd::Config;
use handoffd::control::Control;
use handoffd::status::Settings;
use handoffd::text::one_line;

use rules::{Daemon, Finding, Severity, examine};
use unit::{Manager, Place, Unit};

use crate::cli::Scope;
use crate::failure::Failure;
use crate::output::print;

/// Runs the command on the named unit. Without a name, uses the unit of the daemon that answers on
/// the control socket.
pub(crate) fn run(control: PathBuf, unit: Option<String>, scope: Scope) -> Result<(), Failure> {
    let status = Control::at(control).status();
    let answering = status.as_ref().ok().map(Place::of_the_daemon);
    let place = match (unit, answering) {
        (Some(name), Some(Ok(place))) if place.is_named(&name) => place,
        (Some(name), _) => Place { unit: name, manager: Manager::System },
        (None, Some(place)) => place?,
        (None, None) => {
            let silent = || unit::unreadable("no daemon answers".to_owned());
            return Err(status.err().map_or_else(silent, Failure::from));
        }
    };
    let place = match scope {
        Scope::User => Place { manager: Manager::User, ..place },
        Scope::OfTheDaemon => place,
    };
    let daemon = match &status {
        // Use the status of the running daemon only if that daemon runs in the examined unit.
        Ok(status)
            if Place::of_the_daemon(status).is_ok_and(|daemon| daemon.is_named(&place.unit)) =>
        {
            Daemon::of(status)
        }
        // Assume the default settings, because no daemon of this unit has replied.
        Ok(_) | Err(_) => Daemon {
            settings: Settings::from(&Config::default()),
            bound: 0,
            paths: Vec::new(),
            programs: 0,
        },
    };
    let unit = Unit::read(&place)?;
    report(&examine(&unit, &daemon), place, unit.systemd)
}

/// Prints the problems found in the unit at `place`. Returns an error if one breaks a handoff.
fn report(findings: &[Finding], place: Place, systemd: u32) -> Result<(), Failure> {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Breaks => "breaks",
            Severity::Risks => "risks",
        };
        text += &one_line(&format!("{severity:6}  {}: {}", finding.setting, finding.why));
        text.push('\n');
    }
    let breaks = findings.iter().filter(|finding| finding.severity == Severity::Breaks).count();
    let risks = findings.len() - breaks;
    text += &format!(
        "{} under {} {systemd}: {breaks} settings that break a handoff, {risks} that might break \
        one\n",
        place.unit, place.manager
    );
    print("the findings", &text)?;
    if breaks > 0 { Err(Failure::Unsound { unit: place.unit, count: breaks }) } else { Ok(()) }
}
