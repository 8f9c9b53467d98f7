//! Who waits for a carry that stands still: a handoff that would cut it, and whoever asked for
//! that. Newcomers do not.

use nix::sys::signal::Signal;

use super::scene::{Kind, Scene};
use super::{AT_ONCE, KINDS, SOME};
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

#[test]
fn a_reload_that_waits_for_a_carry_ends_with_the_truth_and_no_later_than_it_may() {
    let mut scene = Scene::set(Kind::Echo, SOME, &["--max-generations", "2"]);
    let successor = scene.take();
    let first = scene.line.first_pid();
    scene.line.put_real();
    scene.line.asked(&["reload", "--timeout", "300ms"]).names(75, &["not done within 0.3 s"]);
    assert_eq!(scene.line.count(Event::HandoffStarted), 1);
    let reload = scene.line.ask(&["reload"]);
    scene.line.wait_for_count(2, Event::HandoffDelayed);
    thaw(first);
    assert!(reload.wait().well().contains("generation 3 serves"));
    assert_eq!([exit_code(first), exit_code(successor)], [0, 0]);
    assert_eq!(scene.heard(), SOME, "{}", scene.line.text());
}

#[test]
fn a_handoff_that_waits_for_a_generation_that_hangs_is_given_up_when_it_promised_and_can_be_tried_again()
 {
    let mut scene =
        Scene::set(Kind::Echo, SOME, &["--max-generations", "2", "--drain-timeout", "1s"]);
    let successor = scene.take();
    scene.line.put_real();
    scene.line.asked(&["reload"]).names(75, &["connections were not taken over within 1 s"]);
    let status = scene.line.asked(&["status"]).well();
    assert!(status.contains("last handoff: generation 3 was given up"), "{status}");
    assert_eq!(scene.line.count(Event::HandoffStarted), 1);
    scene.line.assert_serves();
    // Its deadline has come as well, for those that it has not sent.
    thaw(scene.line.first_pid());
    assert_eq!(exit_code(scene.line.first_pid()), 0);
    scene.line.wait_for(2, Event::CarryTakenOver.with("taken", AT_ONCE).with("refused", 0));
    assert!(scene.line.asked(&["reload"]).well().contains("generation 3 serves"));
    assert_eq!(exit_code(successor), 0);
    assert_eq!(scene.heard(), AT_ONCE, "{}", scene.line.text());
}

#[test]
fn a_line_that_is_told_to_stop_when_a_handoff_waits_ends_without_it() {
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

#[test]
fn who_has_been_taken_over_hears_an_end_while_the_predecessor_hangs_with_its_copy() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, AT_ONCE, &[]);
        scene.take();
        scene.assert_all_end_in_order();
        thaw(scene.line.first_pid());
        assert_eq!(exit_code(scene.line.first_pid()), 0);
    }
}

#[test]
fn newcomers_do_not_wait_for_the_places_of_those_that_a_predecessor_does_not_send() {
    let mut scene = Scene::set(Kind::Proxy, SOME, &["--max-connections", &SOME.to_string()]);
    scene.take();
    let mut newcomers: Vec<_> =
        (AT_ONCE..SOME).map(|_| Client::connect(&scene.line.address()).unwrap()).collect();
    newcomers.iter_mut().for_each(|client| client.echo(b"is there room?").unwrap());
    // They come all the same.
    thaw(scene.line.first_pid());
    scene.line.wait_for(2, Event::CarryTakenOver.with("taken", SOME).with("refused", 0));
    assert_eq!(scene.heard(), SOME);
}
