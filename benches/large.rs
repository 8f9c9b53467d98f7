//! Measures large configurations: how long a handoff and `check` take with thousands of listeners
//! and upstreams. Also measures how long a handoff takes that carries thousands of connections.
//!
//! A handoff of a large configuration is rolled back during a long bake, so that each turn starts
//! from the same generation. The handoffs that carry are not rolled back.

mod support;

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use support::clients::{Past, echo, idle};
use support::daemon::Daemon;
use support::event::Event;
use support::figures::Figures;
use support::table::{Table, Target};
use tempfile::TempDir;

const TURNS: usize = 11;
/// The number of listeners, and of upstreams for each listener.
const CONFIGURATIONS: [(usize, usize); 4] = [(1, 0), (1_000, 0), (10_000, 0), (1_000, 20)];
const CONNECTIONS: [usize; 3] = [1, 1_000, 10_000];

fn main() {
    support::run(|| {
        let folder = tempfile::tempdir().expect("create a folder");
        let mut cases: Vec<_> = CONFIGURATIONS
            .iter()
            .map(|(listeners, upstreams)| Case::start(&folder, *listeners, *upstreams))
            .collect();
        for _ in 0..TURNS {
            for case in &mut cases {
                case.hand_off_and_roll_back();
                case.check();
            }
        }
        let mut table =
            Table::new("large configurations, ms", &["to accepting", "p90", "check", "p90"]);
        for Case { name, accepting, checks, .. } in &cases {
            let figures = [
                accepting.median(),
                accepting.per_mille(900),
                checks.median(),
                checks.per_mille(900),
            ];
            table.row(name, &figures, Target::None);
        }
        drop(cases);
        table.print();

        let mut lines: Vec<_> = CONNECTIONS.iter().map(|count| Carrying::start(*count)).collect();
        for _ in 0..TURNS {
            lines.iter_mut().for_each(Carrying::hand_off);
        }
        let mut table =
            Table::new("handoffs that carry, ms", &["to accepting", "p90", "old one ended", "p90"]);
        for Carrying { connections, accepting, over, .. } in &lines {
            let figures =
                [accepting.median(), accepting.per_mille(900), over.median(), over.per_mille(900)];
            table.row(&format!("connections {}", connections.len()), &figures, Target::None);
        }
        table.print();
    });
}

/// A daemon with its configuration, and its measurements.
struct Case {
    name: String,
    file: PathBuf,
    daemon: Daemon,
    accepting: Figures,
    checks: Figures,
}

impl Case {
    fn start(folder: &TempDir, listeners: usize, upstreams: usize) -> Self {
        let name = format!("listeners {listeners}, upstreams of each {upstreams}");
        let file = folder.path().join(format!("{listeners}-{upstreams}.toml"));
        std::fs::write(&file, configuration(listeners, upstreams))
            .expect("write the configuration");
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
        command.arg("--config").arg(&file).args(["--bake", "10m"]);
        let daemon = Daemon::start_by(command);
        Self { name, file, daemon, accepting: Figures::default(), checks: Figures::default() }
    }

    fn hand_off_and_roll_back(&mut self) {
        let daemon = &self.daemon;
        let asked = Daemon::signal(daemon.first(), Signal::SIGHUP);
        let accepting = daemon.await_record(2, Event::GenerationAccepting);
        self.accepting.push_time(accepting.at - asked);
        daemon.await_record(1, Event::SuccessorReady);
        Daemon::signal(accepting.pid, Signal::SIGTERM);
        daemon.await_record(1, Event::HandoffFailed);
        daemon.reap(accepting.pid);
    }

    fn check(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
        command.args(["check", "--config"]).arg(&self.file).stdout(Stdio::null());
        let asked = Instant::now();
        let status = command.status().expect("run the check");
        self.checks.push_time(asked.elapsed());
        assert!(status.success(), "the check failed");
    }
}

fn configuration(listeners: usize, upstreams: usize) -> String {
    let service = match upstreams {
        0 => "service = \"echo\"".to_owned(),
        _ => {
            let upstreams: Vec<_> =
                (1..=upstreams).map(|port| format!("\"127.0.0.1:{port}\"")).collect();
            format!("service = \"proxy\"\nupstreams = [{}]", upstreams.join(", "))
        }
    };
    let mut file = String::new();
    for number in 0..listeners {
        // Each listener has its own address, because the kernel searches long for the 10,000th free
        // port of one address.
        let address = format!("127.1.{}.{}:0", number / 250, number % 250 + 1);
        writeln!(file, "[listener.n{number}]\naddress = \"{address}\"\n{service}")
            .expect("write to a string");
    }
    file
}

/// A daemon whose generations replace each other and carry all connections.
struct Carrying {
    daemon: Daemon,
    connections: Vec<TcpStream>,
    generation: u64,
    serving: Pid,
    accepting: Figures,
    over: Figures,
}

impl Carrying {
    fn start(connections: usize) -> Self {
        let daemon = Daemon::start(1, &["--bake", "0", "--carry"]);
        let connections = idle(daemon.address(), connections, Past::Asked);
        let serving = daemon.first();
        let (accepting, over) = (Figures::default(), Figures::default());
        Self { daemon, connections, generation: 1, serving, accepting, over }
    }

    fn hand_off(&mut self) {
        let asked = Daemon::signal(self.serving, Signal::SIGHUP);
        self.generation += 1;
        let accepting = self.daemon.await_record(self.generation, Event::GenerationAccepting);
        self.accepting.push_time(accepting.at - asked);
        self.over.push_time(self.daemon.reap(self.serving) - asked);
        self.serving = self.daemon.await_record(self.generation, Event::GenerationServing).pid;
        self.connections.iter_mut().for_each(|connection| echo(connection).expect("a reply"));
    }
}
