//! Tests of failed starts. systemd retries at a limited rate if a retry may succeed. It does not
//! retry if only a change of the configuration helps.

use crate::lab::{ADDRESS, Lab, PROGRAM};
use crate::shipped::{documented, shipped};
use crate::support::Client;
use crate::system::System;

/// Applies to a start of a stopped service and to a restart.
pub(crate) fn a_wrong_configuration_is_tried_once(system: System) {
    let lab = Lab::boot(system);
    std::fs::write(lab.path("/etc/handoffd.toml"), "bake = [\n").unwrap();
    lab.install("handoffd.service.d/config.conf", &documented("--config"));
    for command in ["start", "restart"] {
        assert_ne!(lab.systemctl(&[command, "handoffd.service"]).code, 0);
        // A pending automatic restart would show as the sub-state.
        assert_eq!(
            (lab.show("ActiveState"), lab.show("SubState")),
            ("failed".into(), "failed".into())
        );
        assert_eq!((lab.show("NRestarts"), lab.show("ExecMainStatus")), ("0".into(), "78".into()));
    }
    assert!(lab.journal_text().contains("/etc/handoffd.toml:1:"), "{}", lab.journal_text());
}

/// With the documented drop-in. The program is missing: systemd itself fails to start it, so no
/// exit code of ours prevents retries.
pub(crate) fn the_pause_between_failed_starts_grows(system: System) {
    let lab = Lab::boot(system);
    let steps = std::fs::read_to_string(shipped("restart-steps.conf")).unwrap();
    lab.install("handoffd.service.d/restart-steps.conf", &steps);
    std::fs::remove_file(lab.path(PROGRAM)).unwrap();
    assert_ne!(lab.systemctl(&["start", "handoffd.service"]).code, 0);
    let mut pauses = Vec::new();
    for restarts in 1..5 {
        lab.wait("a restart", |lab| lab.show("NRestarts").parse::<u32>().unwrap() >= restarts);
        let pause = humantime::parse_duration(&lab.show("RestartUSecNext")).unwrap();
        pauses.push(pause);
    }
    assert!(pauses.is_sorted() && pauses[3] > 2 * pauses[0], "{pauses:?}");
}

/// For example an address from DHCP, or a port that another process uses for a moment.
pub(crate) fn an_address_that_appears_later_is_served(system: System) {
    let lab = Lab::boot(system);
    let later = "192.0.2.7:7070";
    lab.bind_without_socket_unit(&format!("--listen {later} --listen {ADDRESS}"));
    let taken = lab.inside(|| std::net::TcpListener::bind(ADDRESS).unwrap());
    assert_ne!(lab.systemctl(&["start", "handoffd.service"]).code, 0);
    // While another start is under way, the property has no value.
    lab.wait("a failed start", |lab| lab.show("ExecMainStatus") == "75");
    lab.wait("a restart", |lab| lab.show("NRestarts") != "0");
    assert!(lab.journal_text().contains("Cannot assign"), "{}", lab.journal_text());
    // `ip` runs outside, in the network namespace only, because some root file systems lack it.
    let add = ["address", "add", "192.0.2.7/32", "dev", "lo"];
    assert!(lab.inside(|| std::process::Command::new("ip").args(add).status().unwrap()).success());
    lab.wait("the log of the used port", |lab| lab.journal_text().contains("in use"));
    drop(taken);
    lab.wait("the service", |lab| lab.show("ActiveState") == "active");
    for address in [later, ADDRESS] {
        lab.inside(|| Client::once(address, b"are you there?").unwrap());
    }
}
