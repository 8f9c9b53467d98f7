//! Tests of connections of a server of its own that move to the new process.
//!
//! The server is the example `lines`: it answers each line with its number and the process id.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::support::view::is_asleep;
use crate::support::{DEADLINE, Event, Line, assert_becomes, example, exit_code, signal};

/// How many connections move at each handoff.
const CONNECTIONS: usize = 200;

/// Starts the server with a short bake time. A drain may take so long that a test would fail if it
/// had to wait for one.
fn start() -> Line {
    start_with("10", "600000")
}

/// Starts the server with this bake time and drain timeout, in milliseconds.
fn start_with(bake: &str, drain: &str) -> Line {
    start_with_arguments(&[bake, drain])
}

fn start_with_arguments(arguments: &[&str]) -> Line {
    let line = Line::start_program(&example("lines"), |command, folder| {
        command.arg("127.0.0.1:0").args(arguments).current_dir(folder);
        command.env("RUNTIME_DIRECTORY", folder);
    });
    line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
    line
}

/// Replaces the server, and returns the new pid.
fn replace(line: &Line, pid: u32) -> u32 {
    let mark = line.mark();
    signal(pid, Signal::SIGHUP);
    let outcome =
        line.wait_since(mark, "the commit", |record| record.is_event(Event::HandoffCommitted));
    outcome.field("successor_pid").unwrap().parse().unwrap()
}

/// Stops the service, and waits until all of its processes have ended.
fn stop(line: &Line, pid: u32) {
    signal(pid, Signal::SIGTERM);
    line.wait_for_end();
}

/// A client that counts the answers too.
struct Talker {
    stream: BufReader<TcpStream>,
    lines: u64,
}

impl Talker {
    fn connect(line: &Line) -> Self {
        let stream = TcpStream::connect(line.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream: BufReader::new(stream), lines: 0 }
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Reads the next answer, which must have the next number. Returns the pid in it.
    fn answer(&mut self) -> io::Result<u32> {
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.lines += 1;
        let (number, pid) = answer.trim().split_once(' ').unwrap();
        assert_eq!(number, self.lines.to_string(), "a line was lost or repeated");
        Ok(pid.parse().unwrap())
    }

    /// Sends a line. Returns the pid of the process that answers.
    fn say(&mut self, text: &str) -> u32 {
        self.send(text);
        self.answer().unwrap()
    }

    /// Waits until the server closes the connection.
    fn expect_end(&mut self) {
        assert_eq!(self.answer().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

/// Idle connections, and connections whose line arrives during the handoff, move five times.
#[test]
fn connections_of_an_own_server_move_at_each_handoff() {
    let line = start();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| Talker::connect(&line)).collect();
    let mut pid = line.first_pid();
    for round in 1..=5 {
        clients.iter_mut().for_each(|client| assert_eq!(client.say("hello\n"), pid));
        let mark = line.mark();
        clients[..CONNECTIONS / 2].iter_mut().for_each(|client| client.send("in between\n"));
        let next = replace(&line, pid);
        for client in &mut clients[..CONNECTIONS / 2] {
            client.answer().unwrap();
        }
        // The old process waits for no client.
        assert_eq!(exit_code(pid), 0);
        let all = Event::GenerationEnded.with("carried", CONNECTIONS).with("ended", 0);
        line.wait_since(mark, "the end", |record| record.is_event(all.clone().with("cut", 0)));
        let taken = Event::CarryTakenOver.with("taken", CONNECTIONS).with("refused", 0);
        line.wait_since(mark, "the takeover", |record| record.is_event(taken.clone()));
        pid = next;
        assert_eq!(line.counter("lines", "carried"), round * CONNECTIONS as u64);
        assert_eq!(line.counter("lines", "accepted"), CONNECTIONS as u64);
        assert_eq!(line.counter("lines", "active"), CONNECTIONS as u64);
        assert_eq!(line.counter("lines", "drained"), 0);
    }
    let received = CONNECTIONS * 5 * "hello\n".len() + CONNECTIONS / 2 * 5 * "in between\n".len();
    assert_eq!(line.counter("lines", "received"), received as u64);
    stop(&line, pid);
    clients.iter_mut().for_each(Talker::expect_end);
}

/// The new process keeps places for the connections of the old one, although clients wait.
#[test]
fn a_connection_limit_holds_across_handoffs() {
    let line = start_with_arguments(&["100", "600000", "3"]);
    let mut clients: Vec<_> = (0..3).map(|_| Talker::connect(&line)).collect();
    let mut pid = line.first_pid();
    clients.iter_mut().for_each(|client| assert_eq!(client.say("hello\n"), pid));
    let mut waiting: Vec<_> = (0..5).map(|_| Talker::connect(&line)).collect();
    waiting.iter_mut().for_each(|client| client.send("waiting\n"));
    for round in 1..=3 {
        let next = replace(&line, pid);
        assert_eq!(exit_code(pid), 0);
        pid = next;
        clients.iter_mut().for_each(|client| assert_eq!(client.say("moved\n"), pid));
        let counters = ["accepted", "active", "carried"].map(|name| line.counter("lines", name));
        assert_eq!(counters, [3, 3, 3 * round]);
    }
    drop(clients);
    for _ in 0..5 {
        assert_eq!(waiting.remove(0).answer().unwrap(), pid);
    }
    stop(&line, pid);
}

/// The new process has a lower limit, so it refuses the connections that exceed it.
#[test]
fn a_lowered_connection_limit_holds_for_moved_connections() {
    let line = start_with_arguments(&["100", "600000", "6"]);
    let mut clients: Vec<_> = (0..6).map(|_| Talker::connect(&line)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.say("hello\n"), line.first_pid()));
    fs::write(line.folder().join("limit"), "2").unwrap();
    let pid = replace(&line, line.first_pid());
    assert_eq!(exit_code(line.first_pid()), 0);
    line.wait("the takeover", |record| {
        record.is_event(Event::CarryTakenOver.with("taken", 2).with("refused", 4))
    });
    let counters = ["active", "carried", "refused"].map(|name| line.counter("lines", name));
    assert_eq!(counters, [2, 2, 4]);
    clients.iter_mut().for_each(|client| client.send("moved\n"));
    let answers = clients.iter_mut().filter_map(|client| client.answer().ok());
    assert_eq!(answers.collect::<Vec<_>>(), [pid; 2]);
    stop(&line, pid);
}

/// The clients beyond the descriptor limit wait, although the connection limit is not reached.
#[test]
fn a_limited_server_without_descriptors_waits_asleep() {
    let launcher = ["prlimit", "--nofile=48:48"];
    let line = Line::start_program_under(&launcher, &example("lines"), |command, folder| {
        command.args(["127.0.0.1:0", "10", "600000", "500"]).current_dir(folder);
        command.env("RUNTIME_DIRECTORY", folder);
    });
    line.wait("the first generation", |record| record.is_event(Event::GenerationServing));
    let mut clients: Vec<_> = (0..60).map(|_| Talker::connect(&line)).collect();
    line.wait("the shortage", |record| record.is_event(Event::AcceptFailed));
    assert_eq!(line.counter("lines", "limited"), 1);
    assert_becomes(&true, || is_asleep(line.first_pid()).unwrap());
    clients.iter_mut().for_each(|client| client.send("hello\n"));
    while !clients.is_empty() {
        // Each client that leaves makes room for another one.
        assert_eq!(clients.remove(0).answer().unwrap(), line.first_pid());
    }
    stop(&line, line.first_pid());
}

#[test]
fn a_connection_that_the_successor_refuses_ends_in_order() {
    let line = start();
    let mut client = Talker::connect(&line);
    client.say("hello\n");
    File::create(line.folder().join("refuse")).unwrap();
    let pid = replace(&line, line.first_pid());
    client.expect_end();
    assert_eq!(exit_code(line.first_pid()), 0);
    let declined = Event::CarryConnectionDeclined.containing("reason", "the file `refuse` exists");
    assert_eq!(line.count(declined), 1);
    assert_eq!(line.count(Event::GenerationEnded.with("ended", 1).with("carried", 0)), 1);
    assert_eq!((line.counter("lines", "refused"), line.counter("lines", "carried")), (1, 0));
    stop(&line, pid);
}

/// The connections stay in the old process, and new clients get their places in the new one.
#[test]
fn a_check_that_panics_refuses_the_connection() {
    let line = start_with_arguments(&["10", "600000", "2"]);
    let mut clients = [(); 2].map(|()| Talker::connect(&line));
    clients.iter_mut().for_each(|client| assert_eq!(client.say("hello\n"), line.first_pid()));
    File::create(line.folder().join("panic")).unwrap();
    let pid = replace(&line, line.first_pid());
    clients.iter_mut().for_each(Talker::expect_end);
    assert_eq!(exit_code(line.first_pid()), 0);
    assert_eq!(line.count(Event::CarryCheckPanicked.with("listener", "lines")), 2);
    assert_eq!(Talker::connect(&line).say("new\n"), pid);
    stop(&line, pid);
}

/// Nothing has moved yet, so the old process serves on, and the next handoff moves the connection.
#[test]
fn a_connection_outlives_a_successor_that_dies_during_the_bake() {
    let line = start_with("600000", "600000");
    let mut client = Talker::connect(&line);
    client.say("hello\n");
    signal(line.first_pid(), Signal::SIGHUP);
    let ready = line.wait("ready", |record| record.is_event(Event::SuccessorReady));
    signal(ready.field("successor_pid").unwrap().parse().unwrap(), Signal::SIGKILL);
    line.wait("the failure", |record| record.is_event(Event::HandoffFailed));
    assert_eq!(client.say("still here\n"), line.first_pid());
    stop(&line, line.first_pid());
    client.expect_end();
}

/// The successor dies after the commit, before it has answered for the connections that it got. The
/// old process continues them with their state, and they move to the next successor.
#[test]
fn connections_resume_when_the_successor_dies_before_its_answer() {
    let line = start();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| Talker::connect(&line)).collect();
    for client in &mut clients {
        client.say("hello\n");
    }
    File::create(line.folder().join("hang")).unwrap();
    let lost = replace(&line, line.first_pid());
    assert_becomes(&true, || line.folder().join("arrived").exists());
    // The successor's driver still answers, although the server's code blocks the takeover.
    assert_eq!(line.counter("lines", "carried"), 0);
    // No process serves a connection that was sent, so this line waits.
    clients.iter_mut().for_each(|client| client.send("meanwhile\n"));
    fs::remove_file(line.folder().join("hang")).unwrap();
    let mark = line.mark();
    signal(lost, Signal::SIGKILL);
    line.wait_since(mark, "the old one", |record| record.is_event(Event::GenerationResumed));
    let first = line.first_pid();
    clients.iter_mut().for_each(|client| assert_eq!(client.answer().unwrap(), first));
    assert_eq!((line.counter("lines", "lost"), line.counter("lines", "carried")), (0, 0));
    let pid = replace(&line, first);
    assert_eq!(exit_code(first), 0);
    clients.iter_mut().for_each(|client| assert_eq!(client.say("moved\n"), pid));
    assert_eq!(line.count(Event::GenerationEnded.with("carried", CONNECTIONS)), 1);
    stop(&line, pid);
}

/// The connections that a dead successor had taken over are lost, and counted.
#[test]
fn connections_that_die_with_the_successor_are_counted() {
    let line = start();
    let [mut moves, mut stays] = [(), ()].map(|()| Talker::connect(&line));
    moves.say("hello\n");
    stays.say("half a line\nand anoth");
    let lost = replace(&line, line.first_pid());
    assert_becomes(&1, || line.counter("lines", "carried"));
    assert_eq!(moves.say("moved\n"), lost);
    let mark = line.mark();
    signal(lost, Signal::SIGKILL);
    line.wait_since(mark, "the old one", |record| record.is_event(Event::GenerationResumed));
    assert_eq!(line.count(Event::CarryLost.with("lost", 1)), 1);
    assert_eq!(stays.say("er\n"), line.first_pid());
    assert_eq!(line.counter("lines", "lost"), 1);
    stop(&line, line.first_pid());
}

/// A connection that opts out is drained while the others move.
#[test]
fn a_connection_that_opts_out_ends_while_others_move() {
    let line = start();
    let [mut moves, mut stays] = [(), ()].map(|()| Talker::connect(&line));
    moves.say("hello\n");
    stays.say("stay\n");
    let pid = replace(&line, line.first_pid());
    stays.expect_end();
    assert_eq!(exit_code(line.first_pid()), 0);
    assert_eq!(moves.say("moved\n"), pid);
    assert_eq!(line.count(Event::GenerationEnded.with("ended", 1).with("carried", 1)), 1);
    stop(&line, pid);
}

/// Clients in the middle of a message do not hold up the others, and move after the message. They
/// are more than may move at once, and come first.
#[test]
fn connections_in_the_middle_of_a_message_move_after_it() {
    let line = start();
    let first = line.first_pid();
    let mut busy: Vec<_> = (0..CONNECTIONS).map(|_| Talker::connect(&line)).collect();
    for client in &mut busy {
        client.say("hello\nhal");
    }
    let mut idle = Talker::connect(&line);
    idle.say("hello\n");
    let pid = replace(&line, first);
    assert_becomes(&1, || line.counter("lines", "carried"));
    assert_eq!(idle.say("moved\n"), pid);
    busy.iter_mut().for_each(|client| assert_eq!(client.say("f\n"), first));
    assert_eq!(exit_code(first), 0);
    busy.iter_mut().for_each(|client| assert_eq!(client.say("moved\n"), pid));
    assert_eq!(line.counter("lines", "carried"), CONNECTIONS as u64 + 1);
    stop(&line, pid);
}

#[test]
fn a_connection_that_never_comes_to_a_boundary_is_cut() {
    let line = start_with("10", "2000");
    let mut client = Talker::connect(&line);
    client.say("hello\nhal");
    let pid = replace(&line, line.first_pid());
    assert_eq!(exit_code(line.first_pid()), 0);
    assert!(client.answer().is_err());
    let ended = Event::GenerationEnded.with("carried", 0).with("cut", 1).with("ended", 0);
    assert_eq!(line.count(ended), 1);
    stop(&line, pid);
}

/// Without a successor, nothing can move, so the connections are drained.
#[test]
fn connections_of_an_own_server_end_when_it_stops() {
    let line = start();
    let mut client = Talker::connect(&line);
    client.say("hello\n");
    stop(&line, line.first_pid());
    client.expect_end();
    assert_eq!(line.count(Event::GenerationEnded.with("ended", 1).with("cut", 0)), 1);
}
