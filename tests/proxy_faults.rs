//! Whatever one side of a proxied connection does, the other learns what became of it, and nobody
//! else does.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{
    Client, Echoing, Event, Line, REAL, Tracer, Upstream, assert_becomes, free_port, install,
    narrow,
};

/// More than one read takes, and less than the kernel does for a reader that is not there.
const SOME: usize = 100_000;

/// Waits until the one connection of a proxy has ended, and tells of what.
pub(crate) fn ending(line: &Line) -> (String, String) {
    let record = line.wait_for(1, Event::ConnectionEnded);
    (
        record.field("ending").unwrap().to_owned(),
        record.field("error").unwrap_or_default().to_owned(),
    )
}

#[test]
fn an_upstream_that_refuses_is_passed_by_and_then_passed_over() {
    let (refusing, upstream) = (free_port().to_string(), Upstream::tcp());
    let line = Line::proxy(&[&format!("127.0.0.1:{refusing}"), &upstream.address()], &[]);
    for _ in 0..20 {
        let (mut client, mut server) = line.pair(&upstream);
        server.write_all(b"welcome").unwrap();
        client.expect(b"welcome").unwrap();
    }
    // Three times it was tried in vain; then it was not tried any more, and that was said once.
    assert_eq!(line.count(Event::UpstreamFailed), 3);
    let said = line.wait_for(1, Event::UpstreamUnavailable);
    assert!(said.text.starts_with("WARN"), "{said:?}");
    assert_eq!(said.field("upstream"), Some(&*format!("127.0.0.1:{refusing}")));
    assert_eq!(said.field("listener"), Some("listener-1"));
    assert!(said.text.contains("refused"), "{said:?}");
    assert_eq!(line.count(Event::UpstreamUnavailable), 1);
}

#[test]
fn an_upstream_whose_queue_is_full_is_passed_by() {
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

#[test]
fn an_upstream_that_is_reset_has_its_client_reset_after_what_it_had_said() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    let said = vec![7; SOME];
    server.write_all(&said).unwrap();
    // It is on its way to the client, who does not read it yet.
    assert_becomes(&true, || line.is_asleep());
    server.reset();
    assert!(ending(&line).0 == "broken");
    let (heard, end) = client.read_all();
    assert!(heard == said, "{} bytes of {}", heard.len(), said.len());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_is_reset_has_its_upstream_reset_after_what_it_had_said() {
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

#[test]
fn an_upstream_that_closes_on_a_client_that_goes_on_sending_is_heard_first() {
    let upstream = Upstream::tcp();
    let line = Line::proxy(&[&upstream.address()], &[]);
    let (mut client, mut server) = line.pair(&upstream);
    // Refused in the middle of an upload: with unread bytes there, the close is a reset.
    client.write_all(&vec![1; SOME]).unwrap();
    server.expect(&[1; 10]).unwrap();
    server.write_all(b"too large").unwrap();
    client.expect(b"too large").unwrap();
    drop(server);
    let until = Instant::now() + crate::support::DEADLINE;
    // It hears of it when it sends on, or reads.
    while client.write_all(&[1; 1000]).is_ok() {
        assert!(Instant::now() < until);
    }
}

/// Sends, with little room here, until nobody takes more: what was sent.
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

/// All of it was heard, but for what had not left the sender, and then there was no end but a
/// reset.
fn assert_heard(sent: &[u8], (heard, end): (Vec<u8>, std::io::Result<()>)) {
    const NOT_YET_LEFT: usize = 100_000;
    assert!(sent.starts_with(&heard), "altered");
    assert!(sent.len() > 3 * NOT_YET_LEFT, "hardly anything was on its way: {}", sent.len());
    assert!(heard.len() + NOT_YET_LEFT >= sent.len(), "{} bytes of {}", heard.len(), sent.len());
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_an_upstream_said_before_it_broke_reaches_a_slow_client() {
    for goes_on_sending in [false, true] {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &[]);
        let mut client = narrow(line.address().parse().unwrap());
        let mut server = upstream.accept();
        let sent = fill(&line, &mut server);
        server.reset();
        if goes_on_sending {
            // Then it is the proxy's own write that tells it.
            client.write_all(b"and another thing").unwrap();
        }
        assert_heard(&sent, client.read_all());
        assert_eq!(ending(&line).0, "broken");
    }
}

#[test]
fn what_a_client_said_before_it_broke_reaches_a_slow_upstream() {
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

#[test]
fn a_client_that_takes_nothing_is_given_up_when_its_upstream_has_broken() {
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

#[test]
fn a_client_that_goes_away_while_it_is_held_is_let_go() {
    let line = Line::proxy(&[&format!("127.0.0.1:{}", free_port())], &[]);
    let client = Client::connect(&line.address()).unwrap();
    line.wait_for_count(3, Event::UpstreamFailed);
    let since = Instant::now();
    client.reset();
    let (ending, error) = ending(&line);
    assert_eq!(ending, "broken");
    assert!(line.text().contains("went away"), "{error}");
    assert!(since.elapsed() < Duration::from_secs(5), "it was held as if it were there");
}

#[test]
fn a_client_that_nobody_accepts_is_reset_in_the_end_and_that_is_said_once() {
    let line = Line::proxy(&[&format!("127.0.0.1:{}", free_port())], &[]);
    let mut clients = [(); 3].map(|()| Client::connect(&line.address()).unwrap());
    for client in &mut clients {
        client.expect_reset();
    }
    let said = line.wait_for(1, Event::UpstreamNoneAvailable);
    assert!(said.text.starts_with("WARN"), "{said:?}");
    assert_eq!(line.count(Event::UpstreamNoneAvailable), 1);
}

#[test]
fn a_proxy_without_descriptors_makes_clients_wait_and_recovers() {
    // With an even number it is the accept that finds none, with an odd one the connect; or the
    // other way round.
    for limit in [60, 61] {
        let upstream = Upstream::tcp();
        let address = upstream.address();
        let backend = Echoing::on(upstream, &address);
        let line = Line::start_program(Path::new(REAL), |command, folder| {
            install(folder, &format!("ulimit -n {limit}\nexec \"$REAL\" \"$@\""));
            command.args(["proxy", "--log", "debug", "--listen", "127.0.0.1:0", "--to", &address]);
        });
        line.wait_for(1, Event::GenerationServing);
        // One after the other, until there is no room for one more pair.
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
        // Those that are there are served, and no upstream is to blame.
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

/// All clients were accepted before any upstream was connected to. Then none was left for an
/// upstream, and every client waited until it was reset.
#[test]
fn clients_of_a_proxy_leave_descriptors_for_its_upstreams() {
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

#[test]
fn a_long_transfer_for_which_the_kernel_makes_no_pipe_goes_on_without_one() {
    let long: Vec<u8> =
        (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // No descriptor is left, and then there is one, and no memory for what it should hold.
    for refused in ["pipe2:error=EMFILE", "fcntl:error=EPERM"] {
        let upstream = Upstream::tcp();
        let line = Line::proxy(&[&upstream.address()], &["--workers", "1"]);
        let (mut client, mut server) = line.pair(&upstream);
        // The connection is made, and only a pipe needs either call.
        server.write_all(b"welcome").unwrap();
        client.expect(b"welcome").unwrap();
        let inject = format!("inject={refused}");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&long).unwrap());
            server.expect(&long).unwrap();
        });
        let trace = tracer.detach();
        assert!(trace.contains("INJECTED"), "it was not asked for: {trace}");
        assert!(!trace.contains("splice("), "{trace}");
        server.write_all(b"thank you").unwrap();
        client.expect(b"thank you").unwrap();
    }
}

#[test]
fn a_long_transfer_goes_on_beyond_urgent_data_and_to_its_own_end() {
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
