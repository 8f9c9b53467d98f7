//! Tests of socket activation: systemd holds the listening socket. A client may start the service,
//! and waits while the service restarts.

use crate::lab::{ADDRESS, Lab};
use crate::support::Client;
use crate::system::System;
use crate::traffic;

pub(crate) fn a_client_starts_the_service_and_is_answered(system: System) {
    let lab = Lab::boot(system);
    lab.systemctl(&["start", "handoffd.socket"]).well();
    assert_eq!(lab.show("ActiveState"), "inactive");
    lab.inside(|| Client::once(ADDRESS, b"wake up").unwrap());
    lab.wait("the start", |lab| lab.show("ActiveState") == "active");
    lab.systemctl(&["stop", "handoffd.service"]);
    assert_eq!(
        (lab.show("ActiveState"), lab.show("Result")),
        ("inactive".into(), "success".into())
    );
    lab.inside(|| Client::once(ADDRESS, b"and again").unwrap());
    lab.wait("the start", |lab| lab.show("ActiveState") == "active");
}

pub(crate) fn restarts_under_traffic_lose_no_client(system: System) {
    let lab = Lab::serving(system);
    let storm = traffic::storm(&lab, 2, 2);
    for _ in 0..5 {
        lab.systemctl(&["restart", "handoffd.service"]).well();
        // A client must not be able to tell a restart from a reload.
        lab.systemctl(&["reload", "handoffd.service"]).well();
    }
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
    assert!(tally.short > 0 && tally.persistent > 0);
}

pub(crate) fn a_client_that_waits_for_a_restart_is_answered(system: System) {
    let lab = Lab::serving(system);
    let main = lab.outer(lab.main_pid());
    // The service hangs, so new clients wait in the backlog.
    lab.freeze();
    let mut waiting = lab.inside(|| Client::connect(ADDRESS).unwrap());
    crate::support::signal(main, nix::sys::signal::Signal::SIGKILL);
    waiting.echo(b"I have waited").unwrap();
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
}
