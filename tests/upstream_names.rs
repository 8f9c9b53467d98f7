//! Tests of upstreams given by host name. A hosts file in a private mount namespace replaces the
//! name server.

use std::fs;
use std::io::Write;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::config_file::put;
use crate::counters::request;
use crate::support::{Client, Event, Line, Refusal, Upstream, assert_becomes, free_port};

/// Starts a proxy in front of `upstreams` with the given hosts file, and waits until it serves.
fn serve(hosts: &str, upstreams: &str) -> Line {
    let line = start(hosts, upstreams);
    line.wait_for(1, Event::GenerationServing);
    line
}

fn start(hosts: &str, upstreams: &str) -> Line {
    Line::start_by(|folder| {
        let path = folder.join("hosts");
        match hosts {
            // A process that opens a pipe without a writer waits forever.
            "hangs" => nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap(),
            hosts => fs::write(path, hosts).unwrap(),
        }
        fs::write(folder.join("nsswitch.conf"), "hosts: files\n").unwrap();
        put(folder, &configuration(upstreams));
        let script = "mount --bind hosts /etc/hosts && mount --bind nsswitch.conf /etc/nsswitch.conf && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.current_dir(folder).args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(folder.join("handoffd")).args([
            "--config",
            "handoffd.toml",
            "--bake",
            "0",
            "--control",
        ]);
        command.arg(folder.join("control")).args(["--metrics", "127.0.0.1:0"]);
        command
    })
}

fn configuration(upstreams: &str) -> String {
    format!(
        "log = 'debug'\ncarry = true\n[listener.web]\naddress = '127.0.0.1:0'\nservice = 'proxy'\n\
         upstreams = {upstreams}\nresolve_interval = '20ms'\n"
    )
}

/// Writes the hosts file in place, because the mount shows this very file.
fn write_hosts(line: &Line, hosts: &str) {
    fs::write(line.folder().join("hosts"), hosts).unwrap();
}

fn assert_linked((client, server): &mut (Client, Client)) {
    client.write_all(b"request").unwrap();
    server.expect(b"request").unwrap();
    server.write_all(b"reply").unwrap();
    client.expect(b"reply").unwrap();
}

fn pair(line: &Line, upstream: &Upstream) -> (Client, Client) {
    let mut pair = (Client::connect(&line.address_of("web")).unwrap(), upstream.accept());
    assert_linked(&mut pair);
    pair
}

/// Returns a counter of an upstream.
fn counter(line: &Line, upstream: &str, name: &str) -> Option<u64> {
    let status: serde_json::Value =
        serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    status["counters"]["upstreams"]["web"].get(upstream)?[name].as_u64()
}

#[test]
fn a_host_name_stands_for_all_its_addresses() {
    let port = free_port();
    let hosts = "127.0.0.2 backend\n127.0.0.3 backend\n::1 backend\n";
    let line = serve(hosts, &format!("['backend:{port}']"));
    let addresses =
        [format!("127.0.0.2:{port}"), format!("127.0.0.3:{port}"), format!("[::1]:{port}")];
    let upstreams = addresses.each_ref().map(|address| Upstream::on(address));
    let mut clients: Vec<_> =
        (0..3).map(|_| Client::connect(&line.address_of("web")).unwrap()).collect();
    let mut servers: Vec<_> = upstreams.iter().map(Upstream::accept).collect();
    clients.iter_mut().for_each(|client| client.write_all(b"request").unwrap());
    servers.iter_mut().for_each(|server| server.expect(b"request").unwrap());
    let metrics = request(&line.address_of("metrics"), "GET /metrics HTTP/1.1");
    for address in addresses {
        assert_eq!(counter(&line, &format!("backend:{port}/{address}"), "active"), Some(1));
        let labels =
            format!("{{listener=\"web\",host=\"backend:{port}\",upstream=\"{address}\"}} 1\n");
        assert!(
            metrics.contains(&format!("\nhandoffd_upstream_open_connections{labels}")),
            "{metrics}"
        );
    }
    let table = line.asked(&["status"]).well();
    assert!(table.contains(&format!("backend:{port}/127.0.0.2:{port} ")), "{table}");
    assert_eq!(table.matches("backend:").count(), 3, "{table}");
}

#[test]
fn a_connection_survives_when_its_name_loses_the_address() {
    let port = free_port();
    let (old, new) = (format!("127.0.0.2:{port}"), format!("127.0.0.3:{port}"));
    let line = serve("127.0.0.2 backend\n", &format!("['backend:{port}']"));
    let upstreams = [&old, &new].map(|address| Upstream::on(address));
    let mut first = pair(&line, &upstreams[0]);
    write_hosts(&line, "127.0.0.3 backend\n");
    line.wait(&new, |record| {
        record.is_event(Event::NameChanged) && record.field("addresses") == Some(&new)
    });
    let mut second = pair(&line, &upstreams[1]);
    // The first connection is carried, although the successor never resolves its address.
    for generation in 1..=2 {
        line.hand_over_from(generation);
        assert_eq!(line.exit_code(generation), 0);
        assert_linked(&mut first);
        assert_linked(&mut second);
        assert_eq!(counter(&line, &format!("backend:{port}/{old}"), "active"), Some(1));
    }
    drop(first);
    // Only the totals of the address are left. They go to those of the name, with the totals of
    // older generations, and stay there even if the name gets the address again.
    let connected =
        |address: &str| counter(&line, &format!("backend:{port}{address}"), "connected");
    assert_becomes(&None, || connected(&format!("/{old}")));
    assert_eq!((connected(""), connected(&format!("/{new}"))), (Some(1), Some(1)));
    write_hosts(&line, "127.0.0.2 backend\n127.0.0.3 backend\n");
    assert_becomes(&Some(0), || connected(&format!("/{old}")));
    assert_eq!((connected(""), connected(&format!("/{new}"))), (Some(1), Some(1)));
    line.hand_over_from(3);
    assert_eq!(line.exit_code(3), 0);
    assert_linked(&mut second);
    assert_eq!((connected(""), connected(&format!("/{new}"))), (Some(1), Some(1)));
}

#[test]
fn the_last_good_addresses_stay_when_resolving_fails() {
    let port = free_port();
    let (name, address) = (format!("backend:{port}"), format!("127.0.0.2:{port}"));
    let line = serve("127.0.0.2 backend\n", &format!("['{name}']"));
    let upstream = Upstream::on(&address);
    write_hosts(&line, "\n");
    let record = line.wait_for(1, Event::NameFailed);
    assert!(record.text.starts_with("WARN"), "{record:?}");
    assert_eq!((record.field("host"), record.field("addresses")), (Some(&*name), Some(&*address)));
    assert_becomes(&true, || counter(&line, &name, "resolve_failures") > Some(3));
    pair(&line, &upstream);
    assert_eq!(line.count(Event::NameFailed), 1);
    // A successor would have no address for its upstream.
    let refused = line.asked(&["reload"]);
    assert_eq!(refused.code, 70, "{refused:?}");
    assert!(refused.err.contains("none of its host names resolves"), "{refused:?}");
    pair(&line, &upstream);
    write_hosts(&line, "127.0.0.2 backend\n");
    line.wait_for(1, Event::NameResolvedAgain);
    line.asked(&["reload"]).well();
    pair(&line, &upstream);
}

#[test]
fn clients_wait_until_a_name_resolves() {
    let port = free_port();
    let line = serve("\n", &format!("['backend:{port}']"));
    assert!(line.wait_for(1, Event::NameFailed).text.starts_with("WARN"));
    let upstream = Upstream::on(&format!("127.0.0.2:{port}"));
    let client = Client::connect(&line.address_of("web")).unwrap();
    write_hosts(&line, "127.0.0.2 backend\n");
    assert_linked(&mut (client, upstream.accept()));
}

#[test]
fn a_hanging_resolver_delays_no_start_and_no_stop() {
    let upstream = Upstream::tcp();
    let line = serve("hangs", &format!("['backend:9', '{}']", upstream.address()));
    pair(&line, &upstream);
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    pair(&line, &upstream);
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
    assert_eq!(line.count(Event::NameFailed.mentioning("there was no answer within 5 s")), 2);
}

#[test]
fn check_needs_no_name_server() {
    for (upstream, code, said) in [
        ("no-such-host.invalid:9000", 0, ""),
        ("no-such-host.invalid", 78, "expected IP:PORT, [IPV6]:PORT, HOST:PORT, /PATH or @NAME"),
        ("127.0.0:9000", 78, "a host name may not end in a number"),
    ] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        put(folder.path(), &configuration(&format!("['{upstream}']")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
        command.args(["check", "--config"]).arg(folder.path().join("handoffd.toml"));
        let refusal = Refusal::of(command);
        assert_eq!((refusal.code, refusal.said.contains(said)), (code, true), "{refusal:?}");
    }
}
