//! The measurement of one number of connections: a daemon, its clients, some handoffs, and the cost
//! of each handoff.
//!
//! The processor time is that of the old and the new process, from the commit to the end of the old
//! process. The time that serving alone would have cost is subtracted. It is estimated from the
//! half second before the handoff.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::clients::Clients;
use crate::support::daemon::Daemon;
use crate::support::event::Event;
use crate::support::figures::Figures;
use crate::support::usage::{Usage, time_of};

/// The number of handoffs in a turn.
const HANDOFFS: u64 = 3;
/// How long to measure without a handoff before each handoff.
const BEFORE: Duration = Duration::from_millis(500);

/// The service that answers the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Echo,
    Proxy,
}

impl Service {
    /// Returns the requests per second of all connections together. This rate leaves about half of
    /// the processor time idle.
    const fn rate(self) -> f64 {
        match self {
            Self::Echo => 50_000.0,
            Self::Proxy => 25_000.0,
        }
    }
}

/// The measurements of one number of connections.
pub(crate) struct Case {
    pub(crate) service: Service,
    pub(crate) connections: u32,
    /// The time from the commit to the end of the old process, in milliseconds.
    pub(crate) carries: Figures,
    /// The processor time of both processes for each connection, in microseconds.
    pub(crate) costs: Figures,
    /// The idle share of the processors before the handoffs, in per cent.
    pub(crate) idle: Figures,
    pub(crate) during: Pauses,
    pub(crate) before: Pauses,
}

/// How long answers took, in milliseconds: the median and the higher percentiles of each turn.
#[derive(Default)]
pub(crate) struct Pauses {
    pub(crate) median: Figures,
    pub(crate) p99: Figures,
    pub(crate) p999: Figures,
    pub(crate) longest: Figures,
}

impl Case {
    pub(crate) fn new(service: Service, connections: u32) -> Self {
        let (carries, costs, idle) = Default::default();
        let (during, before) = Default::default();
        Self { service, connections, carries, costs, idle, during, before }
    }

    /// Runs one turn: a daemon, its clients and some handoffs.
    pub(crate) fn turn(&mut self, runtime: &Runtime, upstream: SocketAddr) {
        let upstream = upstream.to_string();
        let words: &[&str] = match self.service {
            Service::Echo => &[],
            Service::Proxy => &["proxy", "--to", &upstream],
        };
        let daemon = Daemon::start_as(words, 1, &["--carry", "--bake", "0"]);
        let clients =
            Clients::start(runtime, daemon.address(), self.connections, self.service.rate());
        let (mut during, mut before) = (Figures::default(), Figures::default());
        let mut head = daemon.first();
        for generation in 1..=HANDOFFS {
            // The time without a handoff.
            let (since, used, usage) = (Instant::now(), time_of(head), Usage::now());
            runtime.block_on(async { sleep(BEFORE).await });
            let serving = (time_of(head) - used).as_secs_f64() / since.elapsed().as_secs_f64();
            self.idle.push(usage.idle_since());

            let asked = Daemon::signal(head, Signal::SIGHUP);
            let handed_over = daemon.await_record(generation, Event::HandoffCommitted);
            let (commit, next) = (handed_over.at, handed_over.process("successor_pid"));
            let used = time_of(head) + time_of(next);
            let report = daemon.await_record(generation, Event::GenerationEnded).text;
            let end = Daemon::await_end(head);
            let used = (time_of(head) + time_of(next) - used).as_secs_f64();
            daemon.reap(head);
            assert!(
                report.contains(&format!("carried={} ", self.connections)),
                "some connections were not carried: {report}"
            );
            head = next;

            let carry = end - commit;
            self.carries.push_time(carry);
            self.costs
                .push((used - serving * carry.as_secs_f64()) * 1e6 / f64::from(self.connections));
            // The duration of a late answer is known only when it has arrived.
            runtime.block_on(async { sleep(BEFORE).await });
            for (began, pause) in clients.pauses() {
                let ended = began + pause;
                if ended >= commit && began <= end {
                    during.push_time(pause);
                } else if ended < asked && began >= since {
                    before.push_time(pause);
                }
            }
        }
        self.during.turn(&during);
        self.before.turn(&before);
        clients.end(runtime);
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, service, .. } = self;
        match service {
            Service::Echo => write!(f, "{connections} connections, echo"),
            Service::Proxy => write!(f, "{connections} connections, proxied"),
        }
    }
}

impl Pauses {
    fn turn(&mut self, pauses: &Figures) {
        self.median.push(pauses.median());
        self.p99.push(pauses.per_mille(990));
        self.p999.push(pauses.per_mille(999));
        self.longest.push(pauses.max());
    }

    /// Returns the medians over the turns.
    pub(crate) fn medians(&self) -> [f64; 4] {
        [&self.median, &self.p99, &self.p999, &self.longest].map(Figures::median)
    }
}
