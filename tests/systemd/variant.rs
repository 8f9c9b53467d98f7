//! Test of the documented variant with `Type=notify-reload`: systemd reloads by SIGHUP, and takes
//! the end of the reload from the notification.

use crate::lab::{ADDRESS, Lab};
use crate::shipped::shipped;
use crate::support::Client;
use crate::system::System;
use crate::traffic;

pub(crate) fn the_notify_reload_variant_reports_every_end_of_a_reload(system: System) {
    let mut lab = Lab::boot(system);
    let variant = std::fs::read_to_string(shipped("notify-reload.conf")).unwrap();
    lab.install("handoffd.service.d/notify-reload.conf", &variant);
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let storm = traffic::storm(&lab, 1, 1);
    let first = lab.main_pid();
    for generation in 2..6 {
        lab.systemctl(&["reload", "handoffd.service"]).well();
        assert_eq!(lab.status()["serving"], generation);
    }
    let main = lab.main_pid();
    assert_ne!(main, first);
    lab.deploy_script("exit 7");
    for _ in 0..2 {
        // The protocol has no notification for a failed reload. The reload ends, and the status
        // reports the failure.
        lab.systemctl(&["reload", "handoffd.service"]).well();
        assert_eq!((lab.show("ActiveState"), lab.main_pid()), ("active".into(), main));
        assert!(
            lab.show("StatusText").contains("the handoff to generation 6 failed"),
            "{}",
            lab.show("StatusText")
        );
    }
    lab.deploy_good();
    // Two reloads at once: the second one is remembered until the first has ended.
    let reloads = [(); 2].map(|()| lab.start(&["systemctl", "reload", "handoffd.service"]));
    reloads.into_iter().for_each(|reload| drop(reload.wait().well()));
    lab.inside(|| Client::once(ADDRESS, b"are you there?").unwrap());
    assert_ne!(lab.main_pid(), main);
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, lab.journal_text());
}
