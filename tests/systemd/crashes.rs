//! Tests of crashes: whichever process dies, systemd restarts the service, and waiting clients are
//! answered.

use nix::sys::signal::Signal;

use crate::lab::{ADDRESS, Lab};
use crate::support::{Client, Tracer, signal};
use crate::system::System;
use crate::traffic;

/// Kills every process of the service at once, while clients are being served and others wait in
/// the backlog.
fn assert_a_kill_of_all_refuses_nobody(lab: &Lab) {
    for round in 1..4 {
        let callers = traffic::callers(lab, ADDRESS);
        lab.systemctl(&["reload", "handoffd.service"]).well();
        // Frozen processes accept no client, so these clients wait in the backlog.
        lab.freeze();
        let waiting: Vec<Client> =
            lab.inside(|| (0..10).map(|_| Client::connect(ADDRESS).unwrap()).collect());
        lab.systemctl(&["kill", "--signal=KILL", "handoffd.service"]).well();
        for mut client in waiting {
            client.echo(b"I have waited").unwrap();
        }
        lab.wait("the restart", |lab| {
            lab.show("NRestarts") == round.to_string() && lab.show("ActiveState") == "active"
        });
        let calls = callers.finish();
        assert_eq!(calls.refused, 0, "{calls:?}\n{}", lab.journal_text());
        assert!(calls.served > 0);
    }
}

pub(crate) fn killing_all_processes_with_a_socket_unit_refuses_no_client(system: System) {
    let lab = Lab::serving(system);
    assert_eq!(
        lab.show("NFileDescriptorStore"),
        "0",
        "a socket of the socket unit was stored again"
    );
    assert_a_kill_of_all_refuses_nobody(&lab);
    assert_eq!(lab.show("NFileDescriptorStore"), "0");
}

pub(crate) fn killing_all_processes_with_the_store_refuses_no_client(system: System) {
    let lab = Lab::boot(system);
    lab.bind_without_socket_unit(&format!("--listen web={ADDRESS} --listen @abstract"));
    lab.systemctl(&["start", "handoffd.service"]).well();
    assert_eq!(lab.show("NFileDescriptorStore"), "2");
    assert_a_kill_of_all_refuses_nobody(&lab);
    assert_eq!(
        lab.show("NFileDescriptorStore"),
        "2",
        "each socket must be stored once, however many generations there were"
    );
    // A restart refuses no client either.
    let callers = traffic::callers(&lab, ADDRESS);
    lab.systemctl(&["restart", "handoffd.service"]).well();
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0), "{}", lab.journal_text());
    lab.systemctl(&["stop", "handoffd.service"]).well();
    // A stop releases the socket, on newer versions of systemd a moment later.
    lab.wait("the release of the socket", |lab| lab.inside(|| Client::connect(ADDRESS)).is_err());
}

/// A draining generation keeps the unit from ending. systemd must notice the death of the main
/// process anyway.
pub(crate) fn a_main_process_that_dies_during_a_drain_is_restarted(system: System) {
    let lab = Lab::boot(system);
    lab.drain();
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let busy = lab.inside(|| lab.busy_client());
    lab.systemctl(&["reload", "handoffd.service"]).well();
    assert_eq!(
        lab.status()["generations"].as_array().unwrap().len(),
        2,
        "the first generation does not drain"
    );
    let dead = lab.main_pid();
    signal(lab.outer(dead), Signal::SIGKILL);
    lab.wait("systemd to notice the death", |lab| lab.show("ActiveState") != "active");
    let mut waiting = lab.inside(|| Client::connect(ADDRESS).unwrap());
    // The old generation keeps draining until the end of the connection, without a reset.
    busy.read_until_end();
    waiting.echo(b"I have waited").unwrap();
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    assert_ne!(lab.main_pid(), dead);
}

/// The old generation is the main process until the commit. When it dies, the unit stops its
/// successor too, and no client is refused.
pub(crate) fn a_main_process_that_dies_in_the_bake_costs_no_client(system: System) {
    let lab = Lab::serving(system);
    let callers = traffic::callers(&lab, ADDRESS);
    let main = lab.outer(lab.main_pid());
    let reload = lab.start(&["systemctl", "reload", "handoffd.service"]);
    lab.wait("a successor", |lab| lab.status()["generations"][0]["state"] == "probation");
    signal(main, Signal::SIGKILL);
    let reload = reload.wait();
    assert_ne!(reload.code, 0, "{reload:?}");
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    let calls = callers.finish();
    assert_eq!(calls.refused, 0, "{calls:?}, reload: {reload:?}\n{}", lab.journal_text());
    lab.systemctl(&["reload", "handoffd.service"]).well();
}

/// systemd does not restart the service while the reload command runs. The successor hangs, and no
/// timeout would end the command before the end of this test.
pub(crate) fn a_main_process_that_dies_beside_a_hung_successor_is_restarted(system: System) {
    let mut lab = Lab::boot(system);
    lab.start_with("--ready-timeout 1h");
    let patient = "[Service]\nTimeoutStartSec=infinity\nWatchdogSec=0\n";
    lab.install("handoffd.service.d/patient.conf", patient);
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let main = lab.outer(lab.main_pid());
    lab.deploy_script("echo hanging; exec sleep 1000");
    let reload = lab.start(&["systemctl", "reload", "handoffd.service"]);
    lab.wait("the hung successor", |lab| lab.journal_text().contains("hanging"));
    lab.deploy_good();
    signal(main, Signal::SIGKILL);
    let mut waiting = lab.inside(|| Client::connect(ADDRESS).unwrap());
    assert_ne!(reload.wait().code, 0);
    waiting.echo(b"I have waited").unwrap();
}

/// The process lives, but its threads are stuck in accept4(2).
pub(crate) fn the_watchdog_restarts_a_process_with_hung_accept_loops(system: System) {
    let lab = Lab::serving(system);
    lab.systemctl(&["reload", "handoffd.service"]).well();
    let main = lab.main_pid();
    let hang = ["-f", "-e", "trace=accept4", "-e", "inject=accept4:delay_enter=600s"];
    let tracer = Tracer::attach_in(
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")),
        lab.outer(main),
        &hang,
    );
    let mut waiting = lab.inside(|| Client::connect(ADDRESS).unwrap());
    // The unit has WatchdogSec=30s.
    lab.wait("the watchdog", |lab| lab.journal_text().contains("Watchdog timeout"));
    // A traced process does not receive SIGABRT. If the tracer released the threads first, one
    // might accept the client and then die.
    signal(lab.outer(main), Signal::SIGKILL);
    drop(tracer);
    waiting.echo(b"I have waited").unwrap();
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    assert_ne!(lab.main_pid(), main);
}
