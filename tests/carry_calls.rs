//! Carries interrupted by a kill at every system call: each connection ends up with exactly one
//! generation.
//!
//! strace does the killing. `carry_middle` kills at larger steps, with many connections at once.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, Record, Tracer, exit_code};

const CLIENTS: usize = 5;
const KILLED: i32 = 128 + Signal::SIGKILL as i32;

/// A lineage that carries connections, with clients that have each received a reply.
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

    /// Returns how many clients are still answered. The connections of the others have ended.
    fn answered(&mut self) -> usize {
        let ask = |client: &mut Client| match client.echo(b"after") {
            Ok(()) => true,
            Err(error) => {
                assert_ne!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock,
                    "the client got neither a reply nor an end"
                );
                false
            }
        };
        self.clients.iter_mut().map(ask).filter(|is_answered| *is_answered).count()
    }
}

/// Returns how often a system call occurs in a trace.
fn count(trace: &str, call: &str) -> usize {
    trace.lines().filter(|line| line.starts_with(&format!("{call}("))).count()
}

/// Makes the next generation run under strace. It traces the main thread, which performs the whole
/// handoff.
fn put_traced(line: &Line, trace: &str, inject: &str) {
    line.put_script(&format!("exec strace -D -o '{trace}' {inject} \"$REAL\" \"$@\""));
}

/// The successor is killed at each system call of a carry in turn. Only the connections that it has
/// acknowledged are lost.
#[test]
fn a_killed_successor_loses_only_the_connections_it_took() {
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
            // The successor has taken all connections and dies at a call after the carry.
            continue;
        }
        if scene.line.count(Event::HandoffCommitted) > 0 {
            // The handoff fails after the commit; the lost connections are reported before that.
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
    assert!(in_between > 0, "no kill happened in the middle of the carry\n{trace}");
}

/// The predecessor is killed at each message of a carry in turn. The connections sent before that
/// message are served by the successor.
#[test]
fn a_killed_predecessor_has_carried_the_earlier_connections() {
    // The count starts at 1 in each thread; the main thread's first message is the offer.
    for number in 1..=CLIENTS {
        let mut scene = Scene::new();
        let inject = format!("inject=sendmsg:signal=SIGKILL:when={number}");
        let tracer = Tracer::attach(&scene.line, scene.line.first_pid(), &["-f", "-e", &inject]);
        scene.line.signal(1, Signal::SIGHUP);
        assert_eq!(exit_code(scene.line.first_pid()), KILLED, "{}", scene.line.text());
        // strace traces the successor too.
        tracer.detach();
        scene.line.wait_for(2, Event::GenerationServing);
        assert_eq!(scene.answered(), number - 1, "{}", scene.line.text());
        scene.line.assert_serves();
    }
}
