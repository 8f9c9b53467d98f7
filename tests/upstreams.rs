//! Tests of kernel errors in a proxy: they cost no client. An upstream that cannot be reached is
//! skipped. A socket that does not support an option is used without it.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config_file::serve;
use crate::support::{Client, Event, Line, Parent, Tracer, Upstream};

/// Asserts that `upstream` serves a client without delay.
fn assert_served_by(line: &Line, upstream: &Upstream) {
    let began = Instant::now();
    let (mut client, mut server) = line.pair(upstream);
    server.write_all(b"welcome").unwrap();
    client.expect(b"welcome").unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "the client had to wait: {:?}",
        began.elapsed()
    );
}

/// The kernel returns these errors if IPv6 is off, if a firewall forbids the destination, or if no
/// local port is free.
#[test]
fn an_upstream_that_cannot_be_connected_to_is_skipped() {
    for refused in
        ["connect:error=EADDRNOTAVAIL", "connect:error=EPERM", "socket:error=EAFNOSUPPORT"]
    {
        let (first, second) = (Upstream::tcp(), Upstream::tcp());
        let flags = ["--workers", "1", "--balance", "in-order"];
        let line = Line::proxy(&[&first.address(), &second.address()], &flags);
        // Every other attempt is at the first upstream.
        let inject = format!("inject={refused}:when=1..5+2");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        for _ in 0..4 {
            assert_served_by(&line, &second);
        }
        tracer.detach();
        // The third failure also ejects the upstream, so this record is the last.
        let passed_over = line.wait_for(1, Event::UpstreamUnavailable);
        assert_eq!(line.count(Event::UpstreamFailed), 3, "{refused}");
        assert_eq!(passed_over.field("upstream"), Some(&*first.address()));
    }
}

/// A health check that cannot open a socket does not make the upstream unavailable.
#[test]
fn a_check_without_a_descriptor_blames_no_upstream() {
    let upstream = Upstream::tcp();
    let text = format!(
        "log = 'debug'\n[listener.web]\naddress = '127.0.0.1:0'\nservice = 'proxy'\n\
         upstreams = ['{}']\ncheck_interval = '10ms'\n",
        upstream.address()
    );
    let line = serve(&text, &["--workers", "1"]);
    let inject = "inject=socket:error=EMFILE";
    let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", inject]);
    line.wait_for_count(3, Event::UpstreamCheckImpossible);
    tracer.detach();
    assert_eq!(line.count(Event::UpstreamUnavailable), 0);
    let _client = Client::connect(&line.address_of("web")).unwrap();
}

/// Returns the configuration of a proxy that sets every socket option.
fn with_options(upstream: &Upstream) -> String {
    format!(
        "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'proxy'\nupstreams = ['{}']\n\
         keep_alive = '1m'\nuser_timeout = '30s'\n",
        upstream.address()
    )
}

/// Asserts that the connection relays in both directions.
fn assert_passes_on(client: &mut Client, server: &mut Client) {
    client.write_all(b"request").unwrap();
    server.expect(b"request").unwrap();
    server.write_all(b"reply").unwrap();
    client.expect(b"reply").unwrap();
}

#[test]
fn an_unsupported_socket_option_is_logged_once() {
    for error in ["ENOPROTOOPT", "EOPNOTSUPP", "EPERM"] {
        let upstream = Upstream::tcp();
        let line = serve(&with_options(&upstream), &["--workers", "1"]);
        let inject = format!("inject=setsockopt:error={error}");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        for _ in 0..3 {
            let mut client = Client::connect(&line.address_of("web")).unwrap();
            assert_passes_on(&mut client, &mut upstream.accept());
        }
        assert!(tracer.detach().contains("INJECTED"));
        for setting in ["keep_alive", "user_timeout"] {
            // Logged once for clients and once for upstreams.
            let failed = Event::ConnectionOptionFailed.with("setting", setting);
            line.wait_for_count(2, failed.clone());
            assert_eq!(line.count(failed), 2);
        }
    }
}

/// An MPTCP socket does not support `TCP_USER_TIMEOUT`.
#[test]
fn an_mptcp_client_is_served_with_all_options_set() {
    let stream = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    if !fs::exists("/proc/sys/net/mptcp").unwrap() {
        return println!("skipped: this kernel has no MPTCP");
    }
    let listener = stream().unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("handoffd.toml");
    let upstream = Upstream::tcp();
    fs::write(&file, with_options(&upstream)).unwrap();
    let parent = Parent::passing([listener.into()]).saying("LISTEN_FDNAMES", "web");
    let line = parent.serve(&["--config", file.to_str().unwrap()]);
    for _ in 0..3 {
        let client = stream().unwrap();
        client.connect(&address).unwrap();
        let mut client = Client::Tcp(client.into());
        client.set_read_timeout(crate::support::DEADLINE).unwrap();
        assert_passes_on(&mut client, &mut upstream.accept());
    }
    drop(line);
}
