//! Whoever dies, systemd starts the service anew, and whoever waited is answered.

use nix::sys::signal::Signal;

use crate::lab::{ADDRESS, Lab, System};
use crate::support::{Callers, Client, Tracer, signal};

/// Kills every process of the service at once, with clients at it, and some in the queue.
fn assert_a_kill_of_all_refuses_nobody(lab: &Lab) {
    for round in 1..4 {
        let callers = lab.inside(|| Callers::start(ADDRESS, 2));
        lab.systemctl(&["reload", "handoffd.service"]).well();
        // Frozen, they accept nobody: these are in the queue.
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

pub(crate) fn a_kill_of_every_process_refuses_nobody_under_socket_activation(system: System) {
    let lab = Lab::serving(system);
    assert_eq!(
        lab.show("NFileDescriptorStore"),
        "0",
        "what the socket unit holds is not to be stored again"
    );
    assert_a_kill_of_all_refuses_nobody(&lab);
    assert_eq!(lab.show("NFileDescriptorStore"), "0");
}

pub(crate) fn a_kill_of_every_process_refuses_nobody_with_the_store(system: System) {
    let lab = Lab::boot(system);
    lab.bind_without_socket_unit(&format!("--listen web={ADDRESS} --listen @abstract"));
    lab.systemctl(&["start", "handoffd.service"]).well();
    assert_eq!(lab.show("NFileDescriptorStore"), "2");
    assert_a_kill_of_all_refuses_nobody(&lab);
    assert_eq!(
        lab.show("NFileDescriptorStore"),
        "2",
        "each once, however many generations there were"
    );
    // A restart is no crash, and refuses nobody either.
    let callers = lab.inside(|| Callers::start(ADDRESS, 2));
    lab.systemctl(&["restart", "handoffd.service"]).well();
    let calls = callers.finish();
    assert_eq!((calls.refused, calls.broken), (0, 0), "{}", lab.journal_text());
    lab.systemctl(&["stop", "handoffd.service"]).well();
    // A full stop lets go of it, on newer versions a moment later.
    lab.wait("that it is let go of", |lab| lab.inside(|| Client::connect(ADDRESS)).is_err());
}

/// An old generation that drains keeps the unit from ending; systemd has to see the main process
/// die all the same.
pub(crate) fn a_main_process_that_dies_while_an_old_one_drains_is_restarted(system: System) {
    let lab = Lab::boot(system);
    lab.drain();
    lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
    let busy = lab.inside(|| lab.busy_client());
    lab.systemctl(&["reload", "handoffd.service"]).well();
    assert_eq!(lab.status()["generations"].as_array().unwrap().len(), 2, "the first one drains");
    let dead = lab.main_pid();
    signal(lab.outer(dead), Signal::SIGKILL);
    lab.wait("that systemd sees it", |lab| lab.show("ActiveState") != "active");
    let mut waiting = lab.inside(|| Client::connect(ADDRESS).unwrap());
    // An old one drains on: to the end, and not to a reset.
    busy.read_until_end();
    waiting.echo(b"I have waited").unwrap();
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    assert_ne!(lab.main_pid(), dead);
}

/// The old one is the main process until the commit: its successor is told to stop with the unit,
/// and nobody is refused.
pub(crate) fn a_main_process_that_dies_during_the_bake_costs_nobody_who_waits(system: System) {
    let lab = Lab::serving(system);
    let callers = lab.inside(|| Callers::start(ADDRESS, 2));
    let main = lab.outer(lab.main_pid());
    let reload = lab.start(&["systemctl", "reload", "handoffd.service"]);
    lab.wait("a successor", |lab| lab.status()["generations"][0]["state"] == "probation");
    signal(main, Signal::SIGKILL);
    // Whether the unit stopped or the successor served by then: it must not have been called a
    // success.
    let reload = reload.wait();
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    let calls = callers.finish();
    assert_eq!(calls.refused, 0, "{calls:?}, reload: {reload:?}\n{}", lab.journal_text());
    lab.systemctl(&["reload", "handoffd.service"]).well();
}

/// The process lives, and its threads are stuck where they accept: a hang like any other.
pub(crate) fn a_main_process_whose_accept_loop_hangs_is_restarted_by_the_watchdog(system: System) {
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
    // The unit's WatchdogSec= is 30 s.
    lab.wait("the watchdog", |lab| lab.journal_text().contains("Watchdog timeout"));
    // What is held by a tracer does not hear SIGABRT; and a thread that were let go might accept
    // first, and then die.
    signal(lab.outer(main), Signal::SIGKILL);
    drop(tracer);
    waiting.echo(b"I have waited").unwrap();
    lab.wait("the restart", |lab| {
        lab.show("NRestarts") == "1" && lab.show("ActiveState") == "active"
    });
    assert_ne!(lab.main_pid(), main);
}
