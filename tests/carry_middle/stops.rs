//! Tests of stops and pauses in the middle of a carry.

use super::*;
use crate::support::{Event, Stuck, exit_code, freeze, thaw};
use nix::sys::signal::Signal;
use scene::{Kind, Scene};

#[test]
fn a_predecessor_told_to_stop_still_carries_the_rest() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, SOME, &[]);
        let mut stuck = Stuck::on(&scene.line, &scene.line.address());
        let successor = scene.hold_before_carry();
        scene.send();
        scene.line.signal(1, Signal::SIGTERM);
        scene.line.wait_for(1, Event::SignalReceived.with("signal", "SIGTERM"));
        thaw(successor);
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        assert_eq!(scene.heard(), SOME, "{kind:?}");
        stuck.read();
        scene.line.wait_for(
            1,
            Event::GenerationEnded.with("ended", 0).with("carried", SOME + 1).with("cut", 0),
        );
        scene.line.assert_serves();
    }
}

/// The successor is told to stop after it has received some connections.
#[test]
fn a_stop_in_the_middle_of_a_carry_cuts_no_connection() {
    for (kind, when) in cases([1, 20]) {
        let mut scene = Scene::set(kind, SOME, &[]);
        let stuck = Stuck::on(&scene.line, &scene.line.address());
        let successor = scene.hold_before_carry();
        scene.send();
        let tracer = go_on_to_answer(&scene.line, successor, Signal::SIGTERM, when);
        scene.assert_all_end_in_order();
        stuck.half_close();
        stuck.read_until_end();
        assert_eq!(
            [exit_code(scene.line.first_pid()), exit_code(successor)],
            [0, 0],
            "{kind:?} {when}"
        );
        tracer.wait();
        scene.line.wait_for_end();
        assert_eq!(scene.line.count(Event::ConnectionEnded.with("ending", "cut")), 0);
    }
}

/// Both processes and every connection end at once.
#[test]
fn a_quit_in_the_middle_of_a_carry_ends_everything() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, SOME, &LONG_DRAIN);
        let successor = scene.hold_before_carry();
        scene.send();
        let tracer = go_on_to_answer(&scene.line, successor, Signal::SIGQUIT, 20);
        assert_eq!([exit_code(scene.line.first_pid()), exit_code(successor)], [0, 0], "{kind:?}");
        tracer.wait();
        scene.line.wait_for_end();
        assert_eq!(scene.heard(), 0);
    }
}

/// The successor hangs after it has received a part of the connections. A second part waits in its
/// queue, and a third part was not sent.
#[test]
fn a_hanging_successor_later_serves_all_it_was_sent() {
    for kind in KINDS {
        // The successor has the first part when it hangs. The second part waits in its queue. The
        // third part was not sent.
        let mut scene = Scene::set(kind, AT_ONCE + SOME, &["--drain-timeout", "2s"]);
        let successor = scene.take();
        freeze(successor);
        thaw(scene.line.first_pid());
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        // The predecessor asks the third part to end before the deadline. A proxied connection does
        // not end by that.
        let ended = if kind == Kind::Echo { SOME - AT_ONCE } else { 0 };
        scene.line.wait_for(
            1,
            Event::GenerationEnded
                .with("ended", ended)
                .with("carried", AT_ONCE)
                .with("cut", SOME - ended),
        );
        thaw(successor);
        assert_eq!(scene.heard(), 2 * AT_ONCE, "{kind:?}\n{}", scene.line.text());
        scene.line.assert_serves();
        scene.line.wait_for(2, Event::CarryTakenOver.with("taken", 2 * AT_ONCE).with("refused", 0));
    }
}
