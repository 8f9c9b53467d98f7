//! An upstream that cannot be reached costs no client: the next one is tried, whatever the reason.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::config_file::serve;
use crate::support::{Client, Line, Tracer, Upstream};

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
    for refused in ["connect:error=EADDRNOTAVAIL", "connect:error=EPERM", "socket:error=EAFNOSUPPORT"] {
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
        assert_eq!(line.count("an upstream did not accept"), 3, "{refused}");
        let passed_over = line.wait_for(1, "an upstream is passed over");
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
    line.wait_for_count(3, "cannot check an upstream");
    tracer.detach();
    assert_eq!(line.count("an upstream is passed over"), 0);
    let _client = Client::connect(&line.address_of("web")).unwrap();
}
