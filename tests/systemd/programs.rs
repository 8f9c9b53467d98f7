//! Tests of `handoffd-run@.service`, which runs a program: releases that fail, processes that are
//! killed, the watchdog, and a stop.
//!
//! The program is a shell script that executes the daemon of release 1 as an echo server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::lab::{Lab, PROGRAM};
use crate::shipped::shipped;
use crate::support::operator::Answered;
use crate::support::{Callers, Client};
use crate::system::System;
use crate::traffic;

const UNIT: &str = "handoffd-run@app.service";
pub(crate) const ADDRESS: &str = "127.0.0.1:48880";
const CONTROL: &str = "/run/handoffd-run-app/control";
/// The path of the program inside.
const APP: &str = "/opt/handoffd/app";
/// A release that works. It says which environment and working directory it has. Without the
/// variable, the echo server has no control socket.
const GOOD: &str = "unset RUNTIME_DIRECTORY; echo \"data is $DATA in $(pwd -P)\" >&2; \
                    exec /opt/handoffd/1/handoffd --log off --no-carry \"$@\"";
/// A release that cuts its connections when it is told to stop. A program that drains by itself
/// would hide a stop that comes too early.
const ABRUPT: &str = "unset RUNTIME_DIRECTORY; trap 'kill -KILL $p; exit' TERM; \
                      /opt/handoffd/1/handoffd --log off --no-carry \"$@\" & p=$!; wait";

/// A lab with the instance `app`.
pub(crate) struct ProgramLab(Lab);

impl ProgramLab {
    /// Boots a lab whose program serves [`ADDRESS`], with these settings of `[program]`.
    pub(crate) fn serving(system: System, settings: &str) -> Self {
        Self::serving_with_bake(system, "300ms", settings)
    }

    /// Boots a lab as [`ProgramLab::serving`] does, with this bake.
    fn serving_with_bake(system: System, bake: &str, settings: &str) -> Self {
        let lab = Self(Lab::boot(system));
        for unit in ["handoffd-run@.service", "handoffd-run@.socket"] {
            lab.0.install(unit, &fs::read_to_string(shipped(unit)).unwrap());
        }
        let socket = format!("[Socket]\nListenStream=\nListenStream={ADDRESS}\n");
        lab.0.install("handoffd-run@app.socket.d/address.conf", &socket);
        lab.release(GOOD);
        lab.configure(bake, settings);
        let started = lab.0.systemctl(&["start", "handoffd-run@app.socket", UNIT]);
        assert_eq!(started.code, 0, "{}", lab.journal());
        lab
    }

    fn configure(&self, bake: &str, settings: &str) {
        let text = format!(
            "ready_timeout = 2\nbake = '{bake}'\n[listener.web]\naddress = '{ADDRESS}'\n[program]\n\
            command = ['{APP}', '--listen', '127.0.0.1:{{port}}']\n{settings}\n"
        );
        fs::create_dir_all(self.0.path("/etc/handoffd")).unwrap();
        fs::write(self.0.path("/etc/handoffd/app.toml"), text).unwrap();
    }

    /// Replaces the program.
    pub(crate) fn release(&self, script: &str) {
        let draft = self.0.path("/opt/handoffd/app.new");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, self.0.path(APP)).unwrap();
    }

    pub(crate) fn reload(&self) -> Answered {
        self.0.systemctl(&["reload", UNIT])
    }

    /// Reloads, and asserts that this fails with the reason and changes nothing.
    pub(crate) fn fails_to_reload(&self, reason: &str) {
        let serving = self.status()["serving"].clone();
        assert_ne!(self.reload().code, 0, "{reason}");
        assert!(self.journal().contains(reason), "{reason} is not in\n{}", self.journal());
        assert_eq!(self.status()["serving"], serving, "{reason}");
    }

    fn status(&self) -> Value {
        let words = [PROGRAM, "status", "--json", "--control", CONTROL];
        serde_json::from_str(&self.0.run(&words).well()).unwrap()
    }

    /// Returns the pids inside of the active generation and of its program.
    pub(crate) fn pids(&self) -> (u64, u64) {
        let status = self.status();
        let generations = status["generations"].as_array().unwrap();
        let serving = generations.iter().find(|one| one["generation"] == status["serving"]);
        let serving = serving.unwrap();
        let program = &serving["programs"][0]["pid"];
        (serving["pid"].as_u64().unwrap(), program.as_u64().unwrap_or(0))
    }

    fn kill(&self, signal: &str, pids: &[u64]) {
        let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
        self.0.run(&["sh", "-c", &format!("kill -s {signal} {}", pids.join(" "))]).well();
    }

    /// Connects a client, and waits for its echo.
    fn client(&self) -> Client {
        self.0.inside(|| {
            let mut client = Client::connect(ADDRESS).unwrap();
            client.echo(b"hello").unwrap();
            client
        })
    }

    /// Starts callers of the program.
    pub(crate) fn callers(&self) -> Callers {
        traffic::callers(&self.0, ADDRESS)
    }

    fn show(&self, property: &str) -> String {
        let shown = self.0.systemctl(&["show", UNIT, "--value", "--property", property]);
        shown.well().trim().to_owned()
    }

    fn journal(&self) -> String {
        let _ = self.0.run(&["journalctl", "--sync"]);
        self.0.run(&["journalctl", "--no-pager", "-u", UNIT]).out
    }

    /// Returns the path outside of a path inside.
    pub(crate) fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path(path)
    }

    /// Waits until a process inside has ended.
    pub(crate) fn wait_for_end(&self, pid: u64) {
        self.0.wait("the end of a process", |lab| {
            lab.run(&["test", "-e", &format!("/proc/{pid}")]).code != 0
        });
    }

    /// Waits until another process than `old` runs as the program.
    fn wait_for_other_program(&self, old: u64) {
        self.0.wait("the program to start again", |_| {
            let words = [PROGRAM, "status", "--json", "--control", CONTROL];
            let said = self.0.run(&words);
            said.code == 0 && {
                let pid = self.pids().1;
                pid != 0 && pid != old
            }
        });
    }
}

/// The reload fails with the reason, and the old program serves all the time.
pub(crate) fn a_release_that_fails_is_rolled_back(system: System) {
    let lab = ProgramLab::serving(system, "check_interval = '50ms'");
    let callers = lab.callers();
    lab.reload().well();
    for (release, reason) in [
        ("echo no database >&2; exit 3", "no database"),
        ("exec sleep 1000", "was not ready within 2 s"),
        ("trap '' TERM; sleep 1000 & sleep 1000", "was not ready within 2 s"),
    ] {
        lab.release(release);
        lab.fails_to_reload(reason);
    }
    fs::remove_file(lab.0.path(APP)).unwrap();
    lab.fails_to_reload("No such file or directory");
    lab.release(GOOD);
    lab.reload().well();
    let calls = callers.finish();
    assert!(calls.served > 10 && calls.refused + calls.broken == 0, "{calls:?}");
    assert_eq!((lab.show("ActiveState"), lab.show("NRestarts")), ("active".into(), "0".into()));
}

/// Only clients that the new program has already accepted are lost with it.
pub(crate) fn a_release_that_fails_in_the_bake_is_rolled_back(system: System) {
    // The bake outlasts the program on a busy machine too.
    let lab = ProgramLab::serving_with_bake(system, "20s", "check_interval = '50ms'");
    let callers = lab.callers();
    let serves = "unset RUNTIME_DIRECTORY; /opt/handoffd/1/handoffd --log off --no-carry \"$@\"";
    let bakes = format!(
        "until {PROGRAM} status --json --control {CONTROL} | grep -q '\"state\":\"probation\"'; \
        do sleep 0.1; done"
    );
    for (end, reason) in [
        ("kill $!; echo out of memory >&2; exit 9", "out of memory"),
        ("kill $!; sleep 1000", "failed its health check"),
    ] {
        lab.release(&format!("{serves} & {bakes}; {end}"));
        lab.fails_to_reload(reason);
    }
    let calls = callers.finish();
    assert!(calls.served > 10 && calls.refused == 0, "{calls:?}");
    assert_eq!((lab.show("ActiveState"), lab.show("NRestarts")), ("active".into(), "0".into()));
}

/// Clients wait in the queue of the socket, or for the private port.
pub(crate) fn killing_a_program_or_its_generation_refuses_no_client(system: System) {
    let lab = ProgramLab::serving(system, "");
    for round in 0..3 {
        let (generation, program) = lab.pids();
        let victims = [vec![program], vec![generation], vec![program, generation]];
        lab.kill("KILL", &victims[round]);
        // A client in the queue of a process that ends is lost with it.
        lab.0.wait("the end of the processes", |lab| {
            let is_left = |pid: &u64| lab.run(&["test", "-e", &format!("/proc/{pid}")]).code == 0;
            !victims[round].iter().any(is_left)
        });
        lab.client();
        lab.wait_for_other_program(program);
    }
    assert_eq!(lab.show("NRestarts"), "2");
}

/// The program is a daemon of ours, and answers its watchdog as such.
pub(crate) fn a_program_that_hangs_is_started_again(system: System) {
    let lab = ProgramLab::serving(system, "");
    lab.0.install("handoffd-run@app.service.d/watchdog.conf", "[Service]\nWatchdogSec=4\n");
    lab.0.systemctl(&["restart", UNIT]).well();
    let (_, program) = lab.pids();
    lab.kill("STOP", &[program]);
    lab.wait_for_other_program(program);
    lab.client();
    assert!(lab.journal().contains("stopped answering its watchdog"), "{}", lab.journal());
    assert_eq!(lab.show("NRestarts"), "0");
}

/// A stop does not reach the program before its last connection has ended.
pub(crate) fn a_stop_lets_the_clients_of_a_program_finish(system: System) {
    let lab = ProgramLab::serving(system, "");
    lab.release(ABRUPT);
    lab.reload().well();
    let mut old = lab.client();
    lab.reload().well();
    let mut client = lab.client();
    let stop = lab.0.start(&["systemctl", "stop", "handoffd-run@app.socket", UNIT]);
    lab.0.wait("the unit to stop", |_| lab.show("ActiveState") == "deactivating");
    for client in [&mut old, &mut client] {
        client.echo(b"still here").unwrap();
        client.half_close().unwrap();
        client.expect_end().unwrap();
    }
    stop.wait().well();
    assert_eq!(
        (lab.show("ActiveState"), lab.show("Result")),
        ("inactive".into(), "success".into())
    );
}

/// The stop command sees that the old process hands over to the new one, and stops that one too.
pub(crate) fn a_stop_in_the_bake_lets_the_clients_finish(system: System) {
    let lab = ProgramLab::serving_with_bake(system, "1h", "");
    lab.release(ABRUPT);
    // The stop command runs only if systemd itself does not reload the service.
    let reload = lab.0.start(&[PROGRAM, "reload", "--control", CONTROL]);
    let open_at_successor = || {
        let status = lab.status();
        let generations = status["generations"].as_array().unwrap();
        let new = generations.iter().find(|one| one["state"] == "probation")?;
        new["connections"]["open"].as_u64()
    };
    lab.0.wait("the bake", |_| open_at_successor().is_some());
    // The old process has no client, so it ends as soon as it has handed over.
    let mut client = loop {
        let client = lab.client();
        if open_at_successor() == Some(1) {
            break client;
        }
    };
    let old = lab.pids().0;
    let stop = lab.0.start(&["systemctl", "stop", "handoffd-run@app.socket", UNIT]);
    lab.wait_for_end(old);
    lab.0.wait("the new process to stop", |lab| {
        let said = lab.run(&[PROGRAM, "status", "--json", "--control", CONTROL]);
        said.out.contains("\"state\":\"stopping\"")
    });
    client.echo(b"still here").unwrap();
    client.half_close().unwrap();
    client.expect_end().unwrap();
    reload.wait().well();
    stop.wait().well();
    assert_eq!(lab.show("Result"), "success");
}

/// The main process has ended by itself, so the stop command has no process to stop.
pub(crate) fn a_program_that_ends_ends_its_service(system: System) {
    let lab = ProgramLab::serving(system, "restart = 'never'");
    lab.kill("TERM", &[lab.pids().1]);
    lab.0.wait("the end of the service", |_| lab.show("MainPID") == "0");
    lab.0.wait("the end of the unit", |_| lab.show("ActiveState") != "deactivating");
    assert_eq!(
        (lab.show("ActiveState"), lab.show("Result"), lab.show("NRestarts")),
        ("inactive".into(), "success".into(), "0".into()),
        "{}",
        lab.journal()
    );
}

/// A changed environment file and a changed link take effect with a reload.
pub(crate) fn a_reload_reads_the_surroundings_again(system: System) {
    let put = |lab: &ProgramLab, data: &str, folder: &str| {
        fs::write(lab.0.path("/opt/handoffd/env"), format!("DATA={data}\n")).unwrap();
        fs::create_dir_all(lab.0.path(Path::new("/opt/handoffd").join(folder))).unwrap();
        let link = lab.0.path("/opt/handoffd/here.new");
        std::os::unix::fs::symlink(folder, &link).unwrap();
        fs::rename(link, lab.0.path("/opt/handoffd/here")).unwrap();
    };
    let lab = ProgramLab::serving(system, "");
    put(&lab, "one", "a");
    lab.configure(
        "300ms",
        "environment_file = '/opt/handoffd/env'\nworking_directory = '/opt/handoffd/here'",
    );
    lab.reload().well();
    assert!(lab.journal().contains("data is one in /opt/handoffd/a"), "{}", lab.journal());
    put(&lab, "two", "b");
    lab.reload().well();
    assert!(lab.journal().contains("data is two in /opt/handoffd/b"), "{}", lab.journal());
}

pub(crate) fn the_doctor_finds_no_fault_with_the_unit_of_a_program(system: System) {
    let lab = ProgramLab::serving(system, "");
    let words = [PROGRAM, "doctor", "--control", CONTROL];
    let said = lab.0.run(&words).well();
    assert!(said.contains(": 0 settings that break a handoff, 0 that might break one"), "{said}");
    lab.0.install("handoffd-run@app.service.d/stop.conf", "[Service]\nExecStop=\n");
    // The unit's own control socket tells that the daemon runs a program.
    for words in [&words[..], &[PROGRAM, "doctor", UNIT], &[PROGRAM, "doctor", "handoffd-run@app"]]
    {
        let said = lab.0.run(words);
        assert!(said.code == 78 && said.out.contains("breaks  ExecStop="), "{said:?}");
        assert!(!said.out.contains("default settings"), "{said:?}");
    }
    let units =
        ["/etc/systemd/system/handoffd-run@.service", "/etc/systemd/system/handoffd-run@.socket"];
    let verified = lab.0.run(&[&["systemd-analyze", "verify", "--man=no"], &units[..]].concat());
    assert_eq!((verified.code, verified.err.trim()), (0, ""));
}
