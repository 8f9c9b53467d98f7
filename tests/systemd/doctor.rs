//! Tests of `handoffd doctor`: it finds what breaks a handoff under each version of systemd, and
//! finds nothing in the shipped unit.

use crate::lab::{Lab, PROGRAM};
use crate::system::System;

/// Bad drop-ins, each with the finding of the doctor and its exit code.
const ILLS: [(&str, &str, i32); 20] = [
    ("Type=exec", "breaks  Type=exec: ", 78),
    ("NotifyAccess=all", "risks   NotifyAccess=all: ", 0),
    ("KillMode=mixed", "breaks  KillMode=mixed: ", 78),
    ("KillMode=process", "breaks  KillMode=process: ", 78),
    ("KillSignal=SIGHUP", "breaks  KillSignal=1: ", 78),
    ("ExecReload=\nExecReload=kill -HUP $MAINPID", "breaks  ExecReload=: the command returns", 78),
    (
        "ExecReload=\nExecReload=-/usr/bin/env /proc/${MAINPID}/exe reload",
        "breaks  ExecReload=-: ",
        78,
    ),
    ("TimeoutStartSec=20", "breaks  TimeoutStartSec=20s: ", 78),
    ("TimeoutStopSec=20", "risks   TimeoutStopSec=20s: ", 0),
    (
        "ExecStartPre=true\nExecStartPre=-true",
        "risks   ExecStartPre=: if this command fails, systemd runs it again",
        0,
    ),
    ("OOMPolicy=stop", "risks   OOMPolicy=stop: ", 0),
    ("NonBlocking=no", "risks   NonBlocking=no: ", 0),
    ("[Unit]\nStartLimitIntervalSec=10", "risks   StartLimitIntervalSec=10s: ", 0),
    (
        "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_INET",
        "breaks  RestrictAddressFamilies=AF_INET: ",
        78,
    ),
    (
        "SystemCallFilter=~execve",
        "breaks  SystemCallFilter=: a reload cannot start a new process without these system \
        calls: execve; ",
        78,
    ),
    ("PrivateUsers=yes", "breaks  PrivateUsers=yes: ", 78),
    ("UMask=0777", "breaks  UMask=0777: ", 78),
    ("InaccessiblePaths=-/proc", "breaks  InaccessiblePaths=-/proc: ", 78),
    (
        "UnsetEnvironment=RUNTIME_DIRECTORY",
        "breaks  UnsetEnvironment=RUNTIME_DIRECTORY: the daemon needs what systemd tells",
        78,
    ),
    (
        "ExecStart=\nExecStart=/usr/local/bin/handoffd --init",
        "breaks  Type=notify with --init: ",
        78,
    ),
];

pub(crate) fn the_doctor_names_what_breaks_a_handoff(system: System) {
    let lab = Lab::serving(system);
    // The unit is found by the control socket or by its name.
    for words in [&[PROGRAM, "doctor"][..], &[PROGRAM, "doctor", "handoffd.service"]] {
        let said = lab.run(words).well();
        assert!(said.starts_with("handoffd.service under systemd 2"), "{said}");
        assert!(
            said.trim_end().ends_with(": 0 settings that break a handoff, 0 that might break one"),
            "{said}"
        );
    }
    let name = "handoffd.service.d/ill.conf";
    for (setting, found, code) in ILLS {
        lab.install(name, &format!("[Service]\n{setting}\n"));
        let said = lab.run(&[PROGRAM, "doctor"]);
        assert_eq!(said.code, code, "{setting}: {said:?}");
        let findings: Vec<_> =
            said.out.lines().filter(|line| !line.starts_with("handoffd.service")).collect();
        assert!(findings.len() == 1 && findings[0].starts_with(found), "{setting}: {said:?}");
    }
    lab.install(name, "[Service]\n");
    let socket = "handoffd.socket.d/limit.conf";
    lab.install(socket, "[Socket]\nTriggerLimitIntervalSec=2\n");
    let said = lab.run(&[PROGRAM, "doctor"]).well();
    assert!(said.starts_with("risks   handoffd.socket: TriggerLimitIntervalSec=2s: "), "{said}");
    lab.install(socket, "[Socket]\n");
    lab.run(&[PROGRAM, "doctor", "no-such.service"]).names(71, &["no unit no-such.service"]);
    lab.systemctl(&["stop", "handoffd.socket", "handoffd.service"]).well();
    lab.run(&[PROGRAM, "doctor"]).names(69, &["no daemon answers on"]);
    // The doctor can also check a unit that does not run.
    let said = lab.run(&[PROGRAM, "doctor", "handoffd.service"]).well();
    assert!(said.starts_with("no daemon of handoffd.service answers, so the default"), "{said}");
}
