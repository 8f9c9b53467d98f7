//! Judges a unit: each rule is a setting, what is wrong with it, and why that breaks a handoff.
//!
//! Every rule was seen on a real systemd, or stands in the manual page that it names. A property that this systemd does not
//! know reads as empty, and no rule holds an empty one against a unit.

use std::time::Duration;

use handoffd::Settings;

use super::paths::{BoundPath, paths};
use super::program;
use super::starts::failed_starts;
use super::unit::Unit;

/// What is known of the daemon itself.
pub(super) struct Daemon {
    pub(super) settings: Settings,
    /// How many listeners the line has bound itself.
    pub(super) bound: usize,
    /// The paths of those that have one.
    pub(super) paths: Vec<BoundPath>,
}

/// Something that is not as it should be.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// The setting, as it stands.
    pub(super) setting: String,
    pub(super) why: String,
}

/// How bad that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// A handoff, or what is said of it, goes wrong.
    Breaks,
    /// It goes wrong when something else does.
    Risks,
}
use Severity::{Breaks, Risks};

/// The oldest systemd that this was tried with.
const OLDEST: u32 = 252;

/// What a generation asks of the kernel to start its successor.
const NEEDED_CALLS: [&str; 9] =
    ["clone", "close_range", "dup2", "execve", "fcntl", "pidfd_open", "pidfd_send_signal", "sendmsg", "socketpair"];

/// All that is not as it should be, what breaks first.
pub(super) fn examine(unit: &Unit, daemon: &Daemon) -> Vec<Finding> {
    let mut findings = Vec::new();
    main_process(unit, &mut findings);
    failed_starts(unit, &mut findings);
    reload(unit, daemon, &mut findings);
    stop(unit, daemon, &mut findings);
    sockets(unit, daemon, &mut findings);
    paths(unit, daemon, &mut findings);
    sandbox(unit, &mut findings);
    program::examine(unit, &mut findings);
    if unit.systemd < OLDEST {
        let setting = format!("systemd {}", unit.systemd);
        findings.push(Finding { severity: Risks, setting, why: format!("nothing older than {OLDEST} was tried") });
    }
    findings.sort_by_key(|finding| finding.severity == Risks);
    findings
}

impl Unit {
    /// A finding about a property, with its value.
    fn finding(&self, severity: Severity, property: &str, why: &str) -> Finding {
        Finding { severity, setting: format!("{property}={}", self.get(property)), why: why.to_owned() }
    }
}

/// Whether systemd learns who the main process is, and sees it die.
fn main_process(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add = |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    match unit.get("Type") {
        "notify" => {}
        "notify-reload" if unit.systemd < 253 => {
            add(Breaks, "Type", "this systemd does not know it, and takes it for simple")
        }
        "notify-reload" if unit.systemd < 259 => {
            add(Breaks, "Type", "a reload whose end is not told hangs for ever before systemd 259");
        }
        "notify-reload" => add(Risks, "Type", "a reload that failed ends with 0: only the status line says so"),
        "simple" | "exec" if program::keeps_first_process(unit) => {}
        _ => add(
            Breaks,
            "Type",
            "systemd does not hear of a new main process, and ends the service with the first; use notify",
        ),
    }
    match unit.get("NotifyAccess") {
        "main" => {}
        "none" => add(Breaks, "NotifyAccess", "nothing is heard: the start times out; use main"),
        _ => add(Risks, "NotifyAccess", "others than the main process are heard, and may stop the unit; use main"),
    }
    if unit.get("ExitType") == "cgroup" {
        add(Breaks, "ExitType", "while an old generation drains, the death of the main process is not seen; use main");
    }
    if unit.is_yes("RemainAfterExit") {
        add(Risks, "RemainAfterExit", "a service that has ended looks as if it ran");
    }
    if matches!(unit.get("Restart"), "no" | "on-success" | "on-watchdog") {
        add(Risks, "Restart", "when all generations die nobody starts the service anew; use on-failure");
    }
    if matches!(unit.get("OOMPolicy"), "stop" | "kill") {
        add(Risks, "OOMPolicy", "one old generation that runs out of memory stops the new one too; use continue");
    }
    if unit.is_yes("NeedDaemonReload") {
        add(
            Risks,
            "NeedDaemonReload",
            "the unit file has changed: that takes effect with daemon-reload and a restart alone",
        );
    }
}

/// Whether `systemctl reload` tells the truth.
fn reload(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    let mut add = |severity, setting: &str, why: String| {
        findings.push(Finding { severity, setting: setting.to_owned(), why });
    };
    let command = unit.get("ExecReload");
    let by_signal = unit.get("Type") == "notify-reload";
    if command.is_empty() && !by_signal {
        add(Risks, "ExecReload=", "systemctl reload is refused; use `/usr/bin/env /proc/${MAINPID}/exe reload`".into());
    }
    if !command.is_empty() && by_signal {
        add(
            Breaks,
            "ExecReload=",
            "with Type=notify-reload the signal is sent as well, also when this command fails".into(),
        );
    }
    if command.contains("kill ") || command.contains("/kill") {
        let why = "it returns at once and always succeeds, whatever becomes of the handoff; use `handoffd reload`";
        add(Breaks, "ExecReload=", why.into());
    }
    if command.contains("ignore_errors=yes") {
        add(Breaks, "ExecReload=-", "a reload that failed is reported as one that did not".into());
    }
    if command.contains(" reload")
        && unit.get("RuntimeDirectory").is_empty()
        && !unit.get("ExecStart").contains("--control")
    {
        let why = "there is nowhere to listen for `handoffd reload`; set it, or --control on both sides".into();
        add(Breaks, "RuntimeDirectory=", why);
    }
    if by_signal && !matches!(unit.get("ReloadSignal"), "" | "1") {
        add(Breaks, "ReloadSignal", "only SIGHUP asks for a handoff".into());
    }
    let handoff = Duration::from_millis(daemon.settings.ready_timeout_ms.saturating_add(daemon.settings.bake_ms));
    if let Some(limit) = unit.time("TimeoutStartUSec").filter(|limit| *limit <= handoff) {
        let why = format!(
            "it bounds a reload, and --ready-timeout and --bake together are {}: one that would succeed is called a failure",
            humantime::format_duration(handoff)
        );
        add(Breaks, &format!("TimeoutStartSec={}", humantime::format_duration(limit)), why);
    }
}

/// Whether a stop drains all generations.
fn stop(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    let mut add = |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    match unit.get("KillMode") {
        "control-group" | "" => {}
        "mixed" => add(
            Breaks,
            "KillMode",
            "old generations are killed as soon as the main process has ended; use control-group",
        ),
        _ => add(Breaks, "KillMode", "old generations are not told to stop, and are left behind; use control-group"),
    }
    match unit.get("KillSignal") {
        "15" | "2" | "" => {}
        "1" => add(Breaks, "KillSignal", "SIGHUP asks for a handoff, and not for an end; use SIGTERM"),
        "3" => add(Breaks, "KillSignal", "SIGQUIT cuts every connection; use SIGTERM"),
        _ => add(Breaks, "KillSignal", "the daemon does not take it for a stop; use SIGTERM"),
    }
    if unit.is_yes("SendSIGHUP") {
        add(Risks, "SendSIGHUP", "a stop also asks for a handoff");
    }
    let drain = Duration::from_millis(daemon.settings.drain_timeout_ms);
    if let Some(limit) = unit.time("TimeoutStopUSec").filter(|limit| *limit <= drain) {
        let why = format!(
            "--drain-timeout is {}: a stop that makes no progress is killed before its time",
            humantime::format_duration(drain)
        );
        let setting = format!("TimeoutStopSec={}", humantime::format_duration(limit));
        findings.push(Finding { severity: Risks, setting, why });
    }
}

/// Whether nobody is refused when all generations die.
fn sockets(unit: &Unit, daemon: &Daemon, findings: &mut Vec<Finding>) {
    if !unit.sockets.is_empty() && unit.get("NonBlocking") == "no" {
        let why = "whatever else starts on the same socket turns it blocking while we serve; use true";
        findings.push(unit.finding(Risks, "NonBlocking", why));
    }
    for (name, socket) in &unit.sockets {
        if socket.get("Accept").is_some_and(|accept| accept == "yes") {
            let (setting, why) =
                (format!("Accept=yes in {name}"), "systemd passes connections, and no listener".into());
            findings.push(Finding { severity: Breaks, setting, why });
        }
    }
    let room: usize = unit.get("FileDescriptorStoreMax").parse().unwrap_or(usize::MAX);
    if room < daemon.bound {
        let why = format!("the daemon has bound {} sockets: who comes after a crash is refused", daemon.bound);
        findings.push(Finding { why, ..unit.finding(Risks, "FileDescriptorStoreMax", "") });
    }
}

/// Whether the sandbox lets a generation start its successor and be heard.
fn sandbox(unit: &Unit, findings: &mut Vec<Finding>) {
    let mut add = |severity, property, why: &str| findings.push(unit.finding(severity, property, why));
    if unit.is_yes("PrivatePIDs") {
        add(Breaks, "PrivatePIDs", "the main process is process 1 of its own namespace, and all others end with it");
    }
    if !matches!(unit.get("PrivateUsers"), "no" | "") {
        add(Risks, "PrivateUsers", "root is nobody in there, so that `handoffd status` by root is refused");
    }
    let families = unit.get("RestrictAddressFamilies");
    let listed = families.split_whitespace().any(|family| family.trim_start_matches('~') == "AF_UNIX");
    let forbids = if families.starts_with('~') { listed } else { !families.is_empty() && !listed };
    if forbids {
        add(Breaks, "RestrictAddressFamilies", "without AF_UNIX nothing can be said to systemd: the start times out");
    }
    let filter = unit.get("SystemCallFilter");
    let named: Vec<&str> =
        filter.trim_start_matches('~').split_whitespace().map(|call| call.split(':').next().unwrap_or(call)).collect();
    let denies = filter.starts_with('~');
    let missing: Vec<_> = NEEDED_CALLS.into_iter().filter(|call| named.contains(call) == denies).collect();
    if !filter.is_empty() && !missing.is_empty() {
        let why = format!("a generation needs {} to start its successor", missing.join(", "));
        findings.push(Finding { severity: Breaks, setting: "SystemCallFilter=".to_owned(), why });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::unit::Manager;

    /// What systemd shows of the unit that we ship, as far as any rule looks.
    const SHIPPED: [(&str, &str); 20] = [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExitType", "main"),
        ("RemainAfterExit", "no"),
        ("Restart", "on-failure"),
        ("StartLimitIntervalUSec", "0"),
        ("RestartSteps", "0"),
        ("OOMPolicy", "continue"),
        ("NeedDaemonReload", "no"),
        ("ExecReload", "{ path=/usr/bin/env ; argv[]=/usr/bin/env /proc/${MAINPID}/exe reload ; ignore_errors=no ; }"),
        ("RuntimeDirectory", "handoffd"),
        ("TimeoutStartUSec", "1min"),
        ("TimeoutStopUSec", "45s"),
        ("KillMode", "control-group"),
        ("KillSignal", "15"),
        ("NonBlocking", "yes"),
        ("FileDescriptorStoreMax", "128"),
        ("PrivateUsers", "no"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("SystemCallFilter", "clone close_range dup2 execve fcntl pidfd_open pidfd_send_signal sendmsg socketpair"),
    ];

    /// What is found in the shipped unit with other values for some properties.
    fn found(systemd: u32, changed: &[(&str, &str)]) -> Vec<(Severity, String)> {
        let properties = SHIPPED.iter().chain(changed).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let socket = [("Accept".to_owned(), "no".to_owned())].into();
        let sockets = vec![("handoffd.socket".to_owned(), socket)];
        let settings = Settings { ready_timeout_ms: 30_000, bake_ms: 1_000, drain_timeout_ms: 30_000 };
        let unit = Unit {
            systemd,
            manager: Manager::System,
            properties: properties.collect(),
            sockets,
            has_file_capabilities: changed.contains(&("setcap", "yes")),
        };
        let findings = examine(&unit, &Daemon { settings, bound: 2, paths: Vec::new() });
        findings.into_iter().map(|finding| (finding.severity, finding.setting)).collect()
    }

    #[test]
    fn nothing_is_wrong_with_the_unit_that_we_ship() {
        assert_eq!(found(252, &[]), []);
        assert_eq!(found(262, &[]), []);
    }

    #[test]
    fn each_setting_that_breaks_a_handoff_is_found() {
        for (property, value) in [
            ("Type", "simple"),
            ("NotifyAccess", "none"),
            ("ExitType", "cgroup"),
            ("KillMode", "mixed"),
            ("KillMode", "process"),
            ("KillSignal", "1"),
            ("KillSignal", "3"),
            ("KillSignal", "10"),
            ("PrivatePIDs", "yes"),
            ("RestrictAddressFamilies", "AF_INET"),
            ("RestrictAddressFamilies", "~AF_PACKET AF_UNIX"),
        ] {
            assert_eq!(
                found(257, &[(property, value)]),
                [(Breaks, format!("{property}={value}"))],
                "{property}={value}"
            );
        }
        for (property, value, setting) in [
            ("ExecReload", "{ path=/bin/kill ; argv[]=/bin/kill -HUP ${MAINPID} ; ignore_errors=no ; }", "ExecReload="),
            ("ExecReload", "{ path=/bin/x ; argv[]=/bin/x reload ; ignore_errors=yes ; }", "ExecReload=-"),
            ("RuntimeDirectory", "", "RuntimeDirectory="),
            ("TimeoutStartUSec", "31s", "TimeoutStartSec=31s"),
            ("SystemCallFilter", "clone execve", "SystemCallFilter="),
            ("SystemCallFilter", "~ptrace execve:EPERM", "SystemCallFilter="),
        ] {
            assert_eq!(found(257, &[(property, value)]), [(Breaks, setting.to_owned())], "{property}={value}");
        }
    }

    #[test]
    fn an_init_of_ours_under_a_manager_that_is_notified_is_found() {
        let init = ("ExecStart", "{ path=/usr/bin/h ; argv[]=/usr/bin/h --init --bake 1 ; ignore_errors=no ; }");
        assert_eq!(found(257, &[init]), [(Breaks, "Type=notify with --init".to_owned())]);
        let risks = ["Type=notify with --init", "NotifyAccess=all"].map(|setting| (Risks, setting.to_owned()));
        let mut all = found(257, &[init, ("NotifyAccess", "all")]);
        all.reverse();
        assert_eq!(all, risks);
        for kind in ["simple", "exec"] {
            assert_eq!(found(257, &[init, ("Type", kind)]), [], "systemd watches the process that stays");
        }
        let other = ("ExecStart", "{ path=/usr/bin/--init ; argv[]=/usr/bin/h --initial ; ignore_errors=no ; }");
        assert_eq!(found(257, &[other]), []);
    }

    /// Seen: the user of a program with file capabilities gets "Permission denied" for `/proc/PID/exe`.
    #[test]
    fn file_capabilities_with_a_reload_by_proc_are_found() {
        let (setcap, user) = (("setcap", "yes"), ("User", "web"));
        for as_user in [user, ("DynamicUser", "yes")] {
            assert_eq!(found(257, &[setcap, as_user]), [(Breaks, "ExecReload=".to_owned())]);
        }
        for (harmless, why) in [
            (("User", "root"), "root may follow it"),
            (("NoNewPrivileges", "yes"), "nothing is gained"),
            (("ExecReload", "{ path=/usr/bin/h ; argv[]=/usr/bin/h reload ; ignore_errors=no ; }"), "by its path"),
            (("ExecReloadEx", "{ path=/usr/bin/env ; argv[]=/usr/bin/env ; flags=privileged ; }"), "with a plus sign"),
        ] {
            assert_eq!(found(257, &[setcap, user, harmless]), [], "{why}");
        }
        assert_eq!(found(257, &[user]), []);
    }

    #[test]
    fn each_setting_that_risks_a_handoff_is_found() {
        for (property, value) in [
            ("NotifyAccess", "all"),
            ("RemainAfterExit", "yes"),
            ("Restart", "no"),
            ("OOMPolicy", "stop"),
            ("NeedDaemonReload", "yes"),
            ("SendSIGHUP", "yes"),
            ("NonBlocking", "no"),
            ("FileDescriptorStoreMax", "1"),
            ("PrivateUsers", "yes"),
        ] {
            assert_eq!(
                found(257, &[(property, value)]),
                [(Risks, format!("{property}={value}"))],
                "{property}={value}"
            );
        }
        assert_eq!(found(257, &[("TimeoutStopUSec", "30s")]), [(Risks, "TimeoutStopSec=30s".to_owned())]);
        assert_eq!(found(257, &[("ExecReload", "")]), [(Risks, "ExecReload=".to_owned())]);
        let commands = "{ path=/bin/a ; ignore_errors=no ; }\n{ path=/bin/b ; ignore_errors=yes ; }";
        assert_eq!(found(257, &[("ExecStartPre", commands)]), [(Risks, "ExecStartPre=".to_owned())]);
        assert_eq!(found(257, &[("ExecStartPre", commands), ("RestartSteps", "8")]), []);
        assert_eq!(found(250, &[]), [(Risks, "systemd 250".to_owned())]);
    }

    #[test]
    fn the_variant_is_good_from_259_on() {
        let variant = [("Type", "notify-reload"), ("ExecReload", ""), ("ReloadSignal", "1")];
        let setting = || "Type=notify-reload".to_owned();
        assert_eq!(found(252, &variant), [(Breaks, setting())]);
        assert_eq!(found(257, &variant), [(Breaks, setting())]);
        assert_eq!(found(262, &variant), [(Risks, setting())]);
    }

    #[test]
    fn without_bounds_and_with_what_an_older_systemd_does_not_know_nothing_is_wrong() {
        let infinite = [("TimeoutStartUSec", "infinity"), ("TimeoutStopUSec", "infinity"), ("ExitType", "")];
        assert_eq!(found(252, &infinite), []);
        assert_eq!(found(252, &[("RestrictAddressFamilies", ""), ("SystemCallFilter", "")]), []);
    }
}
