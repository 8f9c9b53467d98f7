//! Log records: they reach the journal or standard error, name their generation, and never block
//! the service.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Client, DEADLINE, Event, Line, Tracer, assert_becomes, signal};

/// Starts the daemon in a mount namespace where the journal's socket belongs to the test.
fn with_journal(journal_stream: &str) -> (Line, UnixDatagram) {
    let mut journal = None;
    let line = Line::start_program(Path::new("/usr/bin/unshare"), |command, folder| {
        let socket = UnixDatagram::bind(folder.join("socket")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        journal = Some(socket);
        let script = format!(
            "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$1\" /run/systemd/journal &&
             JOURNAL_STREAM={journal_stream} exec \"$2\" --listen 127.0.0.1:0 --log debug"
        );
        command.args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
        command.arg(folder).arg(env!("CARGO_BIN_EXE_handoffd"));
    });
    (line, journal.unwrap())
}

/// Receives records until one has this field, and returns it.
fn record(journal: &UnixDatagram, field: &str) -> String {
    let mut packet = vec![0; 65_536];
    loop {
        let length = journal
            .recv(&mut packet)
            .unwrap_or_else(|error| panic!("no record with {field}: {error}"));
        let text = String::from_utf8_lossy(&packet[..length]).into_owned();
        if text.contains(field) {
            return text;
        }
    }
}

#[test]
fn records_go_to_the_journal_if_standard_error_is_its_stream() {
    let (line, journal) = with_journal("$(stat -L -c %d:%i /proc/self/fd/2)");
    let serving = record(&journal, "HANDOFFD_DRAINING");
    for field in ["HANDOFFD_GENERATION", "SYSLOG_IDENTIFIER", Event::GenerationServing.id()] {
        assert!(serving.contains(field), "no {field} in {serving:?}");
    }
    assert_eq!(line.records(), [], "records went to standard error as well");
}

#[test]
fn records_go_to_standard_error_if_it_is_another_stream() {
    let (line, _journal) = with_journal("1:1");
    line.wait_for(1, Event::GenerationServing);
}

#[test]
fn every_record_has_its_generation_and_process_id() {
    let line = Line::serve(&["--bake", "0"]);
    line.hand_over_from(1);
    line.assert_serves();
    line.signal(2, Signal::SIGTERM);
    for record in line.wait_for_end() {
        assert!(record.generation == 1 || record.generation == 2, "{}", record.text);
        assert_eq!(record.pid, line.pid_of(record.generation), "{}", record.text);
    }
}

#[test]
fn one_record_describes_the_end_of_a_connection() {
    let line = Line::serve(&[]);
    Client::once(&line.address(), b"eight by").unwrap();
    let record = line.wait_for(1, Event::ConnectionEnded);
    for (field, value) in
        [("listener", "listener-1"), ("received", "8"), ("sent", "8"), ("ending", "finished")]
    {
        assert_eq!(record.field(field), Some(value), "{}", record.text);
    }
    assert_eq!(line.count(Event::ConnectionEnded), 1);
}

/// A successor reports a reason with a line break and an escape sequence; then a handoff succeeds.
#[test]
fn json_log_has_one_object_for_each_record() {
    let line = Line::start_with(|command, folder| {
        let socket = folder.join("socket");
        command.args(["--bake", "0", "--log-format", "json", "--listen", socket.to_str().unwrap()]);
    });
    let wait = |event: Event| line.wait_for(0, format!("\"event\":\"{}\"", event.id()).as_str());
    wait(Event::GenerationServing);
    line.put_script(r#"say 'VERSION=2\nKIND=failed\nREASON=\033[2J\rend\n'; exec sleep 1000"#);
    signal(line.first_pid(), Signal::SIGHUP);
    wait(Event::HandoffFailed);
    line.put_real();
    let mark = line.mark();
    signal(line.first_pid(), Signal::SIGHUP);
    assert_eq!(line.exit_code(1), 0);
    let committed = line.wait_since(mark, "the handoff", |record| {
        record.text.contains(Event::HandoffCommitted.id())
    });
    let committed: Value = serde_json::from_str(&committed.text).unwrap();
    Client::once(line.folder().join("socket").to_str().unwrap(), b"in JSON").unwrap();
    let successor = committed["fields"]["successor_pid"].as_u64().unwrap();
    signal(u32::try_from(successor).unwrap(), Signal::SIGTERM);
    let mut events = BTreeMap::new();
    for record in line.wait_for_end() {
        assert!(!record.text.contains(char::is_control), "{}", record.text);
        let object: BTreeMap<String, Value> = serde_json::from_str(&record.text)
            .unwrap_or_else(|error| panic!("{error}: {}", record.text));
        let keys: Vec<_> = object.keys().map(String::as_str).collect();
        assert_eq!(keys, ["event", "fields", "generation", "level", "message", "pid", "time"]);
        events.insert(object["event"].as_str().unwrap().to_owned(), object);
    }
    // `events` has the last record of each event.
    let field = |event: Event, name: &str| events[event.id()]["fields"][name].clone();
    assert_eq!(events[Event::GenerationEnded.id()]["generation"], 2);
    assert_eq!(field(Event::GenerationEnded, "cut"), 0);
    assert_eq!(field(Event::HandoffCommitted, "successor"), "2");
    assert_eq!(field(Event::ConnectionEnded, "ending"), "finished");
    assert_eq!(field(Event::ConnectionEnded, "received"), 7);
    let reason = field(Event::HandoffFailed, "reason");
    assert!(reason.as_str().unwrap().contains(r"\u{1b}[2J\rend"), "{reason}");
}

/// The reader of the log may have ended; the daemon must keep serving its clients.
#[test]
fn a_broken_standard_error_affects_no_client() {
    // The reader ends at once, so log records meet a broken pipe. Standard output keeps the daemon
    // in the lineage. The socket is passed in, so that clients may connect at any time.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$1\" --pid-file \"$2/pid\" --bake 0 --no-carry 3<&0 1>&2 2> >(exec true)";
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let line = Line::start_program(Path::new("/bin/bash"), |command, folder| {
        command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_handoffd")]).arg(folder);
        command.stdin(OwnedFd::from(socket));
    });
    let mut idle = Client::connect(&address).unwrap();
    idle.echo(b"before").unwrap();
    signal(line.first_pid(), Signal::SIGHUP);
    // An idle connection is closed when its generation retires, and not earlier.
    idle.expect_end().unwrap();
    Client::once(&address, b"after").unwrap();
    let pid = std::fs::read_to_string(line.folder().join("pid")).unwrap().trim().parse().unwrap();
    assert_ne!(pid, line.first_pid());
    signal(pid, Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for_end();
}

/// Starts a lineage whose standard error is full, and returns it with the pipe's reading end.
fn serve_unread() -> (Line, OwnedFd) {
    let (unread, full) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    while nix::unistd::write(&full, &[b'x'; 512]).is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    // Standard output keeps the daemon in the lineage.
    let script = "exec \"$1\" --listen \"$2/socket\" --pid-file \"$2/pid\" --bake 0 --log debug \\
                  1>&2 2>&0 0</dev/null";
    let line = Line::start_program(Path::new("/bin/bash"), |command, folder| {
        command.args(["-c", script, "bash", env!("CARGO_BIN_EXE_handoffd")]).arg(folder);
        command.stdin(full);
    });
    (line, unread)
}

/// A signal interrupts the wait for space in the pipe (poll(2), EINTR). The daemon must not take
/// that for free space.
#[test]
fn a_signal_while_the_log_is_unread_blocks_nothing() {
    let (line, _unread) = serve_unread();
    assert_becomes(&true, || line.folder().join("pid").exists());
    let tracer = Tracer::attach(
        &line,
        line.first_pid(),
        &["-e", "trace=poll", "-e", "inject=poll:error=EINTR"],
    );
    signal(line.first_pid(), Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    assert!(tracer.wait().contains("EINTR"));
}

/// The reader of the log may have stalled, as a pager does. Neither clients nor signals wait for
/// it.
#[test]
fn an_unread_standard_error_blocks_nothing() {
    let (line, _unread) = serve_unread();
    let head = || std::fs::read_to_string(line.folder().join("pid")).ok()?.trim().parse().ok();
    let serves =
        || Client::once(line.folder().join("socket").to_str().unwrap(), b"anybody?").is_ok();
    assert_becomes(&Some(line.first_pid()), head);
    assert!(serves());
    signal(line.first_pid(), Signal::SIGHUP);
    assert_becomes(&true, || head().is_some_and(|pid| pid != line.first_pid()));
    assert_eq!(line.exit_code(1), 0);
    assert!(serves());
    signal(head().unwrap(), Signal::SIGTERM);
    line.wait_for_end();
}

/// Makes more connections than the log has room for records, with at least one record each.
fn flood(address: &str) {
    for _ in 0..4_000 {
        Client::once(address, b"anybody?").unwrap();
    }
}

/// The journal's socket is full, and the journal does not read it.
#[test]
fn a_stopped_journal_blocks_nothing() {
    let (line, journal) = with_journal("$(stat -L -c %d:%i /proc/self/fd/2)");
    let accepting = record(&journal, "HANDOFFD_LISTENERS");
    let address = accepting.split("listener-1=").nth(1).unwrap().split_whitespace().next().unwrap();
    record(&journal, "HANDOFFD_DRAINING");
    flood(address);
    signal(line.first_pid(), Signal::SIGHUP);
    assert_eq!(line.exit_code(1), 0);
    flood(address);
    let dropped = record(&journal, "HANDOFFD_DROPPED");
    assert!(dropped.contains(Event::LogDropped.id()), "{dropped}");
    let head = line.processes();
    assert_eq!(head.len(), 1, "{head:?}");
    signal(head[0], Signal::SIGTERM);
    line.wait_for_end();
}

#[test]
fn dropped_records_are_counted_once_the_log_is_read_again() {
    let (line, unread) = serve_unread();
    assert_becomes(&true, || line.folder().join("pid").exists());
    flood(line.folder().join("socket").to_str().unwrap());
    fcntl(&unread, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(std::fs::File::from(unread)).lines().try_for_each(|line| tell.send(line))
    });
    // Reads until the log ends, or no record has arrived for too long.
    let mut records = std::iter::from_fn(|| told.recv_timeout(DEADLINE).ok()).map(Result::unwrap);
    let ended = records
        .by_ref()
        .take_while(|record| !record.contains(Event::LogDropped.id()))
        .filter(|one| one.contains(Event::ConnectionEnded.id()))
        .count();
    assert!((1..4_000).contains(&ended), "{ended}");
    signal(line.first_pid(), Signal::SIGTERM);
    assert_eq!(line.exit_code(1), 0);
    // Records after the loss arrive again.
    assert!(records.any(|record| record.contains(Event::GenerationEnded.id())));
}
