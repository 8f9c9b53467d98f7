//! Tests of the shipped units: systemd understands every setting, and the units expose little to
//! attacks.

use crate::lab::Lab;
use crate::shipped::shipped;
use crate::system::System;

/// The highest exposure level that a unit may have, of 10.
const SCORE_MAX: f32 = 1.5;

pub(crate) fn the_units_are_sound_and_hardened(system: System) {
    let lab = Lab::serving(system);
    let units = ["/etc/systemd/system/handoffd.service", "/etc/systemd/system/handoffd.socket"];
    let verified = lab.run(&[&["systemd-analyze", "verify", "--man=no"], &units[..]].concat());
    assert_eq!((verified.code, verified.err.trim()), (0, ""));
    let analysed =
        lab.run(&["systemd-analyze", "security", "--no-pager", "handoffd.service"]).well();
    let last = analysed.lines().last().unwrap();
    let score: f32 = last
        .split("handoffd.service: ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    println!("{system:?}: {score}");
    assert!(score <= SCORE_MAX, "{last}");
    // A setting that systemd did not understand would be in the journal.
    let said = lab.run(&["journalctl", "--no-pager", "-b", "_PID=1"]).well();
    assert!(!said.contains("Unknown key") && !said.contains("Failed to parse"), "{said}");
    if system == System::Forky {
        let variant = std::fs::read_to_string(shipped("notify-reload.conf")).unwrap();
        lab.install("handoffd.service.d/notify-reload.conf", &variant);
        let verified = lab.run(&["systemd-analyze", "verify", "--man=no", units[0]]);
        assert_eq!((verified.code, verified.err.trim()), (0, ""));
    }
}
