//! Tests of `systemctl stop`: it ends every generation in order, within the unit's time limit.

use crate::lab::{ADDRESS, Lab};
use crate::support::Client;
use crate::system::System;
use crate::traffic;

/// With one, two and three generations, each in the middle of a reply.
pub(crate) fn a_stop_drains_every_generation_and_cuts_no_client(system: System) {
    let lab = Lab::boot(system);
    lab.drain();
    for generations in 1..4 {
        lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
        let mut busy = vec![lab.inside(|| lab.busy_client())];
        for _ in 1..generations {
            lab.systemctl(&["reload", "handoffd.service"]).well();
            busy.push(lab.inside(|| lab.busy_client()));
        }
        let status = lab.status();
        assert_eq!(status["generations"].as_array().unwrap().len(), generations, "{status}");
        // The socket unit is stopped as well, or a client would start the service again.
        let stop = lab.start(&["systemctl", "stop", "handoffd.socket", "handoffd.service"]);
        lab.wait("the stop", |lab| lab.show("ActiveState") == "deactivating");
        lab.wait("the status", |lab| {
            lab.show("StatusText").contains("stopping, connections left: 1")
        });
        // systemd signals the remaining processes like this.
        lab.systemctl(&["kill", "--signal=TERM", "handoffd.service"]).well();
        for client in busy {
            // Bytes that the client's kernel has not sent yet may arrive too late over TCP. A cut
            // would be a reset.
            client.read_until_end();
        }
        stop.wait().well();
        assert_eq!(
            (lab.show("ActiveState"), lab.show("Result")),
            ("inactive".into(), "success".into())
        );
        assert!(lab.processes().is_empty());
        assert!(lab.inside(|| Client::connect(ADDRESS)).is_err());
    }
    assert!(!lab.journal_text().contains("Killing process"), "{}", lab.journal_text());
}

pub(crate) fn a_stop_right_after_a_reload_ends_every_generation(system: System) {
    let lab = Lab::boot(system);
    for _ in 0..3 {
        lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
        lab.systemctl(&["reload", "--no-block", "handoffd.service"]).well();
        lab.wait("a successor", |lab| lab.status()["generations"].as_array().unwrap().len() == 2);
        lab.systemctl(&["stop", "handoffd.socket", "handoffd.service"]).well();
        let end = (lab.show("ActiveState"), lab.show("Result"));
        assert_eq!(end, ("inactive".into(), "success".into()), "{}", lab.journal_text());
        assert!(lab.processes().is_empty(), "{}", lab.journal_text());
    }
    // The stop comes so early that the reload command may find no daemon. Then the command fails,
    // and systemd marks the unit as failed.
    for _ in 0..3 {
        lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
        lab.systemctl(&["reload", "--no-block", "handoffd.service"]).well();
        lab.systemctl(&["stop", "handoffd.socket", "handoffd.service"]).well();
        assert!(["inactive", "failed"].contains(&lab.show("ActiveState").as_str()));
        assert!(lab.processes().is_empty(), "{}", lab.journal_text());
    }
    // Under traffic, while the socket unit stays active. No client notices the stop, because the
    // next client starts the service.
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let storm = traffic::storm(&lab, 1, 1);
    for _ in 0..3 {
        lab.systemctl(&["reload", "--no-block", "handoffd.service"]).well();
        lab.systemctl(&["restart", "handoffd.service"]).well();
    }
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
}
