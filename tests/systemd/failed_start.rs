//! Tests of failed starts. systemd retries at a limited rate if a retry may succeed. It does not
//! retry if only a change of the configuration helps.

use std::io::Write;

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

/// The client makes the socket unit start the service again, once a second.
pub(crate) fn a_client_waits_for_a_better_configuration(system: System) {
    let lab = Lab::boot(system);
    for unit in ["handoffd-run@.service", "handoffd-run@.socket"] {
        lab.install(unit, &std::fs::read_to_string(shipped(unit)).unwrap());
    }
    lab.install("handoffd.service.d/config.conf", &documented("--config"));
    let socket = "[Socket]\nListenStream=\nListenStream=127.0.0.1:48880\n";
    lab.install("handoffd-run@app.socket.d/address.conf", socket);
    std::fs::create_dir(lab.path("/etc/handoffd")).unwrap();
    for (unit, file, address) in [
        ("handoffd", "/etc/handoffd.toml", ADDRESS),
        ("handoffd-run@app", "/etc/handoffd/app.toml", "127.0.0.1:48880"),
    ] {
        let [service, socket] = ["service", "socket"].map(|suffix| format!("{unit}.{suffix}"));
        std::fs::write(lab.path(file), "bake = [\n").unwrap();
        lab.systemctl(&["start", &socket]).well();
        let mut client = lab.inside(|| Client::connect(address).unwrap());
        client.write_all(b"I wait").unwrap();
        lab.wait("four failed starts", |lab| failed_starts(lab, &service).len() >= 4);
        let starts = failed_starts(&lab, &service);
        assert!(starts[3] - starts[0] >= 3_000_000, "starts at {starts:?} us");
        std::fs::write(
            lab.path(file),
            "[listener.web]\naddress = '127.0.0.1:1'\nservice = 'echo'\n",
        )
        .unwrap();
        lab.systemctl(&["restart", &service]).well();
        client.expect(b"I wait").unwrap();
    }
}

/// Even without the pause between the starts.
pub(crate) fn the_socket_unit_outlives_many_failed_starts(system: System) {
    let lab = Lab::boot(system);
    lab.start_with("--no-such-flag");
    lab.install("handoffd.service.d/pause.conf", "[Service]\nExecStopPost=\n");
    lab.systemctl(&["start", "handoffd.socket"]).well();
    let _client = lab.inside(|| Client::connect(ADDRESS).unwrap());
    // By default, systemd closes the socket after 20 starts.
    lab.wait("30 failed starts", |lab| failed_starts(lab, "handoffd.service").len() >= 30);
    lab.systemctl(&["is-active", "handoffd.socket"]).well();
}

/// Returns when each start failed for the command line or the configuration, in microseconds.
fn failed_starts(lab: &Lab, service: &str) -> Vec<u64> {
    let failed = lab.journal_of(service).into_iter().filter(|record| {
        record["_PID"] == "1" && ["64", "78"].iter().any(|code| record["EXIT_STATUS"] == *code)
    });
    failed.map(|record| record["__REALTIME_TIMESTAMP"].as_str().unwrap().parse().unwrap()).collect()
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
