//! In the very middle of a carry, with connections taken, sent and not yet sent, each of them is with one process, whole.
//!
//! That middle is held still without a clock: both processes are stopped when the successor is ready and nothing is committed,
//! and then each is let run until it can do no more without the other. There are more connections than are on their way at
//! once. `carry_calls` has each single call.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::line::is_asleep;
use crate::support::{
    Client, Echoing, Gate, Line, REAL, Stuck, Tracer, Upstream, assert_becomes, exit_code, freeze,
    raise_descriptor_limit, signal, thaw,
};

const KILLED: i32 = 128 + Signal::SIGKILL as i32;
/// How many are on their way at once.
const AT_ONCE: usize = 64;
/// Some more than that.
const SOME: usize = AT_ONCE + 6;
/// Longer than a test may take: whatever ends before that was cut.
const LONG_DRAIN: [&str; 2] = ["--drain-timeout", "600s"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Echo,
    Proxy,
}

const KINDS: [Kind; 2] = [Kind::Echo, Kind::Proxy];

/// Each kind with each of those.
fn cases<T: Copy, const N: usize>(of: [T; N]) -> impl Iterator<Item = (Kind, T)> {
    KINDS.into_iter().flat_map(move |kind| of.map(|one| (kind, one)))
}

/// A line that carries, and the clients of its first generation.
struct Scene {
    line: Line,
    clients: Vec<Client>,
    _upstream: Option<Echoing>,
}

/// What a client says, unlike all others: first this, and while it is carried that.
fn requests(client: usize) -> [Vec<u8>; 2] {
    let bytes = |from: usize, count: usize| (from..from + count).map(|at| ((at * 31) ^ (at >> 8)).to_le_bytes()[0]);
    [bytes(client * 7, 100).collect(), bytes(client * 11 + 5, 3_000).collect()]
}

impl Scene {
    /// Starts a line, with so many clients who have been served.
    fn set(kind: Kind, count: usize, arguments: &[&str]) -> Self {
        Self::set_with(kind, count, |command| {
            command.args(arguments);
        })
    }

    /// The same with what the caller adds to the command.
    fn set_with(kind: Kind, count: usize, add: impl FnOnce(&mut Command)) -> Self {
        raise_descriptor_limit();
        let upstream = (kind == Kind::Proxy).then(Upstream::tcp);
        let to = upstream.as_ref().map(Upstream::address);
        let line = Line::start_program(Path::new(REAL), |command, folder| {
            if let Some(to) = &to {
                command.args(["proxy", "--to", to]);
            }
            command.args(["--listen", "127.0.0.1:0", "--log", "debug", "--carry", "--workers", "1", "--bake", "0"]);
            command.arg("--control").arg(folder.join("control"));
            add(command);
        });
        let upstream = upstream.zip(to).map(|(upstream, to)| Echoing::on(upstream, &to));
        line.wait_for(1, "serving draining");
        let mut clients: Vec<_> = (0..count).map(|_| Client::connect(&line.address()).unwrap()).collect();
        clients.iter_mut().for_each(|client| client.echo(b"there").unwrap());
        Self { line, clients, _upstream: upstream }
    }

    /// Begins a handoff, and stops both processes when the successor is ready. Then each client says the first. Tells the
    /// successor's process id.
    fn hold_before_carry(&mut self) -> u32 {
        let mut gate = Gate::before_successor(&self.line, "\"$@\"");
        self.line.signal(1, Signal::SIGHUP);
        let successor = gate.wait(&self.line);
        freeze(self.line.first_pid());
        gate.open();
        self.line.wait_for(2, "to=\"probation\"");
        // That is written before it tells.
        asleep(successor);
        freeze(successor);
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.write_all(&requests(number)[0]).unwrap();
        }
        successor
    }

    /// The predecessor commits, and sends all that may be on their way at once. Then each client says the second, most of them to
    /// nobody.
    fn send(&mut self) {
        thaw(self.line.first_pid());
        self.line.wait_for(1, "draining why");
        asleep(self.line.first_pid());
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.write_all(&requests(number)[1]).unwrap();
        }
    }

    /// How many clients hear all that they are owed, and are served on. All others hear an end: no byte is wrong.
    fn heard(&mut self) -> usize {
        let hear = |(number, client): (usize, &mut Client)| {
            let owed = requests(number).concat();
            match client.expect(&owed).and_then(|()| client.echo(b"and on")) {
                Ok(()) => true,
                Err(error) if is_end(error.kind()) => false,
                Err(error) => panic!("client {number}: {error}"),
            }
        };
        self.clients.iter_mut().enumerate().map(hear).filter(|is_served| *is_served).count()
    }

    /// Everybody hears all that was owed, and then the end.
    fn assert_all_end_in_order(&mut self) {
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.expect(&requests(number).concat()).unwrap();
            // Behind a proxy it is for one of the two to end a conversation. The other may have done so.
            let _ = client.half_close();
            client.expect_end().unwrap();
        }
    }

    /// What the line has counted of its listener.
    fn counted(&self, name: &str) -> usize {
        let status: Value = serde_json::from_str(&self.line.asked(&["status", "--json"]).well()).unwrap();
        let number = status["counters"]["listeners"]["listener-1"][name].as_u64().unwrap();
        usize::try_from(number).unwrap()
    }

    /// The old generation is the head again, and hands over in turn: so many connections go with that.
    fn assert_recalled(&self, mark: usize, carries: usize) {
        let line = &self.line;
        line.put_real();
        line.wait_since(mark, "serving again", |record| record.is(1, "serving draining"));
        line.assert_serves();
        let recalled = line.mark();
        line.signal(1, Signal::SIGHUP);
        let taken = line.wait_since(recalled, "a takeover", |record| record.is(2, "took over"));
        assert_eq!(taken.field("taken"), Some(&*carries.to_string()), "{}", line.text());
        assert_eq!(exit_code(line.first_pid()), 0);
    }
}

fn is_end(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Waits until a process has done all that it can do.
fn asleep(pid: u32) {
    assert_becomes(&true, || is_asleep(pid).unwrap());
}

fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
    assert_eq!(exit_code(pid), KILLED);
}

/// Has a successor that stands still go on, with that signal ahead of the so many-th thing that it says: its answers, and perhaps
/// a question before or among them.
fn go_on_to_answer(line: &Line, pid: u32, number: Signal, when: usize) -> Tracer {
    let tracer = Tracer::attach(line, pid, &["-e", &format!("inject=sendto:signal={number}:when={when}")]);
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
        scene.line.wait_since(mark, "accepting again", |record| record.is(1, "accepting again"));
        assert_eq!(scene.heard(), SOME, "{kind:?}\n{}", scene.line.text());
        stuck.read();
        assert_eq!([scene.counted("carried"), scene.counted("lost")], [0, 0]);
        assert_eq!(scene.line.count("are lost with it"), 0);
        scene.assert_recalled(mark, SOME + 1);
    }
}

#[test]
fn a_successor_that_dies_in_the_middle_takes_with_it_exactly_what_it_has_answered_for_and_all_of_that_is_counted() {
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
        scene.line.wait_since(mark, "accepting again", |record| record.is(1, "accepting again"));
        let what = format!("{kind:?} {hears_late}\n{}", scene.line.text());
        assert_eq!(scene.heard(), SOME - taken, "{what}");
        let said = scene.line.wait_since(mark, "the loss", |record| record.is(1, "are lost with it"));
        assert!(said.text.starts_with("ERROR"), "{said:?}");
        assert_eq!(said.field("lost"), Some(&*taken.to_string()), "{what}");
        assert_eq!([scene.counted("carried"), scene.counted("lost")], [taken; 2], "{what}");
        scene.assert_recalled(mark, SOME - taken);
    }
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
        scene.line.wait_for(1, "for the service manager to mend");
        let said = scene.line.wait_for(1, "are lost with it");
        assert!(taken > 0 && said.field("lost") == Some(&*taken.to_string()), "{taken}\n{}", scene.line.text());
        scene.clients.clear();
        assert_eq!(exit_code(scene.line.first_pid()), 0);
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
            scene.line.wait_for(2, "serving draining");
            asleep(successor);
            kill(scene.line.first_pid());
        } else {
            kill(scene.line.first_pid());
            thaw(successor);
        }
        assert_eq!(scene.heard(), AT_ONCE, "{kind:?}\n{}", scene.line.text());
        scene.line.assert_serves();
        scene.line.wait_for(2, &format!("took over {AT_ONCE} connections, and refused 0"));
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
            scene.line.wait_for_count(number + 1, &format!("signal received signal=\"{one}\""));
        }
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        thaw(successor);
        assert_eq!(scene.heard(), AT_ONCE, "{kind:?} {signals:?}\n{}", scene.line.text());
        scene.line.assert_serves();
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
        scene.line.wait_for(1, r#"signal received signal="SIGTERM""#);
        thaw(successor);
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        assert_eq!(scene.heard(), SOME, "{kind:?}");
        stuck.read();
        scene.line.wait_for(1, &format!("has ended ended=0 carried={} cut=0", SOME + 1));
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
        assert_eq!([exit_code(scene.line.first_pid()), exit_code(successor)], [0, 0], "{kind:?} {when}");
        tracer.wait();
        scene.line.wait_for_end();
        assert_eq!(scene.line.count("ending=\"cut\""), 0);
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
fn of_three_parts_a_successor_that_hangs_serves_on_what_it_had_and_what_it_was_sent_and_nobody_else_does() {
    for kind in KINDS {
        // The first part is taken when it hangs, the second waits for it, and the third was not sent.
        let mut scene = Scene::set(kind, AT_ONCE + SOME, &["--drain-timeout", "2s"]);
        let successor = scene.hold_before_carry();
        scene.send();
        freeze(scene.line.first_pid());
        thaw(successor);
        scene.line.wait_for(2, "serving draining");
        asleep(successor);
        freeze(successor);
        thaw(scene.line.first_pid());
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        // The third part is told to come to an end before the deadline; what a proxy relays is not over for that.
        let ended = if kind == Kind::Echo { SOME - AT_ONCE } else { 0 };
        scene.line.wait_for(1, &format!("has ended ended={ended} carried={AT_ONCE} cut={}", SOME - ended));
        thaw(successor);
        assert_eq!(scene.heard(), 2 * AT_ONCE, "{kind:?}\n{}", scene.line.text());
        scene.line.assert_serves();
        scene.line.wait_for(2, &format!("took over {} connections, and refused 0", 2 * AT_ONCE));
    }
}
