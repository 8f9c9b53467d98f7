//! Tests of faults on one side of a proxied connection. The other side learns of the fault, and no
//! other connection notices it.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{
    Client, Echoing, Event, Line, REAL, Tracer, Upstream, assert_becomes, free_port, install,
    narrow,
};

/// More bytes than one read takes, but fewer than the kernel buffers for a reader that does not
/// read.
const SOME: usize = 100_000;

/// Waits until the only connection of a proxy has ended, and returns its ending and its error.
pub(crate) fn ending(line: &Line) -> (String, String) {
    let record = line.wait_for(1, Event::ConnectionEnded);
    (
        record.field("ending").unwrap().to_owned(),
        record.field("error").unwrap_or_default().to_owned(),
    )
}

/// Each client is served by the other upstream.
#[test]
fn a_refusing_upstream_is_retried_then_ejected() {
    let (refusing, upstream) = (free_port().to_string(), Upstream::tcp());
    let line = Line::proxy(&[&format!("127.0.0.1:{refusing}"), &upstream.address()], &[]);
    for _ in 0..20 {
        let (mut client, mut server) = line.pair(&upstream);
        server.write_all(b"welcome").unwrap();
        client.expect(b"welcome").unwrap();
    }
    // The proxy tried the refusing upstream three times. Then it ejected the upstream and logged
    // that once.
    let said = line.wait_for(1, Event::UpstreamUnavailable);
    assert_eq!(line.count(Event::UpstreamFailed), 3);
    assert!(said.text.starts_with("WARN"), "{said:?}");
    assert_eq!(said.field("upstream"), Some(&*format!("127.0.0.1:{refusing}")));
    assert_eq!(said.field("listener"), Some("listener-1"));
    assert!(said.text.contains("refused"), "{said:?}");
    assert_eq!(line.count(Event::UpstreamUnavailable), 1);
}

#[test]
fn an_upstream_with_a_full_backlog_is_skipped() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("socket").to_str().unwrap().to_owned();
    let full = Upstream::on(&path);
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _waiting = Client::connect(&path).unwrap();
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&path, &upstream.address()], &[]);
    for _ in 0..4 {
        let (mut client, mut server) = line.pair(&upstream);
        server.write_all(b"welcome").unwrap();
        client.expect(b"welcome").unwrap();
    }
}

/// The client receives every byte that the upstream sent before the reset, and then a reset.
#[test]
fn an_upstream_reset_reaches_the_client_after_its_bytes() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    let said = vec![7; SOME];
    server.write_all(&said).unwrap();
    // The bytes are on their way to the client, which does not read yet.
    assert_becomes(&true, || line.is_asleep());
    server.reset();
    assert!(ending(&line).0 == "broken");
    let (heard, end) = client.read_all();
    assert!(heard == said, "{} bytes of {}", heard.len(), said.len());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// The upstream receives every byte that the client sent before the reset, and then a reset.
#[test]
fn a_client_reset_reaches_the_upstream_after_its_bytes() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    let said = vec![7; SOME];
    client.write_all(&said).unwrap();
    assert_becomes(&true, || line.is_asleep());
    client.reset();
    assert!(ending(&line).0 == "broken");
    let (heard, end) = server.read_all();
    assert!(heard == said, "{} bytes of {}", heard.len(), said.len());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// The upstream replies and closes while the client still sends. The client gets the reply before
/// it learns of the close.
#[test]
fn an_early_reply_reaches_a_client_that_keeps_sending() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    // The upstream refuses an upload halfway. It closes with unread bytes, so the close is a reset.
    client.write_all(&vec![1; SOME]).unwrap();
    server.expect(&[1; 10]).unwrap();
    server.write_all(b"too large").unwrap();
    client.expect(b"too large").unwrap();
    drop(server);
    let until = Instant::now() + crate::support::DEADLINE;
    // The client learns of the close when it sends more or reads.
    while client.write_all(&[1; 1000]).is_ok() {
        assert!(Instant::now() < until);
    }
}

/// Sends from a small send buffer until neither the proxy nor the kernel takes more. Returns the
/// bytes sent.
pub(crate) fn fill(line: &Line, end: &mut Client) -> Vec<u8> {
    let Client::Tcp(socket) = &*end else { panic!("{end:?}") };
    socket2::SockRef::from(socket).set_send_buffer_size(4_096).unwrap();
    end.set_nonblocking(true).unwrap();
    let mut sent = Vec::new();
    let mut slept = false;
    loop {
        let next: Vec<u8> =
            (0..8_192).map(|number| (sent.len() / 8_192 + number).to_le_bytes()[0]).collect();
        match end.write(&next) {
            Ok(count) => {
                sent.extend_from_slice(&next[..count]);
                slept = false;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && slept => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => slept = line.is_asleep(),
            Err(error) => panic!("{error}"),
        }
    }
    end.set_nonblocking(false).unwrap();
    sent
}

/// Asserts that all bytes arrived except those that never left the sender, and that a reset
/// followed.
fn assert_heard(sent: &[u8], (heard, end): (Vec<u8>, std::io::Result<()>)) {
    const NOT_YET_LEFT: usize = 100_000;
    assert!(sent.starts_with(&heard), "the bytes were altered");
    assert!(sent.len() > 3 * NOT_YET_LEFT, "too few bytes were on their way: {}", sent.len());
    assert!(heard.len() + NOT_YET_LEFT >= sent.len(), "{} bytes of {}", heard.len(), sent.len());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn bytes_before_an_upstream_reset_reach_a_slow_client() {
    for goes_on_sending in [false, true] {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &[]);
        let mut client = narrow(line.address().parse().unwrap());
        let mut server = upstream.accept();
        let sent = fill(&line, &mut server);
        server.reset();
        if goes_on_sending {
            // The proxy's own write to the upstream then reports the reset.
            client.write_all(b"and another thing").unwrap();
        }
        assert_heard(&sent, client.read_all());
        assert_eq!(ending(&line).0, "broken");
    }
}

#[test]
fn bytes_before_a_client_reset_reach_a_slow_upstream() {
    for goes_on_sending in [false, true] {
        let upstream = Upstream::tcp();
        let Upstream::Tcp(listener) = &upstream else { panic!("{upstream:?}") };
        socket2::SockRef::from(listener).set_recv_buffer_size(4_096).unwrap();
        let line = Line::proxy(&[&upstream.address()], &[]);
        let (mut client, mut server) = line.pair(&upstream);
        let sent = fill(&line, &mut client);
        client.reset();
        if goes_on_sending {
            server.write_all(b"and another thing").unwrap();
        }
        assert_heard(&sent, server.read_all());
        assert_eq!(ending(&line).0, "broken");
    }
}

/// The upstream was reset, and its client reads nothing. The proxy still closes the client.
#[test]
fn a_client_that_never_reads_is_closed_after_a_reset() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let mut client = narrow(line.address().parse().unwrap());
    let mut server = upstream.accept();
    fill(&line, &mut server);
    server.reset();
    client.write_all(b"and another thing").unwrap();
    assert_eq!(ending(&line).0, "broken");
    drop(client);
}

/// The client waits for an upstream and closes. The proxy ends the connection at once.
#[test]
fn a_client_that_leaves_while_waiting_is_released() {
    let line = Line::proxy(&[&format!("127.0.0.1:{}", free_port())], &[]);
    let client = Client::connect(&line.address()).unwrap();
    line.wait_for_count(3, Event::UpstreamFailed);
    let since = Instant::now();
    client.reset();
    let (ending, error) = ending(&line);
    assert_eq!(ending, "broken");
    assert!(line.text().contains("the client disconnected"), "{error}");
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "the proxy kept waiting for a client that had left"
    );
}

/// The proxy logs once that no upstream was available, and why.
#[test]
fn a_client_without_an_upstream_is_reset_in_the_end() {
    for patience in ["1ms", "1s"] {
        let upstream = format!("127.0.0.1:{}", free_port());
        let line = Line::proxy(&[&upstream], &["--connect-patience", patience]);
        let mut clients = [(); 3].map(|()| Client::connect(&line.address()).unwrap());
        for client in &mut clients {
            client.expect_reset();
        }
        let said = line.wait_for(1, Event::UpstreamNoneAvailable);
        assert!(said.text.starts_with("WARN"), "{said:?}");
        assert!(said.text.contains("Connection refused"), "{said:?}");
        assert_eq!(line.count(Event::UpstreamNoneAvailable), 1);
    }
}

#[test]
fn a_proxy_without_descriptors_makes_clients_wait_and_recovers() {
    // Depending on whether the limit is even or odd, either accept or connect runs out of
    // descriptors.
    for limit in [60, 61] {
        let upstream = Upstream::tcp();
        let address = upstream.address();
        let backend = Echoing::on(upstream, &address);
        let line = Line::start_program(Path::new(REAL), |command, folder| {
            install(folder, &format!("ulimit -n {limit}\nexec \"$REAL\" \"$@\""));
            command.args(["proxy", "--log", "debug", "--listen", "127.0.0.1:0", "--to", &address]);
        });
        line.wait_for(1, Event::GenerationServing);
        // Connects clients until the descriptors do not suffice for another pair.
        let mut clients = Vec::new();
        let mut waiting = loop {
            let mut client = Client::connect(&line.address()).unwrap();
            client.set_read_timeout(Duration::from_millis(200)).unwrap();
            let answered = client.echo(b"here I am").is_ok();
            client.set_read_timeout(crate::support::DEADLINE).unwrap();
            if !answered {
                break client;
            }
            clients.push(client);
        };
        assert!((5..30).contains(&clients.len()), "{}", clients.len());
        // Open connections are still served, and the upstream is not blamed.
        for client in &mut clients {
            client.echo(b"still here").unwrap();
        }
        assert_eq!(line.count(Event::UpstreamFailed), 0);
        drop(clients);
        waiting.expect(b"here I am").unwrap();
        drop(waiting);
        Client::once(&line.address(), b"as before").unwrap();
        drop(line);
        backend.stop();
    }
}

/// Regression test: the proxy accepted all clients before it connected to any upstream. No
/// descriptor was left for an upstream, and every client waited until it was reset.
#[test]
fn a_proxy_reserves_descriptors_for_its_upstreams() {
    let upstream = Upstream::tcp();
    let address = upstream.address();
    let backend = Echoing::on(upstream, &address);
    let line = Line::start_program(Path::new(REAL), |command, folder| {
        install(folder, "ulimit -n 120\nexec \"$REAL\" \"$@\"");
        command.args(["proxy", "--log", "debug", "--listen", "127.0.0.1:0", "--to", &address]);
    });
    line.wait_for(1, Event::GenerationServing);
    let ask = || {
        let mut client = Client::connect(&line.address()).unwrap();
        client.write_all(b"here I am").unwrap();
        client
    };
    let clients: Vec<_> = (0..200).map(|_| ask()).collect();
    for mut client in clients {
        client.expect(b"here I am").unwrap();
    }
    assert_eq!(line.count(Event::UpstreamNoneAvailable), 0);
    drop(line);
    backend.stop();
}

/// The kernel refuses the pipe for splice(2), so the proxy copies the bytes itself.
#[test]
fn a_long_transfer_without_a_pipe_still_completes() {
    let long: Vec<u8> =
        (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // First no descriptor is left for the pipe. Then the kernel refuses to enlarge the pipe.
    for refused in ["pipe2:error=EMFILE", "fcntl:error=EPERM"] {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &["--workers", "1"]);
        let (mut client, mut server) = line.pair(&upstream);
        // The connection already exists, so only a pipe needs either call.
        server.write_all(b"welcome").unwrap();
        client.expect(b"welcome").unwrap();
        let inject = format!("inject={refused}");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&long).unwrap());
            server.expect(&long).unwrap();
        });
        let trace = tracer.detach();
        assert!(trace.contains("INJECTED"), "the proxy did not make the call: {trace}");
        assert!(!trace.contains("splice("), "{trace}");
        server.write_all(b"thank you").unwrap();
        client.expect(b"thank you").unwrap();
    }
}

#[test]
fn a_long_transfer_continues_after_urgent_data() {
    let long: Vec<u8> =
        (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &["--workers", "1"]);
    let (mut client, mut server) = line.pair(&upstream);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&long).unwrap();
            client.send_urgent(b'!');
            client.write_all(b"the rest").unwrap();
            client.half_close().unwrap();
        });
        server.expect(&long).unwrap();
        server.expect(b"the rest").unwrap();
        server.expect_end().unwrap();
    });
}
