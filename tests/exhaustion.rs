//! A daemon without free descriptors or memory: its clients wait, it does not spin, and it recovers
//! by itself.
//!
//! strace(1) observes every accept, and injects the failures that the test cannot cause for real.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use crate::counters::request;
use crate::support::{
    Client, DEADLINE, Echoing, Event, Line, REAL, Tracer, Upstream, assert_becomes, free_port,
    install, raise_descriptor_limit, signal,
};
use nix::sys::signal::Signal;

/// Starts a lineage under `strace`, in a shell that has run `setting`.
fn traced(setting: &str, flags: &str) -> Line {
    let line = Line::start_with(|command, folder| {
        let traced = "-e signal=none -e trace=accept4,fcntl";
        let trace = format!("exec strace -f -qq -ttt {traced} {flags} -o {}", trace(folder));
        install(folder, &format!("{setting}\n{trace} \"$REAL\" \"$@\""));
        // strace counts for each thread, so only one thread accepts.
        command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    });
    line.wait_for(1, Event::GenerationServing);
    line
}

fn trace(folder: &Path) -> String {
    folder.join("trace").to_str().unwrap().to_owned()
}

/// Returns the times in seconds at which an accept failed with this error.
fn failures(line: &Line, error: &str) -> Vec<f64> {
    let trace = fs::read_to_string(trace(line.folder())).unwrap();
    let failed = trace.lines().filter(|call| call.contains(&format!("= -1 {error} ")));
    failed.map(|call| call.split_whitespace().nth(1).unwrap().parse().unwrap()).collect()
}

/// Returns the times in seconds, since the last accept, at which a worker found only reserved
/// descriptors left. With a limit of 40 descriptors, the reserve begins at 30.
fn refusals(line: &Line) -> Vec<f64> {
    let trace = fs::read_to_string(trace(line.folder())).unwrap();
    let mut refused = Vec::new();
    for call in trace.lines() {
        let result = || call.rsplit(' ').next().unwrap().parse::<u32>();
        if call.contains("accept4(") && result().is_ok() {
            refused.clear();
        } else if call.contains("F_DUPFD_CLOEXEC, ") && result().is_ok_and(|number| number >= 30) {
            refused.push(call.split_whitespace().nth(1).unwrap().parse().unwrap());
        }
    }
    refused
}

/// Connects clients that have sent a request; they are accepted or wait in the backlog.
fn ask(line: &Line, count: usize) -> Vec<Client> {
    let clients = (0..count).map(|_| {
        let mut client = Client::connect(&line.address()).unwrap();
        client.write_all(b"request").unwrap();
        client
    });
    clients.collect()
}

/// Asserts that the pause between two attempts doubled each time, up to one second.
fn assert_paused(failures: &[f64]) {
    let mut expected = 0.005;
    for pair in failures.windows(2) {
        assert!(pair[1] - pair[0] >= expected, "too soon: {failures:?}");
        expected = f64::min(expected * 2.0, 1.0);
    }
}

fn assert_said_once(line: &Line) {
    line.wait_for(1, Event::AcceptResumed);
    let said: Vec<_> =
        line.records().into_iter().filter(|one| one.is_event(Event::AcceptFailed)).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(line.count(Event::AcceptResumed), 1);
}

fn stop(line: &Line) {
    signal(line.pid_of(1), Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
}

#[test]
fn clients_wait_while_the_system_has_no_descriptors_or_memory() {
    for error in ["ENFILE", "ENOMEM", "ENOBUFS"] {
        let line = traced(
            "export TOKIO_WORKER_THREADS=1",
            &format!("-e inject=accept4:error={error}:when=1..5"),
        );
        for mut client in ask(&line, 10) {
            client.expect(b"request").unwrap();
        }
        let failures = failures(&line, error);
        assert_eq!(failures.len(), 5, "{failures:?}");
        assert_paused(&failures);
        assert_said_once(&line);
        stop(&line);
    }
}

#[test]
fn clients_wait_while_the_process_has_no_descriptors() {
    let line = traced("ulimit -n 40", "");
    let mut clients = ask(&line, 70);
    let said = line.wait_for(1, Event::AcceptFailed);
    assert!(said.text.contains("Too many open files"), "{said:?}");
    // While no client leaves, nothing changes: clients keep waiting, and the daemon pauses between
    // two attempts.
    let last = clients.last_mut().unwrap();
    last.set_read_timeout(Duration::from_millis(400)).unwrap();
    assert_eq!(last.expect(b"request").unwrap_err().kind(), ErrorKind::WouldBlock);
    last.set_read_timeout(DEADLINE).unwrap();
    assert_becomes(&true, || refusals(&line).len() >= 2);
    assert_paused(&refusals(&line));
    // The accepted clients are served; each one that ends makes room for the next, until all are
    // served.
    for client in &mut clients {
        client.expect(b"request").unwrap();
        client.half_close().unwrap();
        client.expect_end().unwrap();
    }
    Client::once(&line.address(), b"as before").unwrap();
    assert_said_once(&line);
    stop(&line);
}

/// The kernel reports the client once, and no further client comes to wake the accept loop.
#[test]
fn an_interrupted_accept_does_not_lose_its_client() {
    let line = traced(":", "-e inject=accept4:error=EINTR:when=1");
    let mut client = ask(&line, 1).remove(0);
    client.expect(b"request").unwrap();
    assert_eq!(failures(&line, "EINTR").len(), 1);
    stop(&line);
}

#[test]
fn a_failed_accept_of_one_client_delays_no_other() {
    let line = traced(":", "-e inject=accept4:error=ECONNABORTED:when=1..3");
    for mut client in ask(&line, 10) {
        client.expect(b"request").unwrap();
    }
    assert_eq!(failures(&line, "ECONNABORTED").len(), 3);
    assert_eq!(line.count(Event::AcceptFailed), 0);
    stop(&line);
}

#[test]
fn a_stop_without_free_descriptors_reports_lost_clients() {
    let line = traced("ulimit -n 40", "");
    let clients = ask(&line, 70);
    line.wait_for(1, Event::AcceptFailed.with("listener", "listener-1"));
    signal(line.pid_of(1), Signal::SIGTERM);
    line.wait_for(1, Event::ListenerBacklogLost);
    drop(clients);
    assert_eq!(line.exit_code(1), 0);
}

#[test]
fn every_generation_reserves_its_descriptor_table_early() {
    let line = Line::start_with(|command, folder| {
        install(folder, "ulimit -n 1000\nexec \"$REAL\" \"$@\"");
        command.args(["--listen", "127.0.0.1:0", "--bake", "0"]);
    });
    line.wait_for(1, Event::GenerationServing);
    signal(line.pid_of(1), Signal::SIGHUP);
    line.wait_for(2, Event::GenerationServing);
    let status = fs::read_to_string(format!("/proc/{}/status", line.pid_of(2))).unwrap();
    let size =
        status.lines().find_map(|field| field.strip_prefix("FDSize:")?.trim().parse::<u32>().ok());
    // The table has room for the whole limit, not for 64, although only a dozen are open.
    assert!(size >= Some(1000), "{size:?}");
    signal(line.pid_of(2), Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    line.wait_for_end();
}

/// Earlier, clients that only connected could take every descriptor. Then no command was accepted,
/// and every handoff failed.
#[test]
fn clients_leave_descriptors_for_operators_and_handoffs() {
    raise_descriptor_limit();
    for flags in [&["--bake", "0"][..], &["--bake", "0", "--carry"]] {
        let line = Line::start_under(&["prlimit", "--nofile=300:300"], |command, folder| {
            command.args(["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
            command.arg("--control").arg(folder.join("control")).args(flags);
        });
        line.wait_for(1, Event::GenerationServing);
        let mut idle = Vec::new();
        for generation in 1..=3 {
            idle.extend((0..400).map(|_| Client::connect(&line.address()).unwrap()));
            let said = line.wait_for(generation, Event::AcceptFailed);
            assert!(said.text.contains("Too many open files"), "{said:?}");
            let full = line.asked(&["status", "--json"]).well();
            let full: serde_json::Value = serde_json::from_str(&full).unwrap();
            assert!(
                full["counters"]["listeners"]["listener-1"]["limited"].as_u64() > Some(0),
                "{full}"
            );
            let metrics = request(&line.address_of("metrics"), "GET /metrics HTTP/1.1");
            assert!(metrics.starts_with("HTTP/1.1 200 OK"), "{metrics}");
            if generation == 1 {
                line.asked(&["reload"]).well();
            } else {
                line.hand_over_from(generation);
            }
        }
        assert_eq!(line.count(Event::HandoffFailed), 0);
    }
}

/// The first or the second socket of a connection cannot be watched for events.
#[test]
fn a_client_that_cannot_be_watched_is_reset() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &["--workers", "1"]);
    for socket in ["1", "2"] {
        let mark = line.mark();
        let inject = format!("inject=epoll_ctl:error=ENOSPC:when={socket}");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        let mut client = Client::connect(&line.address()).unwrap();
        let error = client.expect(b"welcome").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let trace = tracer.detach();
        assert!(trace.contains("INJECTED"), "the proxy did not make the call: {trace}");
        let said = line
            .wait_since(mark, "the reason", |record| record.is_event(Event::ConnectionUnwatched));
        assert!(said.text.contains("No space left"), "{said:?}");
        // The proxy has connected to the upstream before.
        drop(upstream.accept());
    }
    let (mut client, mut server) = line.pair(&upstream);
    server.write_all(b"welcome").unwrap();
    client.expect(b"welcome").unwrap();
}

/// While no upstream accepts connections, clients come until the proxy has no free descriptors.
#[test]
fn waiting_clients_keep_descriptors_for_their_upstreams() {
    let address = format!("127.0.0.1:{}", free_port());
    let line = Line::start_program(Path::new(REAL), |command, folder| {
        install(folder, "ulimit -n 120\nexec \"$REAL\" \"$@\"");
        command.args(["proxy", "--log", "debug", "--listen", "127.0.0.1:0", "--to", &address]);
        command.args(["--connect-patience", "20s"]);
    });
    line.wait_for(1, Event::GenerationServing);
    let clients = ask(&line, 150);
    line.wait_for(1, Event::AcceptFailed);
    let backend = Echoing::on(Upstream::on(&address), &address);
    for mut client in clients {
        client.expect(b"request").unwrap();
    }
    assert_eq!(line.count(Event::UpstreamNoneAvailable), 0);
    drop(line);
    backend.stop();
}

/// Starts two generations, lets the first one register no socket for events, and kills the second
/// one. Returns when the first one has failed to accept again, with a connection that it
/// serves.
fn fail_to_resume() -> (Line, Tracer, Client) {
    let line = Line::serve(&["--bake", "0", "--drain-timeout", "60s"]);
    let held = line.hold();
    line.hand_over_from(1);
    line.wait_for(1, Event::DrainStarted);
    let inject = "inject=epoll_ctl:error=ENOMEM";
    let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", inject]);
    line.signal(2, Signal::SIGKILL);
    line.wait_for(1, Event::AcceptResumeFailed);
    (line, tracer, held)
}

/// The clients wait in the backlog.
#[test]
fn a_generation_resumes_as_soon_as_there_is_memory() {
    let (line, tracer, mut held) = fail_to_resume();
    let mut client = Client::connect(&line.address()).unwrap();
    tracer.detach();
    line.wait_for(1, Event::GenerationResumed);
    client.echo(b"waited").unwrap();
    held.echo(b"still here").unwrap();
    assert_eq!(line.count(Event::AcceptResumeFailed), 1);
    drop((client, held));
    stop(&line);
}

/// The driver is not blocked by the attempts.
#[test]
fn a_generation_that_cannot_resume_still_obeys() {
    let (line, tracer, mut held) = fail_to_resume();
    line.signal(1, Signal::SIGTERM);
    line.wait_for(1, Event::DrainStarted.with("why", "stopping"));
    tracer.detach();
    held.half_close().unwrap();
    held.expect_end().unwrap();
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
    assert_eq!(line.count(Event::GenerationResumed), 0);
}

#[test]
fn a_generation_that_cannot_resume_ends_with_the_reason() {
    let (line, tracer, held) = fail_to_resume();
    assert_eq!(line.exit_code(1), 71);
    drop((tracer, held));
    let ended = line.wait_for_end();
    assert!(ended.iter().any(|record| record.text.contains("Cannot allocate memory")));
}
