//! The scenarios: measures one candidate in one scenario, once.

use std::time::Duration;

use clap::ValueEnum;

use crate::bulk::{Streams, Way};
use crate::candidate::Candidate;
use crate::load::{Keep, Load, Tally};
use crate::process;
use crate::proxy::Proxy;
use crate::support::clients::{Past, idle};
use crate::support::figures::Figures;

/// The number of concurrent clients.
const CLIENTS: usize = 64;
const STREAMS: usize = 16;
/// The number of connections whose memory is measured.
const IDLE: usize = 4_000;
/// The visits per second in the reload scenario: so few that nothing waits for a processor without
/// a reload.
const VISITS: u32 = 1_000;
const RELOADS: u32 = 3;
/// How long to wait for replies. A client without a reply by then counts as lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// The work of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    Small,
    Connections,
    Download,
    Upload,
    Memory,
    Reload,
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
    /// The value is a number of losses, which should be 0.
    Zero,
}

/// A measured figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) better: Better,
    /// Whether the plot shows the figure.
    pub(crate) plotted: bool,
}

const fn measure(name: &'static str, better: Better) -> Measure {
    Measure { name, better, plotted: false }
}

const fn plotted(name: &'static str, better: Better) -> Measure {
    Measure { name, better, plotted: true }
}

impl Measure {
    /// Returns the name without the unit.
    pub(crate) fn figure(&self) -> &'static str {
        self.name.split_once(", ").map_or(self.name, |(name, _)| name)
    }
}

impl Scenario {
    /// Returns the name of the scenario.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Connections => "connections",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Memory => "memory",
            Self::Reload => "reload",
        }
    }

    /// Returns a description of the scenario.
    pub(crate) fn title(self) -> String {
        match self {
            Self::Small => format!("64 bytes there and back, {CLIENTS} connections that stay"),
            Self::Connections => format!("connect, request, reply, close: {CLIENTS} clients"),
            Self::Download => format!("{STREAMS} streams from the upstream"),
            Self::Upload => format!("{STREAMS} streams to the upstream"),
            Self::Memory => format!(
                "{IDLE} connections, idle after a request (socket-proxyd: {})",
                Candidate::SocketProxyd.room(IDLE)
            ),
            Self::Reload => format!(
                "{RELOADS} reloads, {VISITS} visits a second, {CLIENTS} connections that stay"
            ),
        }
    }

    /// Returns its measures, in the order of the values of [`Scenario::run`].
    pub(crate) fn measures(self) -> &'static [Measure] {
        const SMALL: [Measure; 5] = [
            plotted("processor time a request, us", Better::Less),
            plotted("requests a second", Better::More),
            measure("latency p50, us", Better::Less),
            measure("latency p99, us", Better::Less),
            measure("latency p99.9, us", Better::Less),
        ];
        const CONNECTIONS: [Measure; 6] = [
            plotted("processor time a connection, us", Better::Less),
            plotted("connections a second", Better::More),
            measure("latency p50, us", Better::Less),
            measure("latency p99, us", Better::Less),
            measure("latency p99.9, us", Better::Less),
            measure("refused or reset", Better::Zero),
        ];
        const BULK: [Measure; 2] = [
            plotted("processor time a gigabyte, ms", Better::Less),
            plotted("gigabytes a second", Better::More),
        ];
        const MEMORY: [Measure; 2] = [
            plotted("growth a connection, bytes", Better::Less),
            measure("with all of them, MB", Better::Less),
        ];
        const RELOAD: [Measure; 6] = [
            measure("refused", Better::Zero),
            measure("reset", Better::Zero),
            measure("cut of those that stay", Better::Zero),
            measure("p99.9 over steady p99.9", Better::Less),
            plotted("p99.9 of a visit, us", Better::Less),
            measure("longest visit, us", Better::Less),
        ];
        match self {
            Self::Small => &SMALL,
            Self::Connections => &CONNECTIONS,
            Self::Download | Self::Upload => &BULK,
            Self::Memory => &MEMORY,
            Self::Reload => &RELOAD,
        }
    }

    /// Measures a candidate. A value that the candidate does not have is NaN.
    pub(crate) fn run(self, candidate: Candidate, time: Duration) -> Vec<f64> {
        if self == Self::Reload && candidate.reload().is_none() {
            return vec![f64::NAN; self.measures().len()];
        }
        let proxy = Proxy::start(candidate);
        match self {
            Self::Small => small(&proxy, Keep::All, time),
            Self::Connections => small(&proxy, Keep::One, time),
            Self::Download => bulk(&proxy, Way::Download, time),
            Self::Upload => bulk(&proxy, Way::Upload, time),
            Self::Memory => memory(&proxy, candidate.room(IDLE)),
            Self::Reload => reload(&proxy, time),
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

fn small(proxy: &Proxy, keep: Keep, time: Duration) -> Vec<f64> {
    let mut load = Load::eager(proxy.address(), CLIENTS, keep);
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
        during.add(load.run(time * 2 / RELOADS));
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

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count / 1024).expect("less than terabytes")) * 1024.0
        + f64::from(u32::try_from(count % 1024).expect("a small number"))
}
