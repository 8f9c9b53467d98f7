//! The `doctor` command, which reports the settings of the daemon's systemd unit that would break a
//! handoff, and why.
//!
//! The modules `rules`, `reload`, `starts`, `paths`, `sandbox`, `program` and `run` contain the
//! rules. The module `unit` reads the settings of the unit. The command changes nothing.

mod paths;
mod program;
mod reload;
mod rules;
mod run;
mod sandbox;
mod starts;
mod unit;

use handoffd::control::Control;
use handoffd::status::Status;
use handoffd::text::one_line;

use rules::{Daemon, Finding, Severity, examine};
use unit::{Manager, Place, Unit};

use crate::cli::{ControlPath, Scope};
use crate::failure::Failure;
use crate::output::print;

/// Runs the command on the named unit. Without a name, uses the unit of the daemon that answers on
/// the control socket.
pub(crate) fn run(control: ControlPath, unit: Option<String>, scope: Scope) -> Result<(), Failure> {
    let answer = Control::at(control.path()).status();
    let (place, status) = match unit {
        Some(name) => {
            let status = answer.ok();
            (named(&name, status.as_ref()), status)
        }
        None => {
            let status = answer?;
            (Place::of_the_daemon(&status)?, Some(status))
        }
    };
    let place = match scope {
        Scope::User => Place { manager: Manager::User, ..place },
        Scope::OfTheDaemon => place,
    };
    let unit = Unit::read(&place)?;
    let status = status.filter(|status| place.runs(status)).or_else(|| match &control {
        ControlPath::Given(_) => None,
        ControlPath::Default(_) => {
            let status = Control::at(unit.control_path()?).status().ok();
            status.filter(|status| place.runs(status))
        }
    });
    let daemon = status.as_ref().map_or_else(Daemon::assumed, Daemon::of);
    let note = match status {
        Some(_) => String::new(),
        None => format!(
            "no daemon of {} answers, so the default settings of the daemon are assumed{}\n",
            place.unit,
            match control {
                ControlPath::Given(_) => "",
                ControlPath::Default(_) => "; --control PATH names another control socket",
            }
        ),
    };
    report(&examine(&unit, &daemon), note, place, unit.systemd)
}

/// Returns the unit called `name`. If the daemon that answered runs in a unit of this name, returns
/// that unit, which may belong to a user. Otherwise the unit belongs to the system.
fn named(name: &str, status: Option<&Status>) -> Place {
    let of_the_daemon = status.and_then(|status| Place::of_the_daemon(status).ok());
    of_the_daemon
        .filter(|place| place.is_named(name))
        .unwrap_or_else(|| Place { unit: name.to_owned(), manager: Manager::System })
}

/// Prints `findings`, the problems in the unit at `place`, and then `note`. Returns an error if one
/// of the problems breaks a handoff.
fn report(findings: &[Finding], note: String, place: Place, systemd: u32) -> Result<(), Failure> {
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
    text += &note;
    text += &format!(
        "{} under {} {systemd}: {breaks} settings that break a handoff, {risks} that might break \
        one\n",
        place.unit, place.manager
    );
    print("the findings", &text)?;
    if breaks > 0 { Err(Failure::Unsound { unit: place.unit, count: breaks }) } else { Ok(()) }
}
