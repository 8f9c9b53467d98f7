//! Tests of faults in the middle of a carry, when connections are received, sent and not yet sent.
//! Each connection must end up whole in exactly one process.
//!
//! The tests stop the carry without a clock. Both processes are stopped when the successor is ready
//! and nothing is committed. Then each process runs until it must wait for the other. There are
//! more connections than may be in transit at once. `carry_calls` tests each single system call.

mod scene;
mod stops;
mod waits;

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::support::{Event, Line, Stuck, Tracer, exit_code, freeze, signal, thaw};
use scene::{Kind, Scene, asleep};

const KILLED: i32 = 128 + Signal::SIGKILL as i32;
/// How many connections may be in transit at once.
const AT_ONCE: usize = 64;
/// A few more connections than may be in transit.
const SOME: usize = AT_ONCE + 6;
/// Longer than any test: a connection that ends earlier was cut.
const LONG_DRAIN: [&str; 2] = ["--drain-timeout", "600s"];

const KINDS: [Kind; 2] = [Kind::Echo, Kind::Proxy];

/// Returns each kind combined with each value of `of`.
fn cases<T: Copy, const N: usize>(of: [T; N]) -> impl Iterator<Item = (Kind, T)> {
    KINDS.into_iter().flat_map(move |kind| of.map(|one| (kind, one)))
}

fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
    assert_eq!(exit_code(pid), KILLED);
}

/// Resumes a stopped successor and sends it the signal `number` before its `when`-th message. Its
/// messages are mostly answers; the first may be a question.
fn go_on_to_answer(line: &Line, pid: u32, number: Signal, when: usize) -> Tracer {
    let tracer =
        Tracer::attach(line, pid, &["-e", &format!("inject=sendto:signal={number}:when={when}")]);
    thaw(pid);
    tracer
}

/// Returns how many connections the successor confirmed. The last call is the one that killed it,
/// and does not count.
fn taken(trace: &str) -> usize {
    let said = trace.lines().filter(|call| call.starts_with("sendto(") && call.contains("taken"));
    said.filter(|call| !call.ends_with('?')).count()
}

/// The predecessor serves all connections again, as if no handoff had started.
#[test]
fn a_successor_that_dies_before_answering_loses_nothing() {
    // The successor dies either with all connections in its queue, or just before its first
    // message.
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

/// A successor that dies in the middle of a carry loses exactly the connections that it had
/// confirmed. All of them are counted as lost.
#[test]
fn only_confirmed_connections_die_with_the_successor() {
    // The predecessor reads each answer at once, or all answers together with the end.
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

/// The successor died in the middle of the carry. The predecessor resumed and was then told to
/// stop.
#[test]
fn a_recalled_generation_reports_no_carried_connections() {
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

/// The service manager restarts the daemon after the successor has died. The log still counts all
/// lost connections.
#[test]
fn losses_are_logged_in_full_under_a_service_manager() {
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
        assert_eq!(exit_code(scene.line.first_pid()), 71);
    }
}

/// The predecessor cannot read the successor's answers, so it must not serve connections that it
/// has sent.
#[test]
fn a_failed_read_of_answers_leaves_sent_connections_alone() {
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

/// The successor serves them, whether it had confirmed them or not.
#[test]
fn connections_sent_by_a_dead_predecessor_survive() {
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
        // The counters of the dead generation are not lost.
        assert_eq!(scene.counted("accepted"), SOME + 1);
    }
}

/// The predecessor ends at once, and the successor serves what it was sent.
#[test]
fn cutting_the_predecessor_spares_sent_connections() {
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
fn cutting_the_predecessor_resets_unsent_connections() {
    let mut scene = Scene::set(Kind::Proxy, 10, &LONG_DRAIN);
    let pid = scene.line.first_pid();
    // Fails from each thread's second call on. The main thread's first call is the offer.
    let tracer =
        Tracer::attach(&scene.line, pid, &["-f", "-e", "inject=sendmsg:error=ENOBUFS:when=2+"]);
    scene.line.signal(1, Signal::SIGHUP);
    scene.line.wait_for(1, Event::ConnectionEnded.with("ending", "carried"));
    scene.line.signal(1, Signal::SIGQUIT);
    assert_eq!(exit_code(pid), 0);
    // The tracer follows the successor as well.
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
fn a_send_is_retried_when_the_kernel_is_out_of_buffers() {
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
