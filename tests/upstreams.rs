//! What the kernel refuses a proxy costs no client: an upstream that cannot be reached is passed
//! by, and a socket that does not know an option is served without it.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config_file::serve;
use crate::support::{Client, Event, Line, Parent, Tracer, Upstream};

/// A client is served by `upstream` without having been held.
fn assert_served_by(line: &Line, upstream: &Upstream) {
    let began = Instant::now();
    let (mut client, mut server) = line.pair(upstream);
    server.write_all(b"welcome").unwrap();
    client.expect(b"welcome").unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "the client was held: {:?}", began.elapsed());
}

/// The kernel answers so where IPv6 is switched off, where a firewall forbids the destination, or
/// where no local port is left for it.
#[test]
fn an_upstream_that_connect_refuses_for_any_reason_is_passed_by() {
    for refused in
        ["connect:error=EADDRNOTAVAIL", "connect:error=EPERM", "socket:error=EAFNOSUPPORT"]
    {
        let (first, second) = (Upstream::tcp(), Upstream::tcp());
        let flags = ["--workers", "1", "--balance", "in-order"];
        let line = Line::proxy(&[&first.address(), &second.address()], &flags);
        // Every other attempt is one at the first upstream.
        let inject = format!("inject={refused}:when=1..5+2");
        let tracer = Tracer::attach(&line, line.first_pid(), &["-f", "-e", &inject]);
        for _ in 0..4 {
            assert_served_by(&line, &second);
        }
        tracer.detach();
        assert_eq!(line.count(Event::UpstreamFailed), 3, "{refused}");
        let passed_over = line.wait_for(1, Event::UpstreamUnavailable);
        assert_eq!(passed_over.field("upstream"), Some(&*first.address()));
    }
}

#[test]
fn a_check_without_a_descriptor_says_nothing_of_the_upstream() {
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

/// A proxy with all options of sockets that there are.
fn with_options(upstream: &Upstream) -> String {
    format!(
        "[listener.web]\naddress = '127.0.0.1:0'\nservice = 'proxy'\nupstreams = ['{}']\n\
         keep_alive = '1m'\nuser_timeout = '30s'\n",
        upstream.address()
    )
}

/// Both sides of a connection hear each other.
fn assert_passes_on(client: &mut Client, server: &mut Client) {
    client.write_all(b"request").unwrap();
    server.expect(b"request").unwrap();
    server.write_all(b"reply").unwrap();
    client.expect(b"reply").unwrap();
}

#[test]
fn an_option_that_no_socket_knows_is_logged_once_and_served() {
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
            // Once for clients, and once for upstreams.
            let failed = Event::ConnectionOptionFailed.with("setting", setting);
            line.wait_for_count(2, failed.clone());
            assert_eq!(line.count(failed), 2);
        }
    }
}

/// Of the options, a socket of MPTCP does not know `TCP_USER_TIMEOUT`.
#[test]
fn a_client_of_mptcp_is_served_whatever_options_are_set() {
    let stream = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    if !fs::exists("/proc/sys/net/mptcp").unwrap() {
        return println!("this kernel has no MPTCP");
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
