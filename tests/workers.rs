//! Tests of worker threads: a generation is ready when all its workers accept. When a worker dies,
//! the generation ends and reports why.
//!
//! strace(1) makes the runtime of one thread fail: tokio panics when epoll_wait(2) does.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;

use nix::libc;
use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, Parent, SLOW_DRAIN, Tracer, Upstream, install, signal};

/// EX_OSERR, the exit code for a failure of the operating system.
const SYSTEM: i32 = 71;

/// Returns the thread id of a worker.
fn thread(pid: u32, worker: &str) -> u32 {
    let threads =
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap().path());
    let mut named =
        threads.filter(|path| fs::read_to_string(path.join("comm")).unwrap().trim() == worker);
    named.next().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Kills the first worker of the process: epoll_wait(2) fails as it does on a kernel error.
fn kill_worker(line: &Line, pid: u32) -> Tracer {
    let tracer = Tracer::attach(
        line,
        thread(pid, "worker-1"),
        &["-e", "inject=epoll_wait:error=EINVAL", "-e", "trace=epoll_wait"],
    );
    // The worker may sleep, so a client wakes it. It does not matter whether that client is served.
    drop(Client::connect(&line.address()));
    tracer
}

/// Hands over, and kills the first worker of the old generation while that drains.
fn kill_worker_in_a_drain(line: &Line) {
    let old = line.pid_of(1);
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    let tracer = kill_worker(line, old);
    line.wait_for(1, Event::WorkerDied.mentioning("worker-1 has died"));
    tracer.wait();
}

#[test]
fn a_dead_worker_ends_the_generation_with_the_reason() {
    let pid_file = |line: &Line| line.folder().join("pid");
    let line = Line::start_with(|command, folder| {
        command
            .args(["--listen", "127.0.0.1:0", "--workers", "2", "--pid-file"])
            .arg(folder.join("pid"));
    });
    let tracer = kill_worker(&line, line.pid_of(1));
    // The panic is logged as a record, so it reaches the journal and no reader can block it.
    line.wait_for(1, Event::ProcessPanicked);
    let said = line.wait_for(1, Event::ProcessFailed.mentioning("worker-1 has died: "));
    assert!(said.text.contains("epoll") || said.text.contains("I/O driver"), "{said:?}");
    assert_eq!(line.exit_code(1), SYSTEM);
    assert!(!pid_file(&line).exists(), "the pid file still names a process that has ended");
    tracer.wait();
    line.wait_for_end();
}

/// strace(1) shows the thread the flag as it was before, as if another process had cleared it right
/// after the check.
#[test]
fn a_listener_set_to_blocking_during_accept_hangs_no_client() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Parent::passing([socket.try_clone().unwrap().into()]);
    let line = parent.serve(&["--workers", "1"]);
    let mut held = line.hold();
    let pid = line.pid_of(1);
    for round in 1..=2 {
        // The check before the accept, tokio's check of the accepted socket (in a debug build), and
        // the check before the next accept.
        let looks = format!("inject=fcntl:retval={}:when=1..3", libc::O_RDWR | libc::O_NONBLOCK);
        let tracer =
            Tracer::attach(&line, thread(pid, "worker-1"), &["-e", "trace=fcntl", "-e", &looks]);
        socket.set_nonblocking(false).unwrap();
        let mut client = Client::connect(&line.address()).unwrap();
        client.echo(b"accepted").unwrap();
        held.echo(b"still here").unwrap();
        line.wait_for_count(round, Event::ListenerBlocking);
        tracer.detach();
    }
    line.signal(1, Signal::SIGTERM);
    drop(held);
    assert_eq!(line.exit_code(1), 0);
}

#[test]
fn a_successor_whose_worker_dies_in_the_bake_rolls_back() {
    let line = Line::serve_controlled(&["--workers", "2", "--bake", "60s"]);
    let operator = line.ask(&["reload"]);
    line.wait_for(1, Event::SuccessorReady);
    let tracer = kill_worker(&line, line.pid_of(2));
    let answered = operator.wait();
    assert_eq!(answered.code, 76, "{answered:?}");
    assert!(answered.err.contains("worker-1 has died"), "{answered:?}");
    tracer.wait();
    line.assert_serves();
    line.signal(1, Signal::SIGTERM);
    line.wait_for_end();
}

/// The connections of the other workers finish. Then the generation exits with an error.
#[test]
fn a_draining_generation_survives_a_dead_worker() {
    let line = Line::serve(&[&["--workers", "2", "--bake", "0"][..], &SLOW_DRAIN].concat());
    let mut clients: Vec<Client> = (0..16).map(|_| line.hold()).collect();
    kill_worker_in_a_drain(&line);
    clients.retain_mut(|client| client.echo(b"still here").is_ok());
    assert!((1..16).contains(&clients.len()), "{} of 16 connections are left", clients.len());
    drop(clients);
    assert_eq!(line.exit_code(1), SYSTEM);
    line.assert_serves();
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
}

/// The process goes on, so a connection that nothing relays any more must not stay open.
#[test]
fn a_dead_worker_resets_its_proxied_connections() {
    let upstream = Upstream::tcp();
    let workers = ["--workers", "2", "--bake", "0"];
    let line = Line::proxy(&[&upstream.address()], &[&workers[..], &SLOW_DRAIN].concat());
    let pairs: Vec<_> = (0..16).map(|_| line.pair(&upstream)).collect();
    kill_worker_in_a_drain(&line);
    let served = pairs.into_iter().filter_map(|(mut client, mut server)| {
        let _ = server.write_all(b"still here");
        match client.expect(b"still here") {
            Ok(()) => Some((client, server)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                None
            }
        }
    });
    let served: Vec<_> = served.collect();
    assert!((1..16).contains(&served.len()), "{} of 16 connections are left", served.len());
    drop(served);
    assert_eq!(line.exit_code(1), SYSTEM);
    // The client that has woken the worker was connected to the upstream too.
    drop(upstream);
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
}

/// strace(1) delays the start of each thread at its only prctl(2), which sets its name.
#[test]
fn a_generation_is_ready_once_every_worker_runs() {
    let line = Line::start_with(|command, folder| {
        let trace = folder.join("trace");
        let delay = "-e trace=prctl,write -e inject=prctl:delay_enter=300000";
        let strace =
            format!("exec strace -f -qq -s 200 -e signal=none {delay} -o {}", trace.display());
        install(folder, &format!("{strace} \"$REAL\" \"$@\""));
        command.args(["--listen", "127.0.0.1:0", "--workers", "3"]);
    });
    line.wait_for(1, Event::GenerationServing);
    line.assert_serves();
    signal(line.pid_of(1), Signal::SIGTERM);
    line.wait_for_end();
    let trace = fs::read_to_string(line.folder().join("trace")).unwrap();
    let lines = || trace.lines().enumerate();
    let ready = lines().find(|(_, call)| call.contains(Event::GenerationAccepting.id())).unwrap().0;
    // strace may print the call as two lines. The first has the name.
    let thread_of = |call: &str| call.split(' ').next().unwrap().to_owned();
    let workers: Vec<_> = lines()
        .filter(|(_, call)| call.contains("\"worker-"))
        .map(|(_, call)| thread_of(call))
        .collect();
    let is_born = |call: &str| {
        call.contains("prctl") && call.contains("= 0") && workers.contains(&thread_of(call))
    };
    let born: Vec<_> = lines().filter(|(_, call)| is_born(call)).map(|(place, _)| place).collect();
    assert_eq!(born.len(), 3, "{trace}");
    assert!(born.iter().all(|place| *place < ready), "{trace}");
}
