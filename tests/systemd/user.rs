//! Test under a user's service manager, which is a subreaper and not process 1.

use crate::lab::{Lab, PROGRAM};
use crate::support::{Client, signal};
use crate::system::System;

const ADDRESS: &str = "127.0.0.1:7070";

/// The claims for the system's service manager hold here too.
pub(crate) fn the_service_works_under_a_user_manager(system: System) {
    let lab = Lab::boot(system);
    lab.run(&["mkdir", "-p", "/run/user/0", "/root/.config/systemd/user"]).well();
    let unit = format!(
        "[Service]\nType=notify\nNotifyAccess=main\nRestart=on-failure\nRuntimeDirectory=ours\n\
         ExecStart={PROGRAM} --listen {ADDRESS}\nExecReload=/usr/bin/env /proc/${{MAINPID}}/exe reload\n"
    );
    std::fs::write(lab.path("/root/.config/systemd/user/handoffd.service"), unit).unwrap();
    let manager = [
        "--unit=manager",
        "-p",
        "Delegate=yes",
        "-E",
        "XDG_RUNTIME_DIR=/run/user/0",
        "-E",
        "HOME=/root",
    ];
    lab.run(
        &[&["systemd-run", "--quiet"], &manager[..], &["/lib/systemd/systemd", "--user"]].concat(),
    )
    .well();
    let user = |words: &[&str]| {
        lab.run(&[&["env", "XDG_RUNTIME_DIR=/run/user/0", "systemctl", "--user"], words].concat())
    };
    lab.wait("the user's manager", |_| {
        user(&["is-system-running"]).out.trim() != "offline" && user(&["show"]).code == 0
    });
    user(&["start", "handoffd.service"]).well();
    let main = || {
        user(&["show", "handoffd.service", "--value", "-p", "MainPID"])
            .well()
            .trim()
            .parse::<u32>()
            .unwrap()
    };
    let first = main();
    for _ in 0..2 {
        lab.inside(|| Client::once(ADDRESS, b"are you there?").unwrap());
        user(&["reload", "handoffd.service"]).well();
    }
    assert_ne!(main(), first);
    // The unit is looked up by name at the user's manager, and its daemon in the unit's runtime
    // directory. The system's manager has no unit of that name.
    let words = ["env", "XDG_RUNTIME_DIR=/run/user/0", PROGRAM, "doctor", "--user"];
    let doctor = lab.run(&[&words[..], &["handoffd.service"]].concat()).well();
    assert!(doctor.contains("handoffd.service under the user's systemd 2"), "{doctor}");
    assert!(!doctor.contains("no daemon of"), "{doctor}");
    assert!(lab.run(&[&words[..], &["no-such.service"]].concat()).code == 71);
    let dead = main();
    signal(lab.outer(dead), nix::sys::signal::Signal::SIGKILL);
    lab.wait("the restart", |_| ![0, dead].contains(&main()));
    lab.wait("the service", |lab| lab.inside(|| Client::once(ADDRESS, b"are you there?").is_ok()));
    user(&["stop", "handoffd.service"]).well();
}
