//! Tests of PROXY headers as real senders write them, on every kind of listener. The daemon reports
//! bad headers to the operator.

use std::io::Write;
use std::path::Path;

use crate::config_file::{put, serve};
use crate::counters::request;
use crate::support::{Client, Event, Line, REAL, Refusal, Upstream, assert_becomes};

/// Returns the configuration of a proxy on `address` that accepts headers from `networks` and sends
/// its upstream a header.
fn trusting(address: &str, networks: &str, upstream: &Upstream) -> String {
    format!(
        "log = 'debug'\ncarry = true\n[listener.web]\naddress = '{address}'\nservice = 'proxy'\n\
         upstreams = ['{}']\naccept_proxy_header_from = {networks}\nsend_proxy_header = 'v1'\n",
        upstream.address()
    )
}

/// Connects a client that sends `header`, and asserts that the upstream receives `told`.
fn assert_told(line: &Line, upstream: &Upstream, header: &[u8], told: &[u8]) -> (Client, Client) {
    let mut client = Client::connect(&line.address_of("web")).unwrap();
    client.write_all(header).unwrap();
    client.write_all(b"request").unwrap();
    let mut server = upstream.accept();
    server.expect(told).unwrap();
    server.expect(b"request").unwrap();
    (client, server)
}

/// Returns a version 2 header with the command LOCAL and `length` bytes after the fixed part.
fn local(length: u16) -> Vec<u8> {
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x20\0";
    [&fixed[..], &length.to_be_bytes(), &vec![0xee; usize::from(length)]].concat()
}

#[test]
fn headers_of_real_senders_are_understood() {
    let upstream = Upstream::tcp();
    let line = serve(&trusting("127.0.0.1:0", "['::ffff:127.0.0.0/104']", &upstream), &[]);
    // As nginx sends them when client and server addresses have different families.
    for (header, told) in [
        ("TCP6 2001:db8::1 192.0.2.7 1234 443", "TCP6 2001:db8::1 ::ffff:192.0.2.7 1234 443"),
        ("TCP4 192.0.2.7 2001:db8::1 1234 443", "TCP6 ::ffff:192.0.2.7 2001:db8::1 1234 443"),
    ] {
        let (header, told) = (format!("PROXY {header}\r\n"), format!("PROXY {told}\r\n"));
        assert_told(&line, &upstream, header.as_bytes(), told.as_bytes());
    }
    for length in [0, 4_000, u16::MAX] {
        let mut client = Client::connect(&line.address_of("web")).unwrap();
        client.write_all(&local(length)).unwrap();
        client.write_all(b"request").unwrap();
        let Client::Tcp(socket) = &client else { panic!("{client:?}") };
        let (from, to) = (socket.local_addr().unwrap().port(), socket.peer_addr().unwrap().port());
        let mut server = upstream.accept();
        server
            .expect(format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\nrequest").as_bytes())
            .unwrap();
    }
}

#[test]
fn a_unix_listener_takes_headers_and_carries_its_clients() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("listener");
    for address in [path.to_str().unwrap(), &format!("@{}", path.display())] {
        let upstream = Upstream::tcp();
        let line = serve(&trusting(address, "['unix']", &upstream), &[]);
        let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
        let (mut client, mut server) = assert_told(&line, &upstream, header, header);
        assert_told(&line, &upstream, &local(4_000), b"PROXY UNKNOWN\r\n");
        line.hand_over_from(1);
        assert_eq!(line.exit_code(1), 0);
        // The connection was carried, although its header names an address of another family.
        server.write_all(b"reply").unwrap();
        client.expect(b"reply").unwrap();
        assert_told(&line, &upstream, header, header);
    }
}

#[test]
fn refused_headers_are_all_counted_but_rarely_logged() {
    let upstream = Upstream::tcp();
    let line =
        serve(&trusting("127.0.0.1:0", "['127.0.0.1']", &upstream), &["--metrics", "127.0.0.1:0"]);
    for _ in 0..20 {
        let mut client = Client::connect(&line.address_of("web")).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(client.read_all().0.is_empty());
    }
    let record = line.wait_for(1, Event::ClientRefused);
    assert!(record.text.starts_with("WARN"), "{record:?}");
    assert_eq!(record.field("listener"), Some("web"));
    assert!(record.text.contains("does not begin with a PROXY header"), "{record:?}");
    assert_eq!(line.count(Event::ClientRefused), 1);
    assert_becomes(&20, || line.counter("web", "header_errors"));
    let metrics = request(&line.address_of("metrics"), "GET /metrics HTTP/1.1");
    assert!(metrics.contains("\nhandoffd_header_errors_total{listener=\"web\"} 20\n"), "{metrics}");
    line.hand_over_from(1);
    assert_becomes(&20, || line.counter("web", "header_errors"));
    let table = line.asked(&["status"]).well();
    assert!(table.contains("web: 20 clients refused because of their PROXY header"), "{table}");
}

#[test]
fn networks_that_no_client_can_match_are_rejected() {
    let upstream = Upstream::tcp();
    for (address, networks, expected) in [
        ("/run/web.sock", "['127.0.0.0/8']", "expected \"unix\" among these networks"),
        ("@web", "['::1', '10.0.0.0/8']", "expected \"unix\" among these networks"),
        ("127.0.0.1:0", "['unix']", "expected a network of IP addresses"),
    ] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        put(folder.path(), &trusting(address, networks, &upstream));
        let mut command = std::process::Command::new(Path::new(REAL));
        command.args(["check", "--config"]).arg(folder.path().join("handoffd.toml"));
        let refusal = Refusal::of(command);
        assert_eq!(refusal.code, 78, "{refusal:?}");
        assert!(refusal.said.contains(expected), "{refusal:?}");
    }
}
