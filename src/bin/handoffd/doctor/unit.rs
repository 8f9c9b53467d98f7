//! The properties of a systemd unit. This module reads them with systemctl(1), because no other
//! interface is the same in all versions of systemd.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use handoffd::control::default_control_path;
use handoffd::status::Status;

use crate::cli::users_runtime_directory;
use crate::failure::Failure;

/// The properties of a systemd service, and of the socket units that start it.
#[derive(Debug)]
pub(super) struct Unit {
    /// The version number of the installed systemd.
    pub(super) systemd: u32,
    pub(super) manager: Manager,
    /// The properties of the service by name, as `systemctl show` prints them.
    pub(super) properties: BTreeMap<String, String>,
    /// The socket units that start the service: the name and the properties of each.
    pub(super) sockets: Vec<(String, BTreeMap<String, String>)>,
    /// Whether the program of the service has file capabilities.
    pub(super) has_file_capabilities: bool,
}

impl Unit {
    /// Asks systemd for the properties of a unit.
    ///
    /// # Errors
    /// Fails if systemd is not running, or if it has no unit with this name.
    pub(super) fn read(Place { unit: name, manager }: &Place) -> Result<Self, Failure> {
        let manager = *manager;
        let version = systemctl(manager, &["--version"])?;
        let systemd = version
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.split(['.', '~', '-']).next()?.parse().ok());
        let systemd = systemd.ok_or_else(|| {
            unreadable(format!("systemctl --version prints no version number: {version:?}"))
        })?;
        let properties = show(manager, name)?;
        if properties.get("LoadState").map(String::as_str) != Some("loaded") {
            return Err(unreadable(format!("{manager} has no unit {name}")));
        }
        let triggers = properties.get("TriggeredBy").cloned().unwrap_or_default();
        let sockets = triggers.split_whitespace().filter(|unit| unit.ends_with(".socket"));
        let sockets = sockets
            .map(|socket| Ok((socket.to_owned(), show(manager, socket)?)))
            .collect::<Result<_, Failure>>()?;
        let mut unit = Self { systemd, manager, properties, sockets, has_file_capabilities: false };
        unit.has_file_capabilities = unit.program().is_some_and(has_file_capabilities);
        Ok(unit)
    }

    /// Returns the path of the program that `ExecStart=` runs.
    fn program(&self) -> Option<&str> {
        self.get("ExecStart").split_once("path=")?.1.split(" ;").next()
    }

    /// Returns whether `ExecStart=` passes `argument` to the program.
    pub(super) fn has_argument(&self, argument: &str) -> bool {
        self.get("ExecStart").split_whitespace().any(|word| word == argument)
    }

    /// Returns the value of a property. The value is empty if the installed systemd does not know
    /// the property.
    pub(super) fn get(&self, property: &str) -> &str {
        self.properties.get(property).map_or("", String::as_str)
    }

    /// Returns the path of the control socket in the runtime directory of the unit, if it has one.
    pub(super) fn control_path(&self) -> Option<PathBuf> {
        // `NAME:LINK` also creates a symbolic link to the directory.
        let directory =
            self.get("RuntimeDirectory").split_whitespace().next()?.split(':').next()?;
        let above = match self.manager {
            Manager::System => PathBuf::from("/run"),
            Manager::User => users_runtime_directory(nix::unistd::getuid().as_raw()),
            Manager::Of(user) => users_runtime_directory(user),
        };
        Some(default_control_path(Some(&above.join(directory))))
    }

    /// Returns whether the value of a property is `yes`.
    pub(super) fn is_yes(&self, property: &str) -> bool {
        self.get(property) == "yes"
    }

    /// Returns the value of a property that is a time limit. Returns `None` for `infinity`, and for
    /// a property that the installed systemd does not know.
    pub(super) fn time(&self, property: &str) -> Option<Duration> {
        humantime::parse_duration(self.get(property)).ok()
    }
}

/// The name of a unit, and the service manager that runs the unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) unit: String,
    pub(super) manager: Manager,
}

/// A systemd service manager: the system's or a user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    System,
    /// The service manager of the calling user.
    User,
    /// The service manager of the user with this id.
    Of(u32),
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("systemd"),
            Self::User => f.write_str("the user's systemd"),
            Self::Of(user) => write!(f, "the systemd of user {user}"),
        }
    }
}

impl Place {
    /// Returns the unit in which a daemon runs, found by the daemon's control group. The daemon's
    /// status normally contains its control group. But a daemon in its own cgroup namespace sees
    /// only `/`. In that case this function asks the kernel about the daemon's process.
    pub(super) fn of_the_daemon(status: &Status) -> Result<Self, Failure> {
        let asking = nix::unistd::getuid().as_raw();
        let head = status.generations.iter().find(|report| report.generation == status.serving);
        let reported = head.and_then(|report| report.identity.control_group.as_deref());
        if let Some(place) = reported.and_then(|group| Self::of_group(group, asking)) {
            return Ok(place);
        }
        let pid = head.and_then(|report| report.pid);
        let pid = pid
            .ok_or_else(|| unreadable("the serving process has not reported its pid".to_owned()))?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|source| {
            Failure::System { doing: "read the control group of the serving process", source }
        })?;
        let place = groups.lines().find_map(|line| Self::of_group(line, asking));
        place.ok_or_else(|| {
            unreadable("the serving process does not run in a systemd service".to_owned())
        })
    }

    /// Returns the unit to which a control group belongs. The control groups of a user's units are
    /// below `user@UID.service`.
    fn of_group(group: &str, asking: u32) -> Option<Self> {
        let parts: Vec<&str> = group.split('/').collect();
        let user =
            |part: &str| part.strip_prefix("user@")?.strip_suffix(".service")?.parse::<u32>().ok();
        let service = |parts: &[&str]| {
            parts.iter().rfind(|part| part.ends_with(".service")).map(|part| (*part).to_owned())
        };
        let of_user = parts.iter().enumerate().find_map(|(index, part)| Some((user(part)?, index)));
        if let Some((user, index)) = of_user {
            if let Some(unit) = service(&parts[index + 1..]) {
                return Some(Self {
                    unit,
                    manager: if user == asking { Manager::User } else { Manager::Of(user) },
                });
            }
        }
        service(&parts).map(|unit| Self { unit, manager: Manager::System })
    }

    /// Returns whether the daemon that reported `status` runs in this unit.
    pub(super) fn runs(&self, status: &Status) -> bool {
        Self::of_the_daemon(status).is_ok_and(|place| place.is_named(&self.unit))
    }

    /// Returns whether `name` refers to this unit. As in systemctl(1), the suffix `.service` may be
    /// omitted.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.unit == name || self.unit.strip_suffix(".service") == Some(name)
    }
}

fn show(manager: Manager, unit: &str) -> Result<BTreeMap<String, String>, Failure> {
    let text = systemctl(manager, &["show", "--no-pager", "--all", "--", unit])?;
    let mut properties = BTreeMap::<String, String>::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        // Join the values with line breaks, because systemctl prints a separate line for each
        // command of a setting.
        let add = |before: &mut String| *before += &format!("\n{value}");
        properties.entry(key.to_owned()).and_modify(add).or_insert(value.to_owned());
    }
    Ok(properties)
}

fn systemctl(manager: Manager, words: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new("systemctl");
    let command = match manager {
        Manager::System => &mut command,
        Manager::User => command.arg("--user"),
        Manager::Of(user) => command.args(["--user", &format!("--machine={user}@.host")]),
    };
    let ran = command.args(words).output();
    let ran = ran.map_err(|source| Failure::System { doing: "run systemctl", source })?;
    if !ran.status.success() {
        return Err(unreadable(String::from_utf8_lossy(&ran.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Returns whether a program has file capabilities (see capabilities(7)).
fn has_file_capabilities(program: &str) -> bool {
    rustix::fs::getxattr(program, "security.capability", &mut [0u8; 64])
        .is_ok_and(|length| length > 0)
}

pub(super) fn unreadable(why: String) -> Failure {
    Failure::System { doing: "read the unit", source: std::io::Error::other(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_tells_the_unit_and_its_manager() {
        let place = |unit: &str, manager| Some(Place { unit: unit.to_owned(), manager });
        for (group, expected) in [
            ("/system.slice/handoffd.service", place("handoffd.service", Manager::System)),
            (
                "1:name=systemd:/system.slice/handoffd.service/below",
                place("handoffd.service", Manager::System),
            ),
            (
                "/user.slice/user-7.slice/user@7.service/app.slice/h.service",
                place("h.service", Manager::User),
            ),
            (
                "/user.slice/user-8.slice/user@8.service/app.slice/h.service",
                place("h.service", Manager::Of(8)),
            ),
            (
                "/user.slice/user-7.slice/user@7.service/init.scope",
                place("user@7.service", Manager::System),
            ),
            ("/user.slice/user-7.slice/session-1.scope", None),
            ("/", None),
        ] {
            assert_eq!(Place::of_group(group, 7), expected, "{group}");
        }
        let unit = place("handoffd.service", Manager::System).unwrap();
        assert!(
            unit.is_named("handoffd")
                && unit.is_named("handoffd.service")
                && !unit.is_named("other")
        );
    }
}
