//! Measures the time from SIGHUP until the successor accepts, and whether it grows with the
//! daemon's connections and listeners.
//!
//! Each measured handoff is rolled back during a long bake. The predecessor keeps all its
//! connections, so every handoff starts from a generation that really holds so many. The path to
//! the successor's accept loops is the same. The last rows are of a daemon that does hand over,
//! without a bake. All daemons run at the same time and take turns.

mod support;

use std::net::TcpStream;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use support::clients::{Past, idle};
use support::daemon::Daemon;
use support::event::Event;
use support::figures::Figures;
use support::table::{Table, Target};

const TURNS: usize = 31;

/// A daemon with its load, and its measurements.
struct Case {
    daemon: Daemon,
    listeners: usize,
    connections: Vec<TcpStream>,
    times: Figures,
}

fn main() {
    support::run(|| {
        let mut cases: Vec<Case> = Vec::new();
        for listeners in [1, 10, 100] {
            for connections in [0, 1_000, 5_000] {
                let daemon = Daemon::start(listeners, &["--bake", "10m"]);
                let connections = idle(daemon.address(), connections, Past::Asked);
                cases.push(Case { daemon, listeners, connections, times: Figures::default() });
            }
        }
        let mut line = Line::start();
        for _ in 0..TURNS {
            for case in &mut cases {
                case.hand_off_and_roll_back();
            }
            line.hand_off();
        }

        let mut table = Table::new("SIGHUP to the successor accepting, ms", &["median", "p99"]);
        for Case { listeners, connections, times, .. } in &cases {
            let target = if *listeners == 1 { Target::AtMost(5.0) } else { Target::None };
            let figure = format!("listeners {listeners}, connections {}", connections.len());
            table.row(&figure, &[times.median(), times.per_mille(990)], target);
        }
        let lightest = cases[0].times.median();
        let heaviest = cases[cases.len() - 1].times.median();
        table.row(
            "handoffs without a rollback",
            &[line.ready.median(), line.ready.per_mille(990)],
            Target::AtMost(5.0),
        );
        table.row(
            "  until the old process has ended",
            &[line.over.median(), line.over.per_mille(990)],
            Target::None,
        );
        table.row("heaviest over lightest, ratio", &[heaviest / lightest], Target::None);
        table.print();
    });
}

impl Case {
    fn hand_off_and_roll_back(&mut self) {
        let daemon = &self.daemon;
        let asked = Daemon::signal(daemon.first(), Signal::SIGHUP);
        let accepting = daemon.await_record(2, Event::GenerationAccepting);
        self.times.push_time(accepting.at - asked);
        daemon.await_record(1, Event::SuccessorReady);
        Daemon::signal(accepting.pid, Signal::SIGTERM);
        daemon.await_record(1, Event::HandoffFailed);
        daemon.reap(accepting.pid);
    }
}

/// A daemon whose generations replace each other.
struct Line {
    daemon: Daemon,
    generation: u64,
    serving: Pid,
    ready: Figures,
    over: Figures,
}

impl Line {
    fn start() -> Self {
        let daemon = Daemon::start(1, &["--bake", "0"]);
        let serving = daemon.first();
        Self { daemon, generation: 1, serving, ready: Figures::default(), over: Figures::default() }
    }

    fn hand_off(&mut self) {
        let asked = Daemon::signal(self.serving, Signal::SIGHUP);
        self.generation += 1;
        let accepting = self.daemon.await_record(self.generation, Event::GenerationAccepting);
        self.ready.push_time(accepting.at - asked);
        self.over.push_time(self.daemon.reap(self.serving) - asked);
        self.serving = self.daemon.await_record(self.generation, Event::GenerationServing).pid;
    }
}
