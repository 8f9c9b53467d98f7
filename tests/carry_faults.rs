//! Either generation may die, hang or be told to stop in the middle of a carry: what can go on does, by exactly one of them.
//!
//! A successor that stands still between ready and the commit has everything that its predecessor sends in its queue, and has
//! read none of it: that is one instant, held for as long as a test wants. For the instants between a message and its answer
//! strace kills one of the two at each of its system calls.

use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;

use crate::support::line::is_asleep;
use crate::support::{
    Client, Echoing, Line, Record, Tracer, Upstream, assert_becomes, exit_code, freeze, signal, thaw,
};

const CLIENTS: usize = 5;
const KILLED: i32 = 128 + Signal::SIGKILL as i32;
/// Long enough to stop a successor that has just said that it is ready.
const BAKE: [&str; 2] = ["--bake", "2s"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Echo,
    Proxy,
}

/// A line that carries, and its clients, each of which has been answered.
struct Scene {
    line: Line,
    clients: Vec<Client>,
    _upstream: Option<Echoing>,
}

impl Scene {
    fn new(service: Service, flags: &[&str]) -> Self {
        let flags = [&["--carry", "--workers", "1"], flags].concat();
        let (line, upstream) = match service {
            Service::Echo => (Line::serve(&flags), None),
            Service::Proxy => {
                let upstream = Upstream::tcp();
                let address = upstream.address();
                (Line::proxy(&[&address], &flags), Some(Echoing::on(upstream, &address)))
            }
        };
        let clients = (0..CLIENTS).map(|_| {
            let mut client = Client::connect(&line.address()).unwrap();
            client.echo(b"before").unwrap();
            client
        });
        Self { clients: clients.collect(), line, _upstream: upstream }
    }

    /// Has the first generation hand over to one that stands still from before the commit on: its process. When this returns
    /// all connections are in its queue, and their clients have said more.
    fn stand_still(&mut self) -> u32 {
        self.line.signal(1, Signal::SIGHUP);
        let ready = self.line.wait_for(1, "the successor is ready");
        let successor = ready.field("successor_pid").unwrap().parse().unwrap();
        freeze(successor);
        assert_eq!(self.line.count("handed over"), 0, "it stood still too late\n{}", self.line.text());
        self.line.wait_for(1, "draining why");
        assert_becomes(&true, || is_asleep(self.line.first_pid()).unwrap());
        for client in &mut self.clients {
            client.write_all(b"during").unwrap();
        }
        successor
    }

    /// Every client hears what it had said, and whatever it says from now on.
    fn assert_all_go_on(&mut self) {
        for client in &mut self.clients {
            client.expect(b"during").unwrap();
            client.echo(b"after").unwrap();
        }
        self.line.assert_serves();
    }

    /// How many clients are answered; the others have come to an end, of whatever kind.
    fn answered(&mut self) -> usize {
        let ask = |client: &mut Client| match client.echo(b"after") {
            Ok(()) => true,
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "neither an answer nor an end");
                false
            }
        };
        self.clients.iter_mut().map(ask).filter(|is_answered| *is_answered).count()
    }
}

#[test]
fn a_successor_that_dies_with_connections_in_its_queue_has_touched_none() {
    for service in [Service::Echo, Service::Proxy] {
        let mut scene = Scene::new(service, &BAKE);
        let successor = scene.stand_still();
        let mark = scene.line.mark();
        signal(successor, Signal::SIGKILL);
        assert_eq!(exit_code(successor), KILLED);
        scene.line.wait_since(mark, "the end of the handoff", |record| record.is(1, "the handoff failed after all"));
        scene.assert_all_go_on();
        assert_eq!(scene.line.count("are lost with it"), 0, "{}", scene.line.text());
        // As if nothing had been: the next one takes them.
        scene.line.hand_over_from(1);
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        assert_eq!(scene.answered(), CLIENTS, "{service:?}\n{}", scene.line.text());
        scene.line.wait_for(1, "has ended ended=0 carried=5");
    }
}

#[test]
fn a_predecessor_that_dies_leaves_its_successor_what_it_has_sent() {
    for service in [Service::Echo, Service::Proxy] {
        for last in [Signal::SIGKILL, Signal::SIGQUIT] {
            let mut scene = Scene::new(service, &BAKE);
            let successor = scene.stand_still();
            signal(scene.line.first_pid(), last);
            assert_eq!(exit_code(scene.line.first_pid()), if last == Signal::SIGKILL { KILLED } else { 0 });
            thaw(successor);
            scene.assert_all_go_on();
        }
    }
}

#[test]
fn a_predecessor_that_is_told_to_stop_goes_on_carrying() {
    let mut scene = Scene::new(Service::Echo, &BAKE);
    let successor = scene.stand_still();
    scene.line.signal(1, Signal::SIGTERM);
    thaw(successor);
    scene.assert_all_go_on();
    assert_eq!(exit_code(scene.line.first_pid()), 0);
    scene.line.wait_for(1, "has ended ended=0 carried=5");
}

#[test]
fn a_successor_that_hangs_has_what_it_was_sent_when_it_goes_on() {
    for service in [Service::Echo, Service::Proxy] {
        let mut scene = Scene::new(service, &[&BAKE[..], &["--drain-timeout", "1s"]].concat());
        let successor = scene.stand_still();
        // At its deadline it lets go of them, and says nothing to anybody.
        assert_eq!(exit_code(scene.line.first_pid()), 0);
        scene.line.wait_for(1, "has ended ended=0 carried=0 cut=5");
        thaw(successor);
        scene.assert_all_go_on();
    }
}

#[test]
fn a_line_that_is_told_to_stop_in_the_middle_answers_everybody_and_ends() {
    let mut scene = Scene::new(Service::Echo, &BAKE);
    let successor = scene.stand_still();
    signal(successor, Signal::SIGTERM);
    thaw(successor);
    for client in &mut scene.clients {
        client.expect(b"during").unwrap();
        client.expect_end().unwrap();
    }
    scene.clients.clear();
    assert_eq!((exit_code(scene.line.first_pid()), exit_code(successor)), (0, 0));
}

#[test]
fn a_line_that_is_cut_in_the_middle_ends_at_once() {
    let mut scene = Scene::new(Service::Proxy, &BAKE);
    let successor = scene.stand_still();
    signal(successor, Signal::SIGQUIT);
    thaw(successor);
    assert_eq!((exit_code(scene.line.first_pid()), exit_code(successor)), (0, 0));
    for client in &mut scene.clients {
        // What they had said may have been answered. But there is an end, of one kind or the other.
        let (said, end) = client.read_all();
        assert!(b"during".starts_with(&said), "{said:?}");
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
}

/// How many times a system call is in a trace.
fn count(trace: &str, call: &str) -> usize {
    trace.lines().filter(|line| line.starts_with(&format!("{call}("))).count()
}

/// Puts the daemon, under strace, in the place of the program: what its main thread calls, which does all of a handoff.
fn put_traced(line: &Line, trace: &str, inject: &str) {
    line.put_script(&format!("exec strace -D -o '{trace}' {inject} \"$REAL\" \"$@\""));
}

#[test]
fn a_successor_that_is_killed_at_any_call_of_a_carry_has_lost_what_it_answered_for_and_no_more() {
    let scene = Scene::new(Service::Echo, &["--bake", "0"]);
    let trace = scene.line.folder().join("trace").display().to_string();
    put_traced(&scene.line, &trace, "");
    scene.line.hand_over_from(1);
    assert_eq!(exit_code(scene.line.first_pid()), 0);
    scene.line.signal(2, Signal::SIGTERM);
    scene.line.wait_for_end();
    let trace = fs::read_to_string(trace).unwrap();
    drop(scene);
    let mut in_between = 0;
    for (call, number) in ["recvmsg", "sendto", "epoll_ctl", "write"]
        .into_iter()
        .flat_map(|call| (1..=count(&trace, call)).map(move |number| (call, number)))
    {
        let mut scene = Scene::new(Service::Echo, &["--bake", "0"]);
        put_traced(&scene.line, "/dev/null", &format!("-e inject={call}:signal=SIGKILL:when={number}"));
        let mark = scene.line.mark();
        scene.line.signal(1, Signal::SIGHUP);
        let outcome = |record: &Record| record.is(1, "the handoff failed") || record.is(1, "generation 1 has ended");
        let what = format!("an outcome, after {call} {number}");
        let came = scene.line.wait_since(mark, &what, outcome);
        if came.text.contains("has ended") {
            // It has all of them, and dies of a later call than those of a carry.
            continue;
        }
        // Whatever it has lost is said by then.
        scene.line.assert_serves();
        let lost = scene.line.records().into_iter().find(|record| record.is(1, "are lost with it"));
        let lost: usize = lost.map_or(0, |record| record.field("lost").unwrap().parse().unwrap());
        assert_eq!(scene.answered(), CLIENTS - lost, "after {call} {number}\n{}", scene.line.text());
        in_between += usize::from((1..CLIENTS).contains(&lost));
    }
    assert!(in_between > 0, "no call was in the middle of a carry\n{trace}");
}

#[test]
fn a_predecessor_that_is_killed_at_any_message_of_a_carry_has_carried_those_before() {
    // The first of each thread: the main one's is the offer.
    for number in 1..=CLIENTS {
        let mut scene = Scene::new(Service::Echo, &["--bake", "0"]);
        let inject = format!("inject=sendmsg:signal=SIGKILL:when={number}");
        let tracer = Tracer::attach(&scene.line, scene.line.first_pid(), &["-f", "-e", &inject]);
        scene.line.signal(1, Signal::SIGHUP);
        assert_eq!(exit_code(scene.line.first_pid()), KILLED, "{}", scene.line.text());
        // It follows the successor as well.
        tracer.detach();
        scene.line.wait_for(2, "serving draining");
        assert_eq!(scene.answered(), number - 1, "{}", scene.line.text());
        scene.line.assert_serves();
    }
}
