//! The scenarios: measures one candidate in one scenario, once.

use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::bulk::{Streams, Way};
use crate::candidate::Candidate;
use crate::link;
use crate::load::{Keep, Load, Tally};
use crate::measure::{self, Measure};
use crate::network::Network;
use crate::process;
use crate::proxy::{Backend, Proxy};
use crate::server::{PGBENCH_CLIENTS, REDIS_CLIENTS, Server};
use crate::support::clients::{Past, REQUEST, idle};
use crate::support::figures::Figures;

/// The number of concurrent clients.
const CLIENTS: usize = 64;
/// The sizes of requests in bytes.
const SMALL: usize = REQUEST.len();
const KILOBYTE: usize = 1024;
/// The number of concurrent bulk transfers.
const STREAMS: usize = 16;
/// The number of connections whose memory is measured: the largest round number for which 20,000
/// descriptors are enough. A proxy needs two for each connection, and HAProxy some hundred more.
const IDLE: usize = 9_500;
/// The visits per second in the reload scenario: so few that nothing waits for a processor without
/// a reload.
const VISITS: u32 = 1_000;
const RELOADS: u32 = 3;
/// The shortest time between two reloads: handoffd bakes for one second.
const RELOAD_INTERVAL: Duration = Duration::from_millis(1300);
/// The requests before the measurement of a server, which tell how many fit into the measurement.
const WARM_REQUESTS: f64 = 2_000.0;
/// How long to wait for replies. A client without a reply by then counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// How a candidate is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// How long each measurement takes.
    pub(crate) time: Duration,
    /// The number of workers or threads of the proxy.
    pub(crate) workers: usize,
}

/// The work of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    Small,
    Kilobyte,
    SixteenKilobytes,
    Unix,
    Connections,
    Delay,
    Download,
    Upload,
    Memory,
    Reload,
    Pgbench,
    RedisBenchmark,
}

impl ValueEnum for Scenario {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl Scenario {
    pub(crate) const ALL: [Self; 12] = [
        Self::Small,
        Self::Kilobyte,
        Self::SixteenKilobytes,
        Self::Unix,
        Self::Connections,
        Self::Delay,
        Self::Download,
        Self::Upload,
        Self::Memory,
        Self::Reload,
        Self::Pgbench,
        Self::RedisBenchmark,
    ];

    /// Returns whether it is part of a quick run: one for each resource, and the largest requests.
    pub(crate) fn is_quick(self) -> bool {
        match self {
            Self::Small | Self::SixteenKilobytes | Self::Connections | Self::Delay => true,
            Self::Download | Self::Memory | Self::Reload => true,
            Self::Kilobyte | Self::Unix | Self::Upload => false,
            Self::Pgbench | Self::RedisBenchmark => false,
        }
    }

    /// Returns the name of the scenario.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Kilobyte => "1k",
            Self::SixteenKilobytes => "16k",
            Self::Unix => "unix",
            Self::Connections => "connections",
            Self::Delay => "delay",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Memory => "memory",
            Self::Reload => "reload",
            Self::Pgbench => "pgbench",
            Self::RedisBenchmark => "redis-benchmark",
        }
    }

    /// Returns a description of the scenario.
    pub(crate) fn title(self) -> String {
        match self {
            Self::Small => format!("64 bytes there and back, {CLIENTS} connections that stay"),
            Self::Kilobyte => format!("1 KB there and back, {CLIENTS} connections that stay"),
            Self::SixteenKilobytes => {
                format!("16 KB there and back, {CLIENTS} connections that stay")
            }
            Self::Unix => {
                format!("64 bytes to a Unix socket and back, {CLIENTS} connections that stay")
            }
            Self::Connections => format!("connect, request, reply, close: {CLIENTS} clients"),
            Self::Delay => format!(
                "connect, request, reply, close: {CLIENTS} clients, upstream {} ms away each way",
                link::DELAY.as_millis()
            ),
            Self::Download => format!("{STREAMS} streams from the upstream"),
            Self::Upload => format!("{STREAMS} streams to the upstream"),
            Self::Memory => format!(
                "{IDLE} connections, idle after a request (socket-proxyd: {})",
                Candidate::SocketProxyd.room(IDLE)
            ),
            Self::Reload => format!(
                "{RELOADS} reloads, {VISITS} visits a second, {CLIENTS} connections that stay"
            ),
            Self::Pgbench => format!("pgbench -S, {PGBENCH_CLIENTS} connections that stay"),
            Self::RedisBenchmark => {
                format!("redis-benchmark -t set, {REDIS_CLIENTS} connections that stay")
            }
        }
    }

    /// Returns its measures, in the order of the values of [`Scenario::run`].
    pub(crate) fn measures(self) -> &'static [Measure] {
        match self {
            Self::Small | Self::Kilobyte | Self::SixteenKilobytes | Self::Unix => {
                &measure::REQUESTS
            }
            Self::Connections | Self::Delay => &measure::CONNECTIONS,
            Self::Download | Self::Upload => &measure::BULK,
            Self::Memory => &measure::MEMORY,
            Self::Reload => &measure::RELOAD,
            Self::Pgbench => &measure::TRANSACTIONS,
            Self::RedisBenchmark => &measure::COMMANDS,
        }
    }

    /// Starts what the scenario needs beside a proxy. The error says why it cannot be measured.
    pub(crate) fn backend(self, network: Network) -> Result<Backend, &'static str> {
        match self {
            Self::Unix => Ok(Backend::Unix),
            Self::Delay if network == Network::Shared => Err("it needs a private network"),
            Self::Delay => Ok(Backend::Delayed(link::start())),
            Self::Small | Self::Kilobyte | Self::SixteenKilobytes | Self::Connections => {
                Ok(Backend::Tcp)
            }
            Self::Download | Self::Upload | Self::Memory | Self::Reload => Ok(Backend::Tcp),
            Self::Pgbench => Server::postgresql().map(Backend::Server),
            Self::RedisBenchmark => Server::redis().map(Backend::Server),
        }
    }

    /// Returns whether a candidate can be measured.
    fn is_possible(self, candidate: Candidate) -> bool {
        let can_reload = candidate.reload().is_some();
        // The clients connect only to TCP addresses.
        let has_tcp = candidate != Candidate::Direct;
        (self != Self::Reload || can_reload) && (self != Self::Unix || has_tcp)
    }

    /// Measures a candidate. A value that the candidate does not have is NaN.
    pub(crate) fn run(self, candidate: Candidate, backend: &Backend, run: Run) -> Vec<f64> {
        if !self.is_possible(candidate) {
            return vec![f64::NAN; self.measures().len()];
        }
        let proxy = Proxy::start(candidate, backend, run.workers);
        let time = run.time;
        match self {
            Self::Small | Self::Unix => requests(&proxy, Keep::All, SMALL, time),
            Self::Kilobyte => requests(&proxy, Keep::All, KILOBYTE, time),
            Self::SixteenKilobytes => requests(&proxy, Keep::All, 16 * KILOBYTE, time),
            Self::Connections | Self::Delay => requests(&proxy, Keep::One, SMALL, time),
            Self::Download => bulk(&proxy, Way::Download, time),
            Self::Upload => bulk(&proxy, Way::Upload, time),
            Self::Memory => memory(&proxy, candidate.room(IDLE)),
            Self::Reload => reload(&proxy, time),
            Self::Pgbench | Self::RedisBenchmark => program(&proxy, backend, time),
        }
    }
}

/// Runs `work`, and returns its result and the proxy's processor time in seconds. The time is NaN
/// where there is no proxy.
fn processor_time<T>(proxy: &Proxy, work: impl FnOnce() -> T) -> (T, f64) {
    let processes = proxy.processes();
    let before = process::processor_time(&processes);
    let result = work();
    let used = (process::processor_time(&processes) - before).as_secs_f64();
    (result, if processes.is_empty() { f64::NAN } else { used })
}

/// Measures requests of `size` bytes without a pause.
fn requests(proxy: &Proxy, keep: Keep, size: usize, time: Duration) -> Vec<f64> {
    let mut load = Load::eager(proxy.address(), CLIENTS, keep, size);
    load.run(time / 8);
    let (tally, used) = processor_time(proxy, || load.run(time));
    let times = match keep {
        Keep::All => &tally.requests,
        Keep::One => &tally.visits,
    };
    assert!(times.len() > 0, "no client had a reply");
    let done = number(times.len());
    let mut values = vec![used / done * 1e6, done / time.as_secs_f64()];
    values.extend([500, 990, 999].map(|rank| times.per_mille(rank)));
    let lost = number(tally.refused + tally.reset + tally.cut);
    match keep {
        Keep::All => assert!(lost == 0.0, "{lost} connections were lost"),
        Keep::One => values.push(lost),
    }
    values
}

fn bulk(proxy: &Proxy, way: Way, time: Duration) -> Vec<f64> {
    let mut streams = Streams::open(proxy.address(), STREAMS, way);
    streams.run(time / 8);
    let (bytes, used) = processor_time(proxy, || streams.run(time));
    let gigabytes = number(bytes) / 1e9;
    vec![used / gigabytes * 1e3, gigabytes / time.as_secs_f64()]
}

fn memory(proxy: &Proxy, count: usize) -> Vec<f64> {
    let processes = proxy.processes();
    if processes.is_empty() {
        return vec![f64::NAN; 2];
    }
    let before = process::memory(&processes);
    let _connections = idle(proxy.address(), count, Past::Asked);
    let after = process::memory(&processes);
    vec![(after - before) / number(count), after / 1e6]
}

fn reload(proxy: &Proxy, time: Duration) -> Vec<f64> {
    let mut load = Load::paced(proxy.address(), CLIENTS, VISITS);
    load.run(time / 8);
    let steady = load.run(time);
    let mut during = Tally::default();
    let before = proxy.generation();
    for _ in 0..RELOADS {
        proxy.reload();
        during.add(load.run(RELOAD_INTERVAL.max(time * 2 / RELOADS)));
    }
    assert_ne!(before, proxy.generation(), "the reload replaced no process");
    during.add(load.finish(PATIENCE));
    let p999 = |visits: &Figures| visits.per_mille(999);
    vec![
        number(during.refused),
        number(during.reset),
        number(during.cut),
        p999(&during.visits) / p999(&steady.visits),
        p999(&during.visits),
        during.visits.max(),
    ]
}

/// Measures a server by its own benchmark program.
fn program(proxy: &Proxy, backend: &Backend, time: Duration) -> Vec<f64> {
    let Backend::Server(server) = backend else { unreachable!("the scenario has a server") };
    let rate = server.measure(proxy.address(), WARM_REQUESTS).values[0];
    let count = rate * time.as_secs_f64();
    let (outcome, used) = processor_time(proxy, || server.measure(proxy.address(), count));
    let mut values = vec![used / outcome.count * 1e6];
    values.extend(outcome.values);
    values
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count / 1024).expect("less than terabytes")) * 1024.0
        + f64::from(u32::try_from(count % 1024).expect("a small number"))
}
