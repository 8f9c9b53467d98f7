//! Tests of what the configuration file sets beside the services: sockets, addresses and limits.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::check::folder;
use crate::config_file::{WEB, echo, put, serve};
use crate::support::{Client, Event, Line, Parent, REAL, Refusal, assert_becomes};

#[test]
fn the_file_sets_the_control_socket_and_the_pid_file() {
    let line = Line::start_with(|command, folder| {
        put(folder, &format!("control = '$F/control'\npid_file = '$F/pid'\n{WEB}"));
        command.arg("--config").arg(folder.join("handoffd.toml"));
    });
    line.wait_for(1, Event::GenerationServing);
    line.asked(&["status"]).well();
    assert_eq!(
        fs::read_to_string(line.folder().join("pid")).unwrap().trim(),
        line.first_pid().to_string()
    );
}

#[test]
fn a_passed_socket_serves_the_listener_of_its_name() {
    let folder = folder();
    let socket = UnixListener::bind(folder.path().join("passed.sock")).unwrap();
    put(folder.path(), "[listener.web]\naddress = '$F/bound.sock'\nservice = 'echo'\n");
    let parent = Parent::passing([socket.into()]).saying("LISTEN_FDNAMES", "web");
    let line = parent.serve(&["--config", folder.path().join("handoffd.toml").to_str().unwrap()]);
    echo(folder.path().join("passed.sock").to_str().unwrap());
    assert!(!folder.path().join("bound.sock").exists());
    drop(line);
}

#[test]
fn the_file_sets_the_metrics_address() {
    let line = serve(&format!("metrics = '127.0.0.1:0'\n{WEB}"), &[]);
    echo(&line.address_of("web"));
    let mut collector = Client::connect(&line.address_of("metrics")).unwrap();
    collector.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    collector.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("handoffd_accepted_connections_total{listener=\"web\"} 1\n"),
        "{answer}"
    );
    // Metrics need the control socket, so a file without one is invalid.
    put(line.folder(), &format!("\nmetrics = '127.0.0.1:0'\n{WEB}"));
    let mut command = Command::new(REAL);
    command
        .current_dir(line.folder())
        .args(["--config", "handoffd.toml"])
        .env_remove("RUNTIME_DIRECTORY");
    Refusal::of(command)
        .names(78, &["handoffd.toml:2:11: metrics needs a control socket", "expected control = "]);
}

/// A listener at its limit resets no connection. New clients wait until a connection ends.
#[test]
fn a_listener_at_its_limit_makes_clients_wait() {
    let text = "workers = 2\n\
                [listener.few]\naddress = \"127.0.0.1:0\"\nservice = \"echo\"\n\
                max_connections = 3\n\
                [listener.many]\naddress = \"127.0.0.1:0\"\nservice = \"echo\"\n";
    let line = serve(text, &[]);
    let few = line.address_of("few");
    let mut inside: Vec<Client> = (0..3).map(|_| Client::connect(&few).unwrap()).collect();
    inside.iter_mut().for_each(|client| client.echo(b"inside").unwrap());
    let mut outside: Vec<Client> = (0..10).map(|_| Client::connect(&few).unwrap()).collect();
    outside.iter_mut().for_each(|client| client.write_all(b"outside").unwrap());
    line.wait_for(1, Event::ListenerFull);
    // By now the daemon has handled the arrival of all clients.
    assert_becomes(&true, || line.is_asleep());
    Client::once(&line.address_of("many"), b"another listener").unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    let counters = &status["counters"]["listeners"]["few"];
    assert_eq!((&counters["accepted"], &counters["active"]), (&3.into(), &3.into()), "{status}");
    assert_eq!(counters["limited"], 1, "counted once, not for each worker: {status}");
    // Each connection that ends makes room for another.
    for mut client in outside {
        drop(inside.remove(0));
        client.expect(b"outside").unwrap();
        inside.push(client);
    }
    // The next generation has its own permits.
    put(line.folder(), &format!("carry = false\n{text}"));
    line.asked(&["reload"]).well();
    line.wait_for(2, Event::GenerationServing);
    Client::once(&few, b"as before").unwrap();
}
