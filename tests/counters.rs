//! Counters of a lineage, for each listener: they survive every handoff.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Client, Event, Line, Manager, Operator, REAL, SLOW_DRAIN, assert_becomes, freeze, thaw,
};

fn status(line: &Line) -> Value {
    serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap()
}

/// Waits until no generation drains, and returns the lineage's counters.
fn settled(line: &Line) -> Value {
    assert_becomes(&1, || status(line)["generations"].as_array().unwrap().len());
    status(line)["counters"].clone()
}

fn listener<'a>(counters: &'a Value, name: &str) -> Vec<(&'a str, u64)> {
    let counters = counters["listeners"][name].as_object().unwrap();
    let numbers = counters.iter().map(|(name, number)| (name.as_str(), number.as_u64().unwrap()));
    numbers.filter(|(_, number)| *number > 0).collect()
}

#[test]
fn counters_survive_every_handoff() {
    let line = Line::serve_controlled(&["--bake", "0", "--listen", "other=127.0.0.1:0"]);
    let (first, other) = (line.address(), line.address_of("other"));
    for generation in 1..6 {
        for _ in 0..10 {
            Client::once(&first, b"12345").unwrap();
        }
        Client::once(&other, b"123").unwrap();
        line.asked(&["reload"]).well();
        line.wait_for(generation + 1, Event::GenerationServing);
    }
    let counters = settled(&line);
    assert_eq!(
        listener(&counters, "listener-1"),
        [("accepted", 50), ("received", 250), ("sent", 250)]
    );
    assert_eq!(listener(&counters, "other"), [("accepted", 5), ("received", 15), ("sent", 15)]);
    assert_eq!(counters["handoffs"]["succeeded"], 5);
    let table = line.asked(&["status"]).well();
    assert!(table.contains("handoffs: 5 succeeded, 0 failed, 0 rolled back"), "{table}");
    let row: Vec<&str> =
        table.lines().find(|row| row.starts_with("other ")).unwrap().split_whitespace().collect();
    assert_eq!(row[1..], [&*other, "5", "0", "0", "15", "15", "0", "0", "0", "0"], "{table}");
}

#[test]
fn open_connections_of_an_old_generation_are_counted() {
    let line = Line::serve_controlled(&[&["--bake", "0"], &SLOW_DRAIN[..]].concat());
    let mut held = Client::connect(&line.address()).unwrap();
    held.echo(b"first").unwrap();
    // This opens a second connection, which sends nothing, and a third one, which completes a
    // request.
    let silent = line.hold();
    line.asked(&["reload"]).well();
    held.expect_end().unwrap();
    drop(held);
    let seen = || {
        let status = status(&line);
        let counters = &status["counters"]["listeners"]["listener-1"];
        ["accepted", "active", "drained", "cut", "sent"]
            .map(|name| counters[name].as_u64().unwrap())
    };
    assert_becomes(&[3, 1, 1, 0, 19], seen);
    line.signal(1, Signal::SIGQUIT);
    assert_eq!(line.exit_code(1), 0);
    assert_becomes(&[3, 0, 1, 1, 19], seen);
    drop(silent);
}

#[test]
fn the_watchdog_does_not_raise_the_limited_counter() {
    let manager = Manager::new();
    let line = Line::start_under(
        &["sh", "-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""],
        |command, folder| {
            let config = folder.join("handoffd.toml");
            let few = "[listener.few]\naddress = \"127.0.0.1:0\"\nservice = \"echo\"\nmax_connections = 1\n";
            fs::write(&config, format!("workers = 3\n{few}")).unwrap();
            command.arg("--config").arg(config).arg("--control").arg(folder.join("control"));
            command.env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "20000");
        },
    );
    let limited = || {
        // The watchdog message is sent once every worker loop has run. Older messages are skipped.
        manager.rest();
        (0..5).for_each(|_| drop(manager.hear_until("WATCHDOG=1")));
        status(&line)["counters"]["listeners"]["few"]["limited"].as_u64().unwrap()
    };
    manager.hear_until("WATCHDOG=1");
    // One worker holds the only permit although no client is connected.
    assert_eq!(limited(), 0);
    for times in 1..4 {
        let mut client = Client::connect(&line.address_of("few")).unwrap();
        client.echo(b"the only one").unwrap();
        assert_becomes(&times, limited);
        assert_eq!(limited(), times);
    }
}

#[test]
fn handoffs_are_counted_by_how_they_ended() {
    let line = Line::serve_controlled(&["--bake", "1h"]);
    line.put_script("exit 3");
    line.asked(&["reload"]).names(70, &["ended before it was ready"]);
    line.put_real();
    let reload = line.ask(&["reload"]);
    line.wait_for(1, Event::SuccessorReady);
    line.signal(2, Signal::SIGKILL);
    reload.wait().names(76, &["rolled back"]);
    let handoffs = settled(&line)["handoffs"].clone();
    assert_eq!(handoffs, serde_json::json!({ "succeeded": 0, "failed": 1, "rolled_back": 1 }));
}

#[test]
fn a_rolled_back_generation_stays_counted() {
    for number in [Signal::SIGTERM, Signal::SIGKILL] {
        let line = Line::serve_controlled(&["--bake", "1h"]);
        let address = line.address();
        let reload = line.ask(&["reload"]);
        line.wait_for(1, Event::SuccessorReady);
        let mut calls = 0;
        // Both generations accept: connect until the new one has served a connection.
        while line.records().iter().all(|record| !record.is(2, Event::ConnectionEnded)) {
            Client::once(&address, b"12345").unwrap();
            calls += 1;
        }
        // If the generation is killed without a final report, its last report counts.
        let seen = || {
            listener(&status(&line)["counters"], "listener-1")
                .iter()
                .map(|(_, sum)| *sum)
                .collect::<Vec<_>>()
        };
        assert_becomes(&vec![calls, calls * 5, calls * 5], seen);
        line.signal(2, number);
        reload.wait().names(76, &["rolled back"]);
        let counters = settled(&line);
        let sums = [("accepted", calls), ("received", calls * 5), ("sent", calls * 5)];
        assert_eq!(listener(&counters, "listener-1"), sums, "{number}");
        assert_eq!(counters["handoffs"]["rolled_back"], 1);
    }
}

#[test]
fn a_carried_connection_is_accepted_once() {
    let line = Line::serve_controlled(&["--bake", "0", "--carry", "--metrics", "127.0.0.1:0"]);
    let mut client = Client::connect(&line.address()).unwrap();
    client.echo(b"12345").unwrap();
    for generation in 1..4 {
        line.asked(&["reload", "--wait-drained"]).well();
        assert_eq!(line.exit_code(generation), 0);
        client.echo(b"12345").unwrap();
        let table = line.asked(&["status"]).well();
        let column = |name: &str| {
            let cells = |begin: &str| {
                let row = table.lines().find(|row| row.starts_with(begin)).unwrap();
                row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            };
            let place = cells("LISTENER").iter().position(|head| head == name).unwrap();
            cells("listener-1")[place].clone()
        };
        let shown = ["ACCEPTED", "OPEN", "DRAINED", "CUT", "CARRIED", "REFUSED"].map(column);
        assert_eq!(shown, ["1", "1", "0", "0", &generation.to_string(), "0"], "{table}");
        let metrics = request(&line.address_of("metrics"), "GET /metrics HTTP/1.1");
        let carried = format!(
            "\nhandoffd_carried_connections_total{{listener=\"listener-1\"}} {generation}\n"
        );
        assert!(metrics.contains(&carried), "{metrics}");
    }
}

/// Sends one HTTP request and returns the response.
pub(crate) fn request(address: &str, head: &str) -> String {
    let mut client = Client::connect(address).unwrap();
    client.write_all(format!("{head}\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn any_generation_reports_the_metrics_of_the_lineage() {
    let line = Line::serve_controlled(&["--bake", "0", "--metrics", "127.0.0.1:0"]);
    let metrics = line.address_of("metrics");
    for handoffs in 0..3 {
        Client::once(&line.address(), b"12345").unwrap();
        line.wait_for_count(
            handoffs + 1,
            Event::ConnectionEnded.with("received", 5).with("sent", 5),
        );
        let answer = request(&metrics, "GET /metrics HTTP/1.1");
        assert!(
            answer.starts_with(
                "HTTP/1.1 200 OK\r\ncontent-type: application/openmetrics-text; version=1.0.0"
            ),
            "{answer}"
        );
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        for number in [
            format!("handoffd_generation {}", handoffs + 1),
            format!("handoffd_handoffs_total{{outcome=\"succeeded\"}} {handoffs}"),
            format!(
                "handoffd_accepted_connections_total{{listener=\"listener-1\"}} {}",
                handoffs + 1
            ),
            format!(
                "handoffd_received_bytes_total{{listener=\"listener-1\"}} {}",
                5 * (handoffs + 1)
            ),
            "handoffd_open_connections{listener=\"metrics\"} 1".to_owned(),
            "handoffd_carried_connections_total{listener=\"listener-1\"} 0".to_owned(),
            "handoffd_refused_connections_total{listener=\"listener-1\"} 0".to_owned(),
            "handoffd_lost_connections_total{listener=\"listener-1\"} 0".to_owned(),
        ] {
            assert!(answer.contains(&format!("\n{number}\n")), "no {number:?} in {answer}");
        }
        line.asked(&["reload"]).well();
        settled(&line);
    }
    assert!(request(&metrics, "POST /metrics HTTP/1.1").starts_with("HTTP/1.1 405 "));
    assert!(request(&metrics, "GET / HTTP/1.1").starts_with("HTTP/1.1 404 "));
    assert!(request(&metrics, "nonsense").starts_with("HTTP/1.1 400 "));
    Client::once(&line.address(), b"as before").unwrap();
}

/// The test plays a daemon whose clock was wrong at its start and has been corrected since.
#[test]
fn a_clock_change_does_not_affect_state_durations() {
    let line = Line::serve_controlled(&[]);
    let mut status = status(&line);
    let generation = &mut status["generations"][0];
    assert!(generation["for_ms"].is_u64() && generation["since_unix_ms"].is_u64(), "{generation}");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("control");
    let daemon = UnixListener::bind(&path).unwrap();
    for since in [1_u64, 4_102_444_800_000] {
        status["generations"][0]["since_unix_ms"] = since.into();
        status["generations"][0]["for_ms"] = 61_000.into();
        let mut command = Command::new(REAL);
        command.arg("status").arg("--control").arg(&path);
        let operator = Operator::start(command);
        let (mut client, _) = daemon.accept().unwrap();
        BufReader::new(&client).read_line(&mut String::new()).unwrap();
        writeln!(client, "{}", serde_json::json!({ "status": status })).unwrap();
        let table = operator.wait().well();
        assert!(table.contains(" serving  1m 1s  "), "{table}");
    }
}

/// The active generation is stopped while the requests arrive, so that all of them wait at once.
#[test]
fn many_scrapes_take_one_thread() {
    let line =
        Line::serve_controlled(&["--workers", "2", "--bake", "0", "--metrics", "127.0.0.1:0"]);
    let metrics = line.address_of("metrics");
    let of_metrics = || {
        let threads = fs::read_dir(format!("/proc/{}/task", line.first_pid())).unwrap();
        let names =
            threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        names.filter(|name| name == "metrics\n").count()
    };
    let mut collectors: Vec<_> = (0..200).map(|_| Client::connect(&metrics).unwrap()).collect();
    freeze(line.first_pid());
    for collector in &mut collectors {
        collector.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    thaw(line.first_pid());
    let mut most = 0;
    for mut collector in collectors {
        let mut answer = String::new();
        collector.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("# EOF\n"),
            "{answer}"
        );
        most = most.max(of_metrics());
    }
    assert_eq!(most, 1);
}
