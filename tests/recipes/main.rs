//! Tests of the recipes in `examples/programs`: each program is replaced 50 times under HTTP load,
//! and no request fails.
//!
//! Run with `cargo test --test recipes` after `tests/setup recipes`. The variable `HANDOFFS` is
//! another number of replacements. The programs are those of the distribution. `http.rs` is the
//! load.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]
#![allow(
    clippy::print_stdout,
    reason = "a load tells what it was made of; cargo shows it on request"
)]
#![allow(dead_code, unused_imports, reason = "of what the tests share, each uses a part")]

#[path = "../support/mod.rs"]
mod support;

mod http;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use http::{Load, Requests};
use nix::sys::signal::Signal;
use support::{Event, Line, free_port};

/// Returns how many times each program is replaced.
#[expect(clippy::disallowed_methods, reason = "the caller of the tests chooses it")]
fn handoffs() -> u64 {
    std::env::var("HANDOFFS").map_or(50, |count| count.parse().unwrap())
}

/// A running recipe, and the port of its clients.
struct Running {
    line: Line,
    port: u16,
}

/// Starts the recipe `name`, as its configuration file says, but in a folder of its own and on a
/// port of its own. `prepare` gets the folder before the start.
fn start(name: &str, prepare: impl FnOnce(&Path)) -> Running {
    let port = free_port();
    let line = Line::start_by(|folder| {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/programs").join(name);
        for file in fs::read_dir(recipe).unwrap() {
            let file = file.unwrap();
            let here = folder.display().to_string();
            let text = fs::read_to_string(file.path()).unwrap();
            let text = text.replace("0.0.0.0:8080", &format!("127.0.0.1:{port}"));
            let text = text.replace("8080", &port.to_string());
            let text = text.replace("/srv/app", &here).replace("/run/app", &here);
            fs::write(folder.join(file.file_name()), text).unwrap();
        }
        prepare(folder);
        let mut command = Command::new(folder.join("handoffd"));
        command.args(["--log", "debug", "--bake", "100ms", "--config"]);
        command.arg(folder.join("handoffd.toml"));
        command
    });
    line.wait_for(1, Event::GenerationServing);
    Running { line, port }
}

impl Running {
    /// Replaces the program again and again under load. Every reply must contain `expected`.
    fn replaced(&self, expected: &'static str) -> Requests {
        let load = Load::start(&format!("127.0.0.1:{}", self.port), expected);
        for generation in 1..=handoffs() {
            let answer = self.line.asked(&["reload"]).well();
            assert!(answer.contains(&format!("generation {} serves", generation + 1)), "{answer}");
        }
        let requests = load.finish();
        println!("{} handoffs: {requests:?}", handoffs());
        assert!(requests.served > 100 && requests.failed.is_empty(), "{requests:?}");
        requests
    }

    /// Stops the service, and checks that nothing of it is left.
    fn stop(self) {
        self.line.signal(handoffs() + 1, Signal::SIGTERM);
        self.line.wait_for_end();
    }
}

/// A program to which handoffd forwards loses nothing, not even an idle connection.
fn loses_nothing(name: &str, expected: &'static str) {
    let running = start(name, |_| {});
    let requests = running.replaced(expected);
    assert_eq!(requests.closed_idle, 0, "{requests:?}");
    running.stop();
}

/// A program that accepts by itself loses no request, but may close idle connections.
fn loses_no_request(name: &str, expected: &'static str) {
    let running = start(name, |_| {});
    running.replaced(expected);
    running.stop();
}

#[test]
fn gunicorn() {
    loses_no_request("gunicorn", "generation ");
}

#[test]
fn uvicorn() {
    loses_nothing("uvicorn", "generation ");
}

/// Debian's hypercorn closes each connection after a reply, without saying so.
#[test]
fn hypercorn() {
    loses_no_request("hypercorn", "generation ");
}

#[test]
fn node() {
    loses_nothing("node", "generation ");
}

#[test]
fn puma() {
    loses_nothing("puma", "generation ");
}

#[test]
fn nginx() {
    loses_no_request("nginx", "hello");
}

#[test]
fn haproxy() {
    loses_no_request("haproxy", "generation ");
}

#[test]
fn a_static_file_server() {
    loses_nothing("static", "handoffd.toml");
}

/// A program that the test starts itself, and ends.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // SIGKILL would leave the children of the program behind.
        support::signal(self.0.id(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn php_fpm_behind_nginx() {
    // No other user may enter the folder of the test.
    let running = start("php-fpm", |folder| {
        let file = folder.join("nginx.conf");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, format!("user root;\n{text}")).unwrap();
    });
    let folder = running.line.folder();
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    let nginx = Helper(nginx.stdin(Stdio::null()).spawn().unwrap());
    let address = format!("127.0.0.1:{}", running.port);
    support::assert_becomes(&true, || std::net::TcpStream::connect(&address).is_ok());
    let requests = running.replaced("generation ");
    assert_eq!(requests.closed_idle, 0, "{requests:?}");
    drop(nginx);
    running.stop();
}

#[test]
#[ignore = "needs Debian's package golang-go: tests/setup large"]
fn go() {
    let running = start("go", |folder| build(folder, "go", &["build", "-o", "server", "main.go"]));
    running.replaced("generation ");
    running.stop();
}

#[test]
#[ignore = "needs Debian's package default-jdk-headless: tests/setup large"]
fn java() {
    let running = start("java", |folder| build(folder, "javac", &["Server.java"]));
    let requests = running.replaced("generation ");
    assert_eq!(requests.closed_idle, 0, "{requests:?}");
    running.stop();
}

#[test]
#[ignore = "needs Debian's package default-jdk-headless: tests/setup large"]
fn java_with_an_inherited_channel() {
    let running = start("java-inherited", |folder| build(folder, "javac", &["Server.java"]));
    running.replaced("generation ");
    running.stop();
}

fn build(folder: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env("HOME", folder).env("GO111MODULE", "off");
    assert!(command.status().unwrap().success(), "{program} fails");
}
