//! Rules about the paths of Unix listeners: whether a path survives a restart, and whether clients
//! can reach it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::rules::{Daemon, Finding, Severity};
use super::unit::Unit;

/// The path of a Unix listener that the daemon has bound itself, rather than inherited.
#[derive(Debug)]
pub(super) struct BoundPath {
    path: PathBuf,
    /// Whether any user may connect, not only the owner of the path.
    is_open: bool,
}

impl BoundPath {
    /// Returns the path of a Unix listener, or `None` if `address` is not a path.
    pub(super) fn of(address: &str) -> Option<Self> {
        let path = address.starts_with('/').then(|| PathBuf::from(address))?;
        let mode = fs::symlink_metadata(&path).map(|status| status.permissions().mode());
        Some(Self { path, is_open: mode.is_ok_and(|mode| mode & 0o022 != 0) })
    }

    /// Returns whether this path is in a directory that systemd creates and removes for the unit.
    fn lies_in_runtime_directory(&self, unit: &Unit) -> bool {
        let names = unit.get("RuntimeDirectory").split_whitespace();
        let mut names = names.map(|name| name.split(':').next().unwrap_or(name));
        let Ok(below) = self.path.strip_prefix("/run") else { return false };
        // A user's service manager creates the runtime directories of its units in /run/user/UID.
        let of_user = below
            .strip_prefix("user")
            .ok()
            .map(|rest| rest.components().skip(1).collect::<PathBuf>());
        names.any(|name| {
            below.starts_with(name) || of_user.as_ref().is_some_and(|below| below.starts_with(name))
        })
    }
}

/// Finds listener paths that are missing during a restart, or that clients cannot reach.
pub(super) fn paths(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    let mut add = |setting: String, why: String| {
        findings.push(Finding { severity: Severity::Risks, setting, why })
    };
    let is_kept = !matches!(unit.get("RuntimeDirectoryPreserve"), "no" | "");
    for bound in &daemon.paths {
        let path = bound.path.display();
        if bound.lies_in_runtime_directory(unit) {
            if !is_kept {
                let why = format!(
                    "a restart removes {path}, so clients are refused until it is back; use \
                    RuntimeDirectoryPreserve=restart"
                );
                add(
                    format!("RuntimeDirectoryPreserve={}", unit.get("RuntimeDirectoryPreserve")),
                    why,
                );
            }
            let is_private = is_kept && unit.is_yes("DynamicUser");
            if bound.is_open && is_private {
                let why = "systemd keeps the preserved directory of a dynamic user in \
                    /run/private, which only root can enter";
                add(
                    "DynamicUser=yes".to_owned(),
                    format!(
                        "other users cannot connect to {path}: {why}; set User= to a fixed user"
                    ),
                );
            }
            let mode = u32::from_str_radix(unit.get("RuntimeDirectoryMode"), 8).unwrap_or(0o755);
            if bound.is_open && mode & 0o011 == 0 {
                let why =
                    format!("other users cannot connect to {path}; use RuntimeDirectoryMode=0755");
                add(format!("RuntimeDirectoryMode={}", unit.get("RuntimeDirectoryMode")), why);
            }
        }
        let temporary = ["/tmp", "/var/tmp"].iter().any(|folder| bound.path.starts_with(folder));
        if temporary && !matches!(unit.get("PrivateTmp"), "no" | "") {
            add(
                format!("PrivateTmp={}", unit.get("PrivateTmp")),
                format!(
                    "other services do not see {path}, because the unit has its own /tmp; use a \
                    path in /run"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::unit::Manager;
    use super::*;

    /// Returns the settings that the rules report for a listener with this path.
    fn found(path: &str, is_open: bool, properties: &[(&str, &str)]) -> Vec<String> {
        let shipped = [
            ("RuntimeDirectory", "handoffd"),
            ("RuntimeDirectoryPreserve", "restart"),
            ("PrivateTmp", "yes"),
        ];
        let properties = shipped
            .iter()
            .chain(properties)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let unit = Unit {
            systemd: 257,
            manager: Manager::System,
            properties: properties.collect(),
            sockets: Vec::new(),
            has_file_capabilities: false,
        };
        let settings = handoffd::status::Settings::from(&handoffd::Config::default());
        let daemon = Daemon {
            settings,
            bound: 1,
            paths: vec![BoundPath { path: path.into(), is_open }],
            programs: 0,
        };
        let mut findings = Vec::new();
        paths(&unit, &daemon, &mut findings);
        findings.into_iter().map(|finding| finding.setting).collect()
    }

    #[test]
    fn a_path_that_a_restart_removes_is_found() {
        let gone = [("RuntimeDirectoryPreserve", "no")];
        assert_eq!(found("/run/handoffd/web.sock", false, &[]), [""; 0]);
        assert_eq!(found("/run/handoffd/web.sock", false, &gone), ["RuntimeDirectoryPreserve=no"]);
        assert_eq!(
            found("/run/user/1000/handoffd/web.sock", false, &gone),
            ["RuntimeDirectoryPreserve=no"]
        );
        assert_eq!(found("/run/other/web.sock", false, &gone), [""; 0]);
        assert_eq!(found("/tmp/web.sock", false, &gone), ["PrivateTmp=yes"]);
    }

    #[test]
    fn a_path_that_its_clients_cannot_reach_is_found() {
        let open = |properties| found("/run/handoffd/web.sock", true, properties);
        assert_eq!(open(&[("DynamicUser", "yes")]), ["DynamicUser=yes"]);
        assert_eq!(open(&[("RuntimeDirectoryMode", "0700")]), ["RuntimeDirectoryMode=0700"]);
        assert_eq!(open(&[("RuntimeDirectoryMode", "0755")]), [""; 0]);
        assert_eq!(found("/run/handoffd/web.sock", false, &[("DynamicUser", "yes")]), [""; 0]);
    }
}
