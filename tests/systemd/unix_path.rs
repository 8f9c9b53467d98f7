//! Tests of a Unix listener under the shipped unit: its path survives restarts, and the runbook
//! explains how other users reach it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::lab::{Lab, PROGRAM};
use crate::shipped::{documented, documented_commands};
use crate::support::Client;
use crate::system::System;
use crate::traffic;

const PATH: &str = "/run/handoffd/web.sock";

/// Connects as an unprivileged user to `path`, which is below `/run`.
fn connect_as(lab: &Lab, user: Uid, path: &str) -> std::io::Result<UnixStream> {
    let run = File::open(lab.path("/run")).unwrap();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            // Changes only this thread. The kernel also removes root's privileges from it.
            setfsgid(Gid::from_raw(user.as_raw()));
            setfsuid(user);
            UnixStream::connect(format!("/proc/self/fd/{}/{path}", run.as_raw_fd()))
        });
        connecting.join().unwrap()
    })
}

pub(crate) fn restarts_lose_no_client_of_a_unix_path(system: System) {
    let lab = Lab::boot(system);
    lab.bind_without_socket_unit(&format!("--listen web={PATH}"));
    lab.systemctl(&["start", "handoffd.service"]).well();
    let path = lab.path(PATH).to_str().unwrap().to_owned();
    let callers = traffic::callers(&lab, &path);
    for command in ["restart", "reload", "restart", "restart"] {
        lab.systemctl(&[command, "handoffd.service"]).well();
    }
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0), "{calls:?}\n{}", lab.journal_text());
    assert!(calls.served > 0);
    // A frozen daemon accepts no client: this one waits in the backlog while all processes die.
    lab.freeze();
    let mut waiting = Client::connect(&path).unwrap();
    lab.systemctl(&["kill", "--signal=KILL", "handoffd.service"]).well();
    waiting.echo(b"I have waited").unwrap();
    lab.wait("the restart", |lab| lab.show("ActiveState") == "active");
    assert!(lab.run(&[PROGRAM, "doctor"]).well().trim_end().ends_with("0 that might break one"));
    lab.systemctl(&["stop", "handoffd.service"]).well();
    assert!(!lab.path(PATH).exists(), "the stop left the path behind");
}

pub(crate) fn the_runbook_lets_other_users_reach_a_unix_path(system: System) {
    let lab = Lab::boot(system);
    // The service has run with its dynamic user before.
    lab.systemctl(&["enable", "--now", "handoffd.socket", "handoffd.service"]);
    assert_eq!(lab.show("ActiveState"), "active");
    lab.run(&["sh", "-ec", &documented_commands("systemd-sysusers")]);
    lab.install("handoffd.service.d/unix.conf", &documented("--socket-group"));
    lab.systemctl(&["start", "handoffd.service"]).well();
    let [http, other] = [33, 65534].map(Uid::from_raw);
    for _ in 0..2 {
        connect_as(&lab, http, "handoffd/web.sock").unwrap();
        assert!(connect_as(&lab, other, "handoffd/web.sock").is_err());
        assert!(
            connect_as(&lab, http, "handoffd/control").is_err(),
            "another user can reach the control socket"
        );
        lab.systemctl(&["restart", "handoffd.service"]).well();
    }
    assert!(lab.run(&[PROGRAM, "doctor"]).well().trim_end().ends_with("0 that might break one"));
}

/// With the documented drop-in for the socket unit, the shipped service needs no other user.
pub(crate) fn systemd_makes_a_path_for_other_users(system: System) {
    let lab = Lab::boot(system);
    lab.install("handoffd.socket.d/unix.conf", &documented("SocketGroup="));
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    for command in ["reload", "restart"] {
        connect_as(&lab, Uid::from_raw(33), "handoffd.sock").unwrap();
        lab.systemctl(&[command, "handoffd.service"]).well();
    }
    Client::once(lab.path("/run/handoffd.sock").to_str().unwrap(), b"are you there?").unwrap();
}

/// The doctor reports paths that do not survive a restart, or that other users cannot reach.
pub(crate) fn the_doctor_finds_a_path_that_clients_lose(system: System) {
    let lab = Lab::boot(system);
    lab.bind_without_socket_unit(&format!("--listen web={PATH} --socket-mode 0666"));
    lab.install("handoffd.service.d/gone.conf", "[Service]\nRuntimeDirectoryPreserve=no\n");
    lab.systemctl(&["start", "handoffd.service"]).well();
    let said = lab.run(&[PROGRAM, "doctor"]).well();
    assert!(
        said.contains(&format!("risks   RuntimeDirectoryPreserve=no: a restart removes {PATH}")),
        "{said}"
    );
    lab.install("handoffd.service.d/gone.conf", "[Service]\n");
    lab.systemctl(&["restart", "handoffd.service"]).well();
    let said = lab.run(&[PROGRAM, "doctor"]).well();
    assert!(
        said.contains(&format!("risks   DynamicUser=yes: other users cannot connect to {PATH}")),
        "{said}"
    );
}
