//! Measures what the library adds to a request: axum with the glue of this library beside axum
//! alone, in turns.
//!
//! Both are programs of `examples/servers`, built in release mode. Clients send one request after
//! another on connections that they keep.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use support::figures::Figures;
use support::table::{Table, Target};
use support::usage::time_of;

const TURNS: usize = 15;
const CLIENTS: usize = 8;
const REQUESTS: usize = 5_000;

fn main() {
    support::run(|| {
        let built = build();
        let [mut rates, mut times] = [(); 2].map(|()| [(); 2].map(|()| Figures::default()));
        for _ in 0..TURNS {
            for (place, name) in ["own_axum", "plain_axum"].into_iter().enumerate() {
                let (rate, time) = turn(&built.join("examples").join(name));
                rates[place].push(rate);
                times[place].push(time);
            }
        }
        let mut table = Table::new("axum, medians", &["handoffd", "alone", "ratio"]);
        for (figure, [ours, theirs], is_rate) in
            [("requests a second", rates, true), ("processor time a request, us", times, false)]
        {
            let ratio = ours.over(&theirs).median();
            let (ours, theirs) = (ours.median(), theirs.median());
            let target = if is_rate { Target::AtLeast(0.98) } else { Target::AtMost(1.02) };
            table.row(figure, &[ours, theirs], Target::None);
            table.row("  ratio", &[ratio], target);
        }
        table.print();
    });
}

/// Builds the programs, and returns the folder of the result.
fn build() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/servers");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked", "--release", "--manifest-path"]);
    cargo.arg(package.join("Cargo.toml")).arg("--target-dir").arg(&target);
    cargo.args(["--example", "own_axum", "--example", "plain_axum"]);
    assert!(cargo.status().expect("run cargo").success(), "the servers do not compile");
    target.join("release")
}

/// Runs one server under load. Returns the requests a second, and the processor time of each in
/// microseconds.
fn turn(program: &Path) -> (f64, f64) {
    let address = free_address();
    let mut server = start(program, address);
    let pid = Pid::from_raw(server.id().try_into().expect("a pid"));
    let (began, before) = (Instant::now(), time_of(pid));
    let clients = (0..CLIENTS).map(|_| thread::spawn(move || requests(address)));
    for client in clients.collect::<Vec<_>>() {
        client.join().expect("a client");
    }
    let (wall, used) = (began.elapsed(), time_of(pid) - before);
    server.kill().expect("end the server");
    server.wait().expect("reap the server");
    let count = (CLIENTS * REQUESTS) as f64;
    (count / wall.as_secs_f64(), used.as_secs_f64() * 1e6 / count)
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

fn start(program: &Path, address: SocketAddr) -> Child {
    let mut command = Command::new(program);
    let server = command.arg(address.to_string()).stdout(Stdio::null()).spawn();
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "the server does not listen");
        thread::yield_now();
    }
    server.expect("start the server")
}

/// Sends requests on one connection.
fn requests(address: SocketAddr) {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_nodelay(true).expect("set an option");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    for _ in 0..REQUESTS {
        stream.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").expect("send");
        let mut length = 0;
        loop {
            line.clear();
            stream.read_line(&mut line).expect("a reply");
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().expect("a length");
            }
        }
        stream.read_exact(&mut [0; 64][..length]).expect("the body");
    }
}
