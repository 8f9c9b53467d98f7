//! The examples under load: they are replaced again and again, and lose no request.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use crate::support::{Client, Event, Line, example, exit_code, signal};

/// How many times each example is replaced while the clients run.
const HANDOFFS: usize = 10;
const CLIENTS: usize = 4;

/// Replaces an example while clients run `exchange` as fast as they can, then stops it. No exchange
/// may fail.
fn survives_replacement(name: &str, exchange: impl Fn(&str) -> io::Result<()> + Sync) {
    let line = Line::start_program(&example(name), |command, _| {
        command.arg("127.0.0.1:0");
    });
    let address = line.address();
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let last = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        exchange(&address)?;
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        let mut pid = line.first_pid();
        for successor in 2..HANDOFFS + 2 {
            signal(pid, Signal::SIGHUP);
            let handed_over = line.wait("the handoff", |record| {
                record.is_event(Event::HandoffCommitted)
                    && record.field("successor") == Some(&successor.to_string())
            });
            pid = handed_over.field("successor_pid").unwrap().parse().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap().unwrap_or_else(|error| panic!("{name}: a client met {error}"));
        }
        pid
    });
    assert!(served.into_inner() > HANDOFFS * CLIENTS, "the clients made too few exchanges");
    line.wait_for_count(HANDOFFS + 1, Event::GenerationServing);
    signal(last, Signal::SIGTERM);
    line.wait_for_end();
}

#[test]
fn a_custom_service_loses_nothing_while_it_is_replaced() {
    survives_replacement("shout", |address| {
        let mut client = Client::connect(address)?;
        client.write_all(b"hello")?;
        client.expect(b"HELLO")?;
        client.half_close()?;
        client.expect_end()
    });
}

#[test]
fn an_own_server_loses_nothing_while_it_is_replaced() {
    survives_replacement("http", |address| Client::connect(address)?.get().map(drop));
}

/// Each connection also carries half a line; the other half reaches the next process.
#[test]
fn a_custom_service_carries_its_connection_state() {
    const HANDOFFS: usize = 3;
    let line = Line::start_program(&example("tally"), |command, _| {
        command.arg("127.0.0.1:0");
    });
    let address = line.address();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(&address).unwrap()).collect();
    let mut pid = line.first_pid();
    let mut lines = vec![0; clients.len()];
    for successor in 2..HANDOFFS + 2 {
        for (place, (client, lines)) in clients.iter_mut().zip(&mut lines).enumerate() {
            // Each connection gets a different number of lines.
            for _ in 0..=place % 3 {
                *lines += 1;
                client.write_all(b"or more\none").unwrap();
                client.expect(format!("{lines}\n").as_bytes()).unwrap();
            }
        }
        signal(pid, Signal::SIGHUP);
        let handed_over = line.wait("the handoff", |record| {
            record.is_event(Event::HandoffCommitted)
                && record.field("successor") == Some(&successor.to_string())
        });
        // No client has disconnected, and yet the old process ends.
        assert_eq!(exit_code(pid), 0);
        pid = handed_over.field("successor_pid").unwrap().parse().unwrap();
    }
    line.wait_for_count(HANDOFFS, Event::CarryTakenOver.with("taken", 20).with("refused", 0));
    for (client, lines) in clients.iter_mut().zip(lines) {
        client.write_all(b"last\n").unwrap();
        client.expect(format!("{}\n", lines + 1).as_bytes()).unwrap();
        client.half_close().unwrap();
        client.expect_end().unwrap();
    }
}

/// The service cannot detach one connection. It stays behind, and the carry does not wait for it.
#[test]
fn a_carry_skips_connections_that_a_service_cannot_detach() {
    let line = Line::start_program(&example("tally"), |command, _| {
        command.arg("127.0.0.1:0");
    });
    let [mut carried, mut stays] = [(), ()].map(|()| Client::connect(&line.address()).unwrap());
    for (client, words) in [(&mut carried, "go\n"), (&mut stays, "stay\n")] {
        client.write_all(words.as_bytes()).unwrap();
        client.expect(b"1\n").unwrap();
    }
    signal(line.first_pid(), Signal::SIGHUP);
    // The connection waits for its next line when the carry is requested. It must stay behind at
    // once, not after the carry timeout.
    stays.expect_end().unwrap();
    drop(stays);
    assert_eq!(exit_code(line.first_pid()), 0);
    line.wait_for_count(1, Event::CarryTakenOver.with("taken", 1).with("refused", 0));
    line.wait_for_count(
        1,
        Event::GenerationEnded.with("ended", 1).with("carried", 1).with("cut", 0),
    );
    carried.write_all(b"on\n").unwrap();
    carried.expect(b"2\n").unwrap();
}

/// hyper closes a connection without any request as soon as it is told to shut down.
#[test]
fn an_own_server_answers_a_late_first_request() {
    let line = Line::start_program(&example("http"), |command, _| {
        command.arg("127.0.0.1:0");
    });
    let mut silent = Client::connect(&line.address()).unwrap();
    // The backlog is in order: when this client is answered, the silent one has been accepted.
    Client::connect(&line.address()).unwrap().get().unwrap();
    signal(line.first_pid(), Signal::SIGHUP);
    line.wait("the drain", |record| record.is_event(Event::DrainStarted.with("why", "retiring")));
    silent.get().unwrap();
}

/// Each client keeps its connection until a response announces its end.
#[test]
fn an_own_server_loses_no_request_of_keep_alive_clients() {
    thread_local! {
        static KEPT: RefCell<Option<Client>> = const { RefCell::new(None) };
    }
    survives_replacement("http", |address| {
        KEPT.with_borrow_mut(|kept| {
            let mut client = kept.take().map_or_else(|| Client::connect(address), Ok)?;
            if keep_alive_get(&mut client)? == Kept::Open {
                *kept = Some(client);
            }
            Ok(())
        })
    });
}

/// The client is idle when the server is replaced, and sends another request afterwards.
#[test]
fn an_own_server_announces_the_end_of_a_connection() {
    let line = Line::start_program(&example("http"), |command, _| {
        command.arg("127.0.0.1:0");
    });
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| Client::connect(&line.address()).unwrap()).collect();
    for client in &mut clients {
        assert_eq!(keep_alive_get(client).unwrap(), Kept::Open);
    }
    signal(line.first_pid(), Signal::SIGHUP);
    line.wait("the drain", |record| record.is_event(Event::DrainStarted.with("why", "retiring")));
    for client in &mut clients {
        assert_eq!(keep_alive_get(client).unwrap(), Kept::Announced);
        client.expect_end().unwrap();
    }
    drop(clients);
    assert_eq!(exit_code(line.first_pid()), 0);
}

/// What a response says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Open,
    /// The connection ends with this response.
    Announced,
}

/// Sends one HTTP request on a persistent connection and reads the complete response.
fn keep_alive_get(client: &mut Client) -> io::Result<Kept> {
    client.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length = field("content-length:").and_then(|length| length.parse().ok());
    let mut body =
        vec![0; length.ok_or_else(|| io::Error::other(format!("a reply without length: {head}")))?];
    client.read_exact(&mut body)?;
    Ok(if field("connection:") == Some("close") { Kept::Announced } else { Kept::Open })
}
