//! Measures the latency of one client that connects, sends a request, reads the reply and closes,
//! without handoffs and during handoffs.
//!
//! Turns of both kinds alternate, and each turn gives its own percentiles. The medians over the
//! turns are compared, so that a turn in which the machine was busy has no effect.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use support::clients::visit;
use support::daemon::Daemon;
use support::event::Event;
use support::figures::Figures;
use support::table::{Table, Target};

const TURNS: usize = 9;
const TURN: Duration = Duration::from_millis(2_000);
const BETWEEN_HANDOFFS: Duration = Duration::from_millis(50);

/// The percentiles of each turn of one kind.
#[derive(Default)]
struct Side {
    middle: Figures,
    p99: Figures,
    p999: Figures,
    longest: Figures,
    visits: usize,
}

impl Side {
    fn add(&mut self, visits: &Figures) {
        self.middle.push(visits.median());
        self.p99.push(visits.per_mille(990));
        self.p999.push(visits.per_mille(999));
        self.longest.push(visits.max());
        self.visits += visits.len();
    }

    fn row(&self) -> [f64; 4] {
        [self.p999.median(), self.p99.median(), self.middle.median(), self.longest.median()]
    }
}

fn main() {
    support::run(|| {
        let daemon = Daemon::start(1, &["--bake", "0"]);
        let (mut steady, mut during) = (Side::default(), Side::default());
        let (mut generation, mut serving) = (1, daemon.first());
        visits(daemon.address(), Instant::now() + TURN / 4);
        for _ in 0..TURNS {
            steady.add(&visits(daemon.address(), Instant::now() + TURN));
            during.add(&visits_during_handoffs(&daemon, &mut generation, &mut serving));
        }

        let mut table = Table::new(
            "connect, request, reply, close, ms",
            &["p99.9", "p99", "median", "longest"],
        );
        table.row(&format!("steady, {} visits", steady.visits), &steady.row(), Target::None);
        let handoffs = format!("during {} handoffs, {} visits", generation - 1, during.visits);
        table.row(&handoffs, &during.row(), Target::None);
        let ratios = during
            .row()
            .iter()
            .zip(steady.row())
            .map(|(during, steady)| during / steady)
            .collect::<Vec<_>>();
        table.row("ratio", &ratios, Target::AtMost(2.0));
        table.print();
    });
}

/// Measures the visits of one client, one after the other.
fn visits(address: SocketAddr, until: Instant) -> Figures {
    let mut times = Figures::default();
    loop {
        let since = Instant::now();
        if since >= until {
            return times;
        }
        visit(address).expect("the visit is answered");
        times.push_time(since.elapsed());
    }
}

/// Measures the visits of one client while generations replace each other.
fn visits_during_handoffs(daemon: &Daemon, generation: &mut u64, serving: &mut Pid) -> Figures {
    let (address, until) = (daemon.address(), Instant::now() + TURN);
    std::thread::scope(|scope| {
        let client = scope.spawn(move || visits(address, until));
        let mut next = Instant::now();
        while next < until {
            // The pause between handoffs is part of the measurement.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            next += BETWEEN_HANDOFFS;
            Daemon::signal(*serving, Signal::SIGHUP);
            *generation += 1;
            *serving = daemon.await_record(*generation, Event::GenerationServing).pid;
            daemon.reap_ended();
        }
        client.join().expect("the client does not panic")
    })
}
