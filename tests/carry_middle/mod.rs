//! In the very middle of a carry, with connections taken, sent and not yet sent, each of them is
//! with one process, whole.
//!
//! That middle is held still without a clock: both processes are stopped when the successor is
//! ready and nothing is committed, and then each is let run until it can do no more without the
//! other. There are more connections than are on their way at once. `carry_calls` has each single
//! call.

mod scene;
mod waits;

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::support::{Event, Line, Stuck, Tracer, exit_code, freeze, signal, thaw};
use scene::{Kind, Scene, asleep};

const KILLED: i32 = 128 + Signal::SIGKILL as i32;
/// How many are on their way at once.
const AT_ONCE: usize = 64;
/// Some more than that.
const SOME: usize = AT_ONCE + 6;
/// Longer than a test may take: whatever ends before that was cut.
const LONG_DRAIN: [&str; 2] = ["--drain-timeout", "600s"];

const KINDS: [Kind; 2] = [Kind::Echo, Kind::Proxy];

/// Each kind with each of those.
fn cases<T: Copy, const N: usize>(of: [T; N]) -> impl Iterator<Item = (Kind, T)> {
    KINDS.into_iter().flat_map(move |kind| of.map(|one| (kind, one)))
}

fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
    assert_eq!(exit_code(pid), KILLED);
}

/// Has a successor that stands still go on, with that signal ahead of the so many-th thing that it
/// says: its answers, and perhaps a question before or among them.
fn go_on_to_answer(line: &Line, pid: u32, number: Signal, when: usize) -> Tracer {
    let tracer =
        Tracer::attach(line, pid, &["-e", &format!("inject=sendto:signal={number}:when={when}")]);
    thaw(pid);
    tracer
}

/// For how many connections it has answered. The last call is the one that killed it.
fn taken(trace: &str) -> usize {
    let said = trace.lines().filter(|call| call.starts_with("sendto(") && call.contains("taken"));
    said.filter(|call| !call.ends_with('?')).count()
}

#[test]
fn a_successor_that_dies_before_it_has_answered_leaves_all_of_them_as_if_nothing_had_been() {
    // While it stands still with all of them in its queue, or ahead of the first word that it says.
    for (kind, has_read) in cases([false, true]) {
        let mut scene = Scene::set(kind, SOME, &[]);
        let mut stuck = Stuck::on(&scene.line, &scene.line.address());
        let successor = scene.hold_before_carry();
        scene.send();
        let mark = scene.line.mark();
        if has_read {
            let trace = go_on_to_answer(&scene.line, successor, Signal::SIGKILL, 1).wait();
            assert_eq!(taken(&trace), 0, "{trace}");
            assert_eq!(exit_code(successor), KILLED);
        } else {
            kill(successor);
        }
        scene
            .line
            .wait_since(mark, "accepting again", |record| record.is(1, Event::GenerationResumed));
        assert_eq!(scene.heard(), SOME, "{kind:?}\n{}", scene.line.text());
        stuck.read();
        assert_eq!([scene.counted("carried"), scene.counted("lost")], [0, 0]);
        assert_eq!(scene.line.count(Event::CarryLost), 0);
        scene.assert_recalled(mark, SOME + 1);
    }
}

#[test]
fn a_successor_that_dies_in_the_middle_takes_with_it_exactly_what_it_has_answered_for_and_all_of_that_is_counted()
 {
    // The predecessor hears each answer at once, or all of them together with the end.
    for (kind, (hears_late, when)) in cases([(false, 3), (false, 40), (true, 3), (true, 40)]) {
        let mut scene = Scene::set(kind, SOME, &[]);
        let successor = scene.hold_before_carry();
        scene.send();
        let mark = scene.line.mark();
        if hears_late {
            freeze(scene.line.first_pid());
        }
        let trace = go_on_to_answer(&scene.line, successor, Signal::SIGKILL, when).wait();
        let taken = taken(&trace);
        assert!(taken > 0, "{trace}");
        assert_eq!(exit_code(successor), KILLED);
        if hears_late {
            thaw(scene.line.first_pid());
        }
        scene
            .line
            .wait_since(mark, "accepting again", |record| record.is(1, Event::GenerationResumed));
        let what = format!("{kind:?} {hears_late}\n{}", scene.line.text());
        assert_eq!(scene.heard(), SOME - taken, "{what}");
        let said = scene.line.wait_since(mark, "the loss", |record| record.is(1, Event::CarryLost));
        assert!(said.text.starts_with("ERROR"), "{said:?}");
        assert_eq!(said.field("lost"), Some(&*taken.to_string()), "{what}");
        assert_eq!([scene.counted("carried"), scene.counted("lost")], [taken; 2], "{what}");
        scene.assert_recalled(mark, SOME - taken);
    }
}

#[test]
fn a_generation_that_was_recalled_in_the_middle_and_stops_has_carried_none_by_its_last_word() {
    let mut scene = Scene::set(Kind::Echo, SOME, &[]);
    let successor = scene.take();
    kill(successor);
    thaw(scene.line.first_pid());
    scene.line.wait_for(1, Event::GenerationResumed);
    assert_eq!(scene.heard(), SOME - AT_ONCE);
    scene.line.signal(1, Signal::SIGTERM);
    scene.line.wait_for(
        1,
        Event::GenerationEnded.with("ended", SOME - AT_ONCE).with("carried", 0).with("cut", 0),
    );
}

#[test]
fn what_is_lost_with_a_successor_is_said_in_full_also_where_a_service_manager_mends_it() {
    for kind in KINDS {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let mut scene = Scene::set_with(kind, SOME, |command| {
            command.env("NOTIFY_SOCKET", &path);
        });
        let successor = scene.hold_before_carry();
        scene.send();
        freeze(scene.line.first_pid());
        let taken = taken(&go_on_to_answer(&scene.line, successor, Signal::SIGKILL, 40).wait());
        assert_eq!(exit_code(successor), KILLED);
        thaw(scene.line.first_pid());
        scene.line.wait_for(1, Event::SuccessorDied);
        let said = scene.line.wait_for(1, Event::CarryLost);
        assert!(
            taken > 0 && said.field("lost") == Some(&*taken.to_string()),
            "{taken}\n{}",
            scene.line.text()
        );
        scene.clients.clear();
        assert_eq!(exit_code(scene.line.first_pid()), 0);
    }
}

#[test]
fn a_predecessor_that_cannot_read_what_it_is_answered_does_not_touch_what_it_has_sent() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, SOME, &["--drain-timeout", "2s"]);
        scene.take();
        let _tracer = Tracer::attach(
            &scene.line,
            scene.line.first_pid(),
            &["-e", "inject=recvfrom:error=EIO:when=1"],
        );
        thaw(scene.line.first_pid());
        scene.line.wait_for(1, Event::CarryAnswerFailed);
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        assert_eq!(scene.heard(), AT_ONCE, "{kind:?}\n{}", scene.line.text());
        scene.line.assert_serves();
    }
}

#[test]
fn what_a_predecessor_that_dies_had_sent_goes_on_in_the_successor_answered_or_not() {
    for (kind, is_answered) in cases([false, true]) {
        let mut scene = Scene::set(kind, SOME, &[]);
        let successor = scene.hold_before_carry();
        scene.send();
        if is_answered {
            freeze(scene.line.first_pid());
            thaw(successor);
            scene.line.wait_for(2, Event::GenerationServing);
            asleep(successor);
            kill(scene.line.first_pid());
        } else {
            kill(scene.line.first_pid());
            thaw(successor);
        }
        assert_eq!(scene.heard(), AT_ONCE, "{kind:?}\n{}", scene.line.text());
        scene.line.assert_serves();
        scene.line.wait_for(2, Event::CarryTakenOver.with("taken", AT_ONCE).with("refused", 0));
        let lost = Event::GenerationDied.with("died", 1).with("open", SOME);
        assert!(scene.line.wait_for(2, lost).text.starts_with("ERROR"));
        // What it has counted is not lost.
        assert_eq!(scene.counted("accepted"), SOME + 1);
    }
}

#[test]
fn a_predecessor_that_is_cut_in_the_middle_ends_at_once_and_what_it_had_sent_goes_on() {
    for (kind, signals) in cases([&[Signal::SIGINT, Signal::SIGINT][..], &[Signal::SIGQUIT]]) {
        let mut scene = Scene::set(kind, SOME, &LONG_DRAIN);
        let successor = scene.hold_before_carry();
        scene.send();
        for (number, one) in signals.iter().enumerate() {
            scene.line.signal(1, *one);
            scene.line.wait_for_count(number + 1, Event::SignalReceived.with("signal", one));
        }
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        thaw(successor);
        assert_eq!(scene.heard(), AT_ONCE, "{kind:?} {signals:?}\n{}", scene.line.text());
        scene.line.assert_serves();
    }
}

#[test]
fn a_predecessor_that_is_cut_resets_whom_it_could_not_send() {
    let mut scene = Scene::set(Kind::Proxy, 10, &LONG_DRAIN);
    let pid = scene.line.first_pid();
    // The first of each thread: the main one's is the offer.
    let tracer =
        Tracer::attach(&scene.line, pid, &["-f", "-e", "inject=sendmsg:error=ENOBUFS:when=2+"]);
    scene.line.signal(1, Signal::SIGHUP);
    scene.line.wait_for(1, Event::ConnectionEnded.with("ending", "carried"));
    scene.line.signal(1, Signal::SIGQUIT);
    assert_eq!(exit_code(pid), 0);
    // It follows the successor as well.
    tracer.detach();
    let ends: Vec<_> = scene
        .clients
        .iter_mut()
        .map(|client| client.echo(b"after").map_err(|error| error.kind()))
        .collect();
    let count = |what| ends.iter().filter(|end| **end == what).count();
    assert_eq!(
        [count(Ok(())), count(Err(ErrorKind::ConnectionReset))],
        [1, 9],
        "{ends:?}\n{}",
        scene.line.text()
    );
    scene
        .line
        .wait_for(1, Event::GenerationEnded.with("ended", 0).with("carried", 1).with("cut", 9));
}

#[test]
fn connections_that_the_kernel_has_no_room_for_are_sent_again() {
    for kind in KINDS {
        let mut scene = Scene::set(kind, 5, &[]);
        let pid = scene.line.first_pid();
        let tracer = Tracer::attach(
            &scene.line,
            pid,
            &["-f", "-e", "inject=sendmsg:error=ETOOMANYREFS:when=2..9"],
        );
        scene.line.signal(1, Signal::SIGHUP);
        assert_eq!(exit_code(pid), 0);
        tracer.detach();
        scene
            .line
            .wait_for(1, Event::GenerationEnded.with("ended", 0).with("carried", 5).with("cut", 0));
        scene.clients.iter_mut().for_each(|client| client.echo(b"after").unwrap());
    }
}

#[test]
fn a_predecessor_that_is_told_to_stop_in_the_middle_carries_the_rest_as_well_and_ends() {
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

#[test]
fn a_line_that_is_told_to_stop_when_some_are_carried_serves_everybody_to_the_end() {
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

#[test]
fn a_line_that_is_cut_when_some_are_carried_ends_and_so_does_every_connection() {
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

#[test]
fn of_three_parts_a_successor_that_hangs_serves_on_what_it_had_and_what_it_was_sent_and_nobody_else_does()
 {
    for kind in KINDS {
        // The first part is taken when it hangs, the second waits for it, and the third was not
        // sent.
        let mut scene = Scene::set(kind, AT_ONCE + SOME, &["--drain-timeout", "2s"]);
        let successor = scene.take();
        freeze(successor);
        thaw(scene.line.first_pid());
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        // The third part is told to come to an end before the deadline; what a proxy relays is not
        // over for that.
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
