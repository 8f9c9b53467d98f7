//! The figures that the scenarios measure.

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

/// Requests on connections that stay.
pub(crate) const REQUESTS: [Measure; 5] = [
    plotted("processor time a request, us", Better::Less),
    plotted("requests a second", Better::More),
    measure("latency p50, us", Better::Less),
    measure("latency p99, us", Better::Less),
    measure("latency p99.9, us", Better::Less),
];
/// Requests on a connection each.
pub(crate) const CONNECTIONS: [Measure; 6] = [
    plotted("processor time a connection, us", Better::Less),
    plotted("connections a second", Better::More),
    measure("latency p50, us", Better::Less),
    measure("latency p99, us", Better::Less),
    measure("latency p99.9, us", Better::Less),
    measure("refused or reset", Better::Zero),
];
/// Transactions of pgbench.
pub(crate) const TRANSACTIONS: [Measure; 3] = [
    plotted("processor time a transaction, us", Better::Less),
    plotted("transactions a second", Better::More),
    measure("average latency, us", Better::Less),
];
/// Commands of redis-benchmark.
pub(crate) const COMMANDS: [Measure; 4] = [
    plotted("processor time a command, us", Better::Less),
    plotted("commands a second", Better::More),
    measure("latency p50, us", Better::Less),
    measure("latency p99, us", Better::Less),
];
pub(crate) const BULK: [Measure; 2] = [
    plotted("processor time a gigabyte, ms", Better::Less),
    plotted("gigabytes a second", Better::More),
];
pub(crate) const MEMORY: [Measure; 2] = [
    plotted("growth a connection, bytes", Better::Less),
    measure("with all of them, MB", Better::Less),
];
pub(crate) const RELOAD: [Measure; 6] = [
    measure("refused", Better::Zero),
    measure("reset", Better::Zero),
    measure("cut of those that stay", Better::Zero),
    measure("p99.9 over steady p99.9", Better::Less),
    plotted("p99.9 of a visit, us", Better::Less),
    measure("longest visit, us", Better::Less),
];
