//! `systemctl stop` ends every generation in order, within the unit's limit.

use crate::lab::{ADDRESS, Lab, System};
use crate::support::{Client, Storm};

/// With one, two and three generations, each in the middle of a reply.
pub(crate) fn a_stop_drains_every_generation_and_cuts_nobody(system: System) {
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
        // The socket unit too, or a client would start the service anew.
        let stop = lab.start(&["systemctl", "stop", "handoffd.socket", "handoffd.service"]);
        lab.wait("that it stops", |lab| lab.show("ActiveState") == "deactivating");
        lab.wait("its word", |lab| lab.show("StatusText").contains("stopping, 1 left"));
        // What systemd does when it finds that some are left.
        lab.systemctl(&["kill", "--signal=TERM", "handoffd.service"]).well();
        for client in busy {
            // Over TCP, what the client's kernel has yet to send may be too late. A cut would be a
            // reset.
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

pub(crate) fn a_stop_right_after_a_reload_ends_all_of_them_in_order(system: System) {
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
    // So early that the command may find nobody to ask; then systemd calls the unit failed, for the
    // command did.
    for _ in 0..3 {
        lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
        lab.systemctl(&["reload", "--no-block", "handoffd.service"]).well();
        lab.systemctl(&["stop", "handoffd.socket", "handoffd.service"]).well();
        assert!(["inactive", "failed"].contains(&lab.show("ActiveState").as_str()));
        assert!(lab.processes().is_empty(), "{}", lab.journal_text());
    }
    // Under traffic, with a socket that stays: nobody notices, for the next client starts it.
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let storm = lab.inside(|| Storm::start(ADDRESS, 1, 1));
    for _ in 0..3 {
        lab.systemctl(&["reload", "--no-block", "handoffd.service"]).well();
        lab.systemctl(&["restart", "handoffd.service"]).well();
    }
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
}
