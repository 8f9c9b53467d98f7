//! Large configurations: thousands of listeners and upstreams start, reload, report and drain like
//! a few.

use std::fmt::Write as _;
use std::io::Write as _;

use nix::sys::signal::Signal;

use crate::check::check;
use crate::config_file::{put, serve};
use crate::counters::request;
use crate::support::{Client, Event, Line, SLOW_DRAIN, Upstream, raise_descriptor_limit};

/// The names alone exceed the limit of one environment variable, execve(2), and the size of any
/// packet.
#[test]
fn a_reload_passes_on_names_of_any_total_length() {
    let name = |number: usize| format!("{}-{number}", "n".repeat(100));
    let mut file = String::new();
    for number in 0..1500 {
        writeln!(
            file,
            "[listener.{}]\naddress = \"$F/{number:03}\"\nservice = \"echo\"",
            name(number)
        )
        .unwrap();
    }
    let line = serve(&file, &[]);
    line.hand_over_from(1);
    for number in [0, 1499] {
        Client::connect(&line.address_of(&name(number)))
            .unwrap()
            .echo(b"through the successor")
            .unwrap();
    }
}

/// Earlier, a handoff first copied every passed descriptor above all others. It needed twice as
/// many descriptors as listeners.
#[test]
fn a_handoff_needs_few_descriptors_besides_the_listeners() {
    let file: String = (0..500)
        .map(|number| {
            format!("[listener.n{number}]\naddress = \"$F/{number}\"\nservice = \"echo\"\n")
        })
        .collect();
    let line = Line::start_under(&["prlimit", "--nofile=700:700"], |command, folder| {
        put(folder, &file);
        let config = folder.join("handoffd.toml");
        command.arg("--config").arg(config).args(["--bake", "0", "--workers", "1"]);
    });
    line.wait_for(1, Event::GenerationServing);
    line.hand_over_from(1);
    line.hand_over_from(2);
    Client::connect(&line.address_of("n499"))
        .unwrap()
        .echo(b"through the third generation")
        .unwrap();
}

/// The report of a generation grows with its listeners and upstreams. Earlier, the predecessor
/// rejected a report longer than a packet and killed a successor that served.
#[test]
fn a_report_of_any_length_reaches_the_other_generation() {
    let upstreams: Vec<_> = (0..20).map(|number| format!("\"@nobody-{number}\"")).collect();
    let mut file =
        "carry = false\n[listener.first]\naddress = \"$F/first\"\nservice = \"echo\"\n".to_owned();
    for number in 0..200 {
        let upstreams = upstreams.join(", ");
        write!(file, "[listener.b{number}]\naddress = \"$F/{number}\"\n").unwrap();
        writeln!(file, "service = \"proxy\"\nupstreams = [{upstreams}]").unwrap();
    }
    let line = serve(&file, &SLOW_DRAIN);
    // A client that has sent nothing keeps the old generation draining.
    let mut client = Client::connect(&line.address_of("first")).unwrap();
    line.asked(&["status"]).well();
    line.asked(&["reload"]).well();
    let status = line.asked(&["status", "--json"]).well();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let [new, old] = [0, 1].map(|place| &status["generations"][place]);
    assert_eq!((&new["state"], &old["state"]), (&"serving".into(), &"retiring".into()));
    assert_eq!(old["counters"]["listeners"]["first"]["active"], 1);
    client.echo(b"served by the old one").unwrap();
    assert_eq!(line.count(Event::HandoffFailed), 0);
}

/// Short addresses keep the log short. `benches/large.rs` measures how the time grows with the
/// number of listeners.
#[test]
fn four_thousand_listeners_are_served() {
    let mut file = "metrics = \"$F/metrics\"\n".to_owned();
    let own = std::process::id();
    for number in 0..4000 {
        writeln!(file, "[listener.n{number}]\naddress = \"@{own}-{number}\"\nservice = \"echo\"")
            .unwrap();
    }
    let line = serve(&file, &[]);
    let control = line.control();
    check(line.folder(), &["--config", "handoffd.toml", "--control", control.to_str().unwrap()])
        .well();
    line.asked(&["reload", "--wait-drained"]).well();
    assert_eq!(
        line.asked(&["status"]).well().lines().filter(|row| row.starts_with('n')).count(),
        4000
    );
    let metrics = request(&line.address_of("metrics"), "GET /metrics HTTP/1.1");
    assert_eq!(metrics.matches("\nhandoffd_accepted_connections_total{").count(), 4001);
    Client::connect(&line.address_of("n3999")).unwrap().echo(b"through the successor").unwrap();
    line.signal(2, Signal::SIGTERM);
    line.wait_for_end();
}

/// The report is long because each listener has counters for each of its upstreams.
#[test]
fn twenty_thousand_upstreams_are_reported() {
    let upstreams: Vec<_> = (0..20).map(|number| format!("\"@u{number}\"")).collect();
    let mut file = String::new();
    for number in 0..1000 {
        writeln!(file, "[listener.n{number}]\naddress = \"$F/{number}\"\nservice = \"proxy\"")
            .unwrap();
        writeln!(file, "upstreams = [{}]", upstreams.join(", ")).unwrap();
    }
    let line = serve(&file, &[]);
    line.asked(&["reload", "--wait-drained"]).well();
    assert_eq!(line.asked(&["status"]).well().matches(" @u7 ").count(), 1000);
}

/// The generations have many listeners, many upstreams and many connections.
#[test]
fn thousands_of_connections_are_carried_from_large_generations() {
    const LISTENERS: usize = 2000;
    const PROXIED: usize = 500;
    raise_descriptor_limit();
    let upstream = Upstream::tcp();
    let others = (1..2000).map(|number| format!("@u{number}"));
    let upstreams: Vec<_> =
        std::iter::once(upstream.address()).chain(others).map(|one| format!("\"{one}\"")).collect();
    let mut file = "carry = true\ndrain_timeout = \"1h\"\n".to_owned();
    write!(file, "[listener.proxy]\naddress = \"$F/proxy\"\nservice = \"proxy\"\n").unwrap();
    writeln!(file, "balance = \"in-order\"\nupstreams = [{}]", upstreams.join(", ")).unwrap();
    for number in 0..LISTENERS {
        writeln!(file, "[listener.n{number}]\naddress = \"$F/{number}\"\nservice = \"echo\"")
            .unwrap();
    }
    let line = serve(&file, &[]);
    let connect = |name: &str| Client::connect(line.folder().join(name).to_str().unwrap()).unwrap();
    let mut echoed: Vec<_> = (0..LISTENERS).map(|number| connect(&number.to_string())).collect();
    let mut proxied: Vec<_> = (0..PROXIED).map(|_| (connect("proxy"), upstream.accept())).collect();
    let mut exchange = |request: &[u8]| {
        echoed.iter_mut().for_each(|client| client.echo(request).unwrap());
        for (client, server) in &mut proxied {
            client.write_all(request).unwrap();
            server.expect(request).unwrap();
            server.write_all(request).unwrap();
            client.expect(request).unwrap();
        }
    };
    exchange(b"before");
    for generation in 1..=2 {
        line.asked(&["reload", "--wait-drained"]).well();
        assert_eq!(line.exit_code(generation), 0);
        exchange(b"after");
        let status = line.asked(&["status", "--json"]).well();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let counters = status["counters"]["listeners"].as_object().unwrap();
        let carried: u64 =
            counters.values().map(|listener| listener["carried"].as_u64().unwrap()).sum();
        assert_eq!(carried, generation * (LISTENERS + PROXIED) as u64);
    }
}
