//! Tests of a carry that has stopped: a handoff that would cut it waits, and so does the operator
//! that asked for the handoff. New clients do not wait.

use nix::sys::signal::Signal;

use super::scene::{Kind, Scene};
use super::{AT_ONCE, KINDS, LONG_DRAIN, SOME};
use crate::support::{Client, Event, exit_code, thaw};

#[test]
fn a_handoff_that_would_cut_a_carry_waits_until_it_is_over() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, SOME, &["--max-generations", "2"]);
        let successor = scene.take();
        let first = scene.line.first_pid();
        scene.line.put_real();
        scene.line.signal(2, Signal::SIGHUP);
        scene.line.wait_for(2, Event::HandoffDelayed);
        thaw(first);
        scene.line.wait_for(3, Event::CarryTakenOver.with("taken", SOME).with("refused", 0));
        assert_eq!([exit_code(first), exit_code(successor)], [0, 0]);
        assert_eq!(scene.heard(), SOME, "{kind:?}\n{}", scene.line.text());
    }
}

/// The first generation hangs in the middle of its carry. The connections of the second one move
/// to the third, because they do not depend on it.
#[test]
fn connections_pass_on_while_an_older_generation_hangs() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, SOME, &LONG_DRAIN);
        scene.take();
        let mut new = Client::connect(&scene.line.address()).unwrap();
        new.echo(b"before").unwrap();
        scene.line.put_real();
        scene.line.signal(2, Signal::SIGHUP);
        // The first generation has not read yet which connections were taken over.
        scene.line.wait_for_count(AT_ONCE + 1, Event::ConnectionEnded.with("ending", "carried"));
        new.echo(b"after").unwrap();
        thaw(scene.line.first_pid());
        assert_eq!(scene.heard(), SOME, "{kind:?}\n{}", scene.line.text());
    }
}

/// A reload with a timeout fails in time. A reload without one succeeds after the carry has ended.
#[test]
fn a_reload_that_waits_for_a_carry_keeps_its_timeout() {
    let mut scene = Scene::set(Kind::Echo, SOME, &["--max-generations", "2"]);
    let successor = scene.take();
    let first = scene.line.first_pid();
    scene.line.put_real();
    scene.line.asked(&["reload", "--timeout", "300ms"]).names(75, &["within the requested 0.3 s"]);
    assert_eq!(scene.line.count(Event::HandoffStarted), 1);
    let reload = scene.line.ask(&["reload"]);
    scene.line.wait_for_count(2, Event::HandoffDelayed);
    thaw(first);
    assert!(reload.wait().well().contains("generation 3 serves"));
    assert_eq!([exit_code(first), exit_code(successor)], [0, 0]);
    assert_eq!(scene.heard(), SOME, "{}", scene.line.text());
}

/// The handoff fails when the drain timeout of the hanging generation has passed. A later handoff
/// succeeds.
#[test]
fn a_handoff_stops_waiting_for_a_hanging_generation() {
    let mut scene =
        Scene::set(Kind::Echo, SOME, &["--max-generations", "2", "--drain-timeout", "1s"]);
    let successor = scene.take();
    scene.line.put_real();
    scene.line.asked(&["reload"]).names(75, &["did not finish moving its connections within 1 s"]);
    let status = scene.line.asked(&["status"]).well();
    assert!(status.contains("last handoff: generation 3 timed out"), "{status}");
    assert_eq!(scene.line.count(Event::HandoffStarted), 1);
    scene.line.assert_serves();
    // The drain deadline of the first generation has passed too, so it cuts the connections that it
    // has not sent.
    thaw(scene.line.first_pid());
    assert_eq!(exit_code(scene.line.first_pid()), 0);
    scene.line.wait_for(2, Event::CarryTakenOver.with("taken", AT_ONCE).with("refused", 0));
    assert!(scene.line.asked(&["reload"]).well().contains("generation 3 serves"));
    assert_eq!(exit_code(successor), 0);
    assert_eq!(scene.heard(), AT_ONCE, "{}", scene.line.text());
}

#[test]
fn a_stop_cancels_a_waiting_handoff() {
    let mut scene = Scene::set(Kind::Echo, SOME, &["--max-generations", "2"]);
    let successor = scene.take();
    let first = scene.line.first_pid();
    scene.line.signal(2, Signal::SIGHUP);
    scene.line.wait_for(2, Event::HandoffDelayed);
    scene.line.signal(2, Signal::SIGTERM);
    scene.line.wait_for(2, Event::DrainStarted.with("why", "stopping"));
    thaw(first);
    scene.assert_all_end_in_order();
    assert_eq!([exit_code(first), exit_code(successor)], [0, 0]);
    scene.line.wait_for_end();
    assert_eq!(scene.line.count(Event::HandoffStarted), 1);
}

/// The predecessor hangs and still holds a copy of each socket. The end of stream must reach the
/// client anyway.
#[test]
fn a_carried_client_gets_its_end_from_the_successor() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, AT_ONCE, &[]);
        scene.take();
        scene.assert_all_end_in_order();
        thaw(scene.line.first_pid());
        assert_eq!(exit_code(scene.line.first_pid()), 0);
    }
}

/// The successor reserves permits for connections that its predecessor does not send.
#[test]
fn new_clients_need_not_wait_for_reserved_permits() {
    let mut scene = Scene::set(Kind::Proxy, SOME, &["--max-connections", &SOME.to_string()]);
    scene.take();
    let mut newcomers: Vec<_> =
        (AT_ONCE..SOME).map(|_| Client::connect(&scene.line.address()).unwrap()).collect();
    newcomers.iter_mut().for_each(|client| client.echo(b"room for me?").unwrap());
    // The reserved connections still arrive.
    thaw(scene.line.first_pid());
    scene.line.wait_for(2, Event::CarryTakenOver.with("taken", SOME).with("refused", 0));
    assert_eq!(scene.heard(), SOME);
}
