//! These tests apply the rules to handoffd's own unit file, in which they change single settings.

use super::*;
use crate::doctor::unit::Manager;

/// The properties that systemd shows for handoffd's own unit file. Properties that no rule reads
/// are omitted.
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
    (
        "ExecReload",
        "{ path=/usr/bin/env ; argv[]=/usr/bin/env /proc/${MAINPID}/exe reload ; ignore_errors=no ; }",
    ),
    ("RuntimeDirectory", "handoffd"),
    ("TimeoutStartUSec", "1min"),
    ("TimeoutStopUSec", "45s"),
    ("KillMode", "control-group"),
    ("KillSignal", "15"),
    ("NonBlocking", "yes"),
    ("FileDescriptorStoreMax", "128"),
    ("PrivateUsers", "no"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    (
        "SystemCallFilter",
        "clone close_range dup2 execve fcntl pidfd_open pidfd_send_signal sendmsg socketpair",
    ),
];

/// Replaces the settings in `changed` in handoffd's own unit file, and returns the problems that
/// the rules then find.
fn found(systemd: u32, changed: &[(&str, &str)]) -> Vec<(Severity, String)> {
    let properties =
        SHIPPED.iter().chain(changed).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let socket = [("Accept".to_owned(), "no".to_owned())].into();
    let sockets = vec![("handoffd.socket".to_owned(), socket)];
    let settings = Settings::from(&Config::default());
    let unit = Unit {
        systemd,
        manager: Manager::System,
        properties: properties.collect(),
        sockets,
        has_file_capabilities: changed.contains(&("setcap", "yes")),
    };
    let findings = examine(&unit, &Daemon { settings, bound: 2, paths: Vec::new(), programs: 0 });
    findings.into_iter().map(|finding| (finding.severity, finding.setting)).collect()
}

#[test]
fn the_shipped_unit_has_no_faults() {
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
        ("PrivateUsers", "yes"),
        ("InaccessiblePaths", "/home -/proc"),
        ("UMask", "0222"),
        ("UnsetEnvironment", "HOME RUNTIME_DIRECTORY"),
        ("UnsetEnvironment", "NOTIFY_SOCKET"),
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
        (
            "ExecReload",
            "{ path=/bin/kill ; argv[]=/bin/kill -HUP ${MAINPID} ; ignore_errors=no ; }",
            "ExecReload=",
        ),
        (
            "ExecReload",
            "{ path=/bin/x ; argv[]=/bin/x reload ; ignore_errors=yes ; }",
            "ExecReload=-",
        ),
        ("RuntimeDirectory", "", "RuntimeDirectory="),
        ("TimeoutStartUSec", "36s", "TimeoutStartSec=36s"),
        ("SystemCallFilter", "clone execve", "SystemCallFilter="),
        ("SystemCallFilter", "~ptrace execve:EPERM", "SystemCallFilter="),
    ] {
        assert_eq!(
            found(257, &[(property, value)]),
            [(Breaks, setting.to_owned())],
            "{property}={value}"
        );
    }
}

#[test]
fn init_mode_under_a_notified_service_manager_is_found() {
    let init = (
        "ExecStart",
        "{ path=/usr/bin/h ; argv[]=/usr/bin/h --init --bake 1 ; ignore_errors=no ; }",
    );
    assert_eq!(found(257, &[init]), [(Breaks, "Type=notify with --init".to_owned())]);
    let risks =
        ["Type=notify with --init", "NotifyAccess=all"].map(|setting| (Risks, setting.to_owned()));
    let mut all = found(257, &[init, ("NotifyAccess", "all")]);
    all.reverse();
    assert_eq!(all, risks);
    for kind in ["simple", "exec"] {
        assert_eq!(
            found(257, &[init, ("Type", kind)]),
            [],
            "systemd watches the process that stays"
        );
    }
    let other = (
        "ExecStart",
        "{ path=/usr/bin/--init ; argv[]=/usr/bin/h --initial ; ignore_errors=no ; }",
    );
    assert_eq!(found(257, &[other]), []);
}

/// A reload through `/proc` fails if the program has file capabilities. In a test, the user of the
/// program got "Permission denied" for `/proc/PID/exe`.
#[test]
fn file_capabilities_with_a_reload_by_proc_are_found() {
    let (setcap, user) = (("setcap", "yes"), ("User", "web"));
    for as_user in [user, ("DynamicUser", "yes")] {
        assert_eq!(found(257, &[setcap, as_user]), [(Breaks, "ExecReload=".to_owned())]);
    }
    for (harmless, why) in [
        (("User", "root"), "root may follow it"),
        (("NoNewPrivileges", "yes"), "nothing is gained"),
        (
            ("ExecReload", "{ path=/usr/bin/h ; argv[]=/usr/bin/h reload ; ignore_errors=no ; }"),
            "by its path",
        ),
        (
            ("ExecReloadEx", "{ path=/usr/bin/env ; argv[]=/usr/bin/env ; flags=privileged ; }"),
            "with a plus sign",
        ),
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
    ] {
        assert_eq!(
            found(257, &[(property, value)]),
            [(Risks, format!("{property}={value}"))],
            "{property}={value}"
        );
    }
    assert_eq!(
        found(257, &[("TimeoutStopUSec", "30s")]),
        [(Risks, "TimeoutStopSec=30s".to_owned())]
    );
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

/// A daemon with each of these settings was started and reloaded under a real systemd.
#[test]
fn a_sandbox_that_lets_reloads_through_is_accepted() {
    let by_path = ("ExecReload", "{ path=/usr/bin/h ; argv[]=/usr/bin/h reload ; }");
    assert_eq!(found(257, &[("PrivateUsers", "yes"), by_path]), []);
    let privileged = ("ExecReloadEx", "{ path=/usr/bin/env ; flags=privileged ; }");
    assert_eq!(found(257, &[("PrivateUsers", "yes"), privileged]), []);
    assert_eq!(found(257, &[("InaccessiblePaths", "/proc/sys /home"), ("UMask", "0477")]), []);
    let control =
        ("ExecStart", "{ path=/usr/bin/h ; argv[]=/usr/bin/h --control /run/h/control ; }");
    assert_eq!(found(257, &[("UnsetEnvironment", "RUNTIME_DIRECTORY"), control]), []);
}

/// Two settings limit the number of starts in a period. At either limit, systemd closes the socket,
/// although clients wait.
#[test]
fn limits_at_which_systemd_closes_the_socket_are_found() {
    let start_limit = [("StartLimitIntervalUSec", "10s"), ("StartLimitBurst", "5")];
    assert_eq!(found(257, &start_limit), [(Risks, "StartLimitIntervalSec=10s".to_owned())]);
    assert_eq!(found(257, &[start_limit[0], ("StartLimitBurst", "0")]), []);
    for (interval, burst, count) in [("2s", "20", 1), ("0", "20", 0), ("2s", "0", 0)] {
        let limit = [("TriggerLimitIntervalUSec", interval), ("TriggerLimitBurst", burst)];
        let socket = limit.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut unit = Unit {
            systemd: 257,
            manager: Manager::System,
            properties: [].into(),
            sockets: vec![("a.socket".to_owned(), socket)],
            has_file_capabilities: false,
        };
        let mut findings = Vec::new();
        limits_of_sockets(&unit, &mut findings);
        assert_eq!(findings.len(), count, "{interval} {burst}: {findings:?}");
        let setting = "a.socket: TriggerLimitIntervalSec=2s";
        assert!(findings.iter().all(|finding| finding.setting == setting), "{findings:?}");
        // Without a socket unit, systemd closes no socket, so the rule finds no problem.
        unit.sockets.clear();
        limits_of_sockets(&unit, &mut findings);
        assert_eq!(findings.len(), count);
    }
}

/// The rules report neither infinite timeouts nor settings that the installed systemd does not
/// know.
#[test]
fn infinite_timeouts_and_unknown_settings_are_accepted() {
    let infinite =
        [("TimeoutStartUSec", "infinity"), ("TimeoutStopUSec", "infinity"), ("ExitType", "")];
    assert_eq!(found(252, &infinite), []);
    assert_eq!(found(252, &[("RestrictAddressFamilies", ""), ("SystemCallFilter", "")]), []);
}

#[test]
fn a_stop_reaches_the_daemon_before_its_program() {
    let found = |changed: &[(&str, &str)]| {
        let properties = changed.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        let unit = Unit {
            systemd: 252,
            manager: Manager::System,
            properties: properties.collect(),
            sockets: Vec::new(),
            has_file_capabilities: false,
        };
        let mut findings = Vec::new();
        run::examine(&unit, &mut findings);
        findings.into_iter().map(|finding| (finding.severity, finding.setting)).collect::<Vec<_>>()
    };
    assert_eq!(found(&[("ExecStop", "{ path=/bin/sh ; }")]), []);
    assert_eq!(found(&[]), [(Breaks, "ExecStop=".into())]);
    assert_eq!(
        found(&[("ExecStop", "{ path=/bin/sh ; }"), ("MemoryDenyWriteExecute", "yes")]),
        [(Risks, "MemoryDenyWriteExecute=yes".into())]
    );
}
