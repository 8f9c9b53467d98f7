//! Killed at each single system call of a carry, either generation leaves every connection with
//! exactly one of them.
//!
//! strace is the killer. `carry_middle` has what both have done by then, with many connections at
//! once.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, Record, Tracer, exit_code};

const CLIENTS: usize = 5;
const KILLED: i32 = 128 + Signal::SIGKILL as i32;

/// A line that carries, and its clients, each of which has been answered.
struct Scene {
    line: Line,
    clients: Vec<Client>,
}

impl Scene {
    fn new() -> Self {
        let line = Line::serve(&["--carry", "--workers", "1", "--bake", "0"]);
        let clients = (0..CLIENTS).map(|_| {
            let mut client = Client::connect(&line.address()).unwrap();
            client.echo(b"before").unwrap();
            client
        });
        Self { clients: clients.collect(), line }
    }

    /// How many clients are answered; the others have come to an end, of whatever kind.
    fn answered(&mut self) -> usize {
        let ask = |client: &mut Client| match client.echo(b"after") {
            Ok(()) => true,
            Err(error) => {
                assert_ne!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock,
                    "neither an answer nor an end"
                );
                false
            }
        };
        self.clients.iter_mut().map(ask).filter(|is_answered| *is_answered).count()
    }
}

/// How many times a system call is in a trace.
fn count(trace: &str, call: &str) -> usize {
    trace.lines().filter(|line| line.starts_with(&format!("{call}("))).count()
}

/// Puts the daemon, under strace, in the place of the program: what its main thread calls, which
/// does all of a handoff.
fn put_traced(line: &Line, trace: &str, inject: &str) {
    line.put_script(&format!("exec strace -D -o '{trace}' {inject} \"$REAL\" \"$@\""));
}

#[test]
fn a_successor_that_is_killed_at_any_call_of_a_carry_has_lost_what_it_answered_for_and_no_more() {
    let scene = Scene::new();
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
        let mut scene = Scene::new();
        put_traced(
            &scene.line,
            "/dev/null",
            &format!("-e inject={call}:signal=SIGKILL:when={number}"),
        );
        let mark = scene.line.mark();
        scene.line.signal(1, Signal::SIGHUP);
        let outcome = |record: &Record| {
            record.is(1, Event::HandoffFailed) || record.is(1, Event::GenerationEnded)
        };
        let what = format!("an outcome, after {call} {number}");
        let came = scene.line.wait_since(mark, &what, outcome);
        if came.is_event(Event::GenerationEnded) {
            // It has all of them, and dies of a later call than those of a carry.
            continue;
        }
        if scene.line.count(Event::HandoffCommitted) > 0 {
            // It fails after the commit. Whatever is lost is said ahead of that.
            scene.line.wait_since(mark, "accepting again", |record| {
                record.is(1, Event::GenerationResumed)
            });
        }
        scene.line.assert_serves();
        let lost = scene.line.records().into_iter().find(|record| record.is(1, Event::CarryLost));
        let lost: usize = lost.map_or(0, |record| record.field("lost").unwrap().parse().unwrap());
        assert_eq!(
            scene.answered(),
            CLIENTS - lost,
            "after {call} {number}\n{}",
            scene.line.text()
        );
        in_between += usize::from((1..CLIENTS).contains(&lost));
    }
    assert!(in_between > 0, "no call was in the middle of a carry\n{trace}");
}

#[test]
fn a_predecessor_that_is_killed_at_any_message_of_a_carry_has_carried_those_before() {
    // The first of each thread: the main one's is the offer.
    for number in 1..=CLIENTS {
        let mut scene = Scene::new();
        let inject = format!("inject=sendmsg:signal=SIGKILL:when={number}");
        let tracer = Tracer::attach(&scene.line, scene.line.first_pid(), &["-f", "-e", &inject]);
        scene.line.signal(1, Signal::SIGHUP);
        assert_eq!(exit_code(scene.line.first_pid()), KILLED, "{}", scene.line.text());
        // It follows the successor as well.
        tracer.detach();
        scene.line.wait_for(2, Event::GenerationServing);
        assert_eq!(scene.answered(), number - 1, "{}", scene.line.text());
        scene.line.assert_serves();
    }
}
