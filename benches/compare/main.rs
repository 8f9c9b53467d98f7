//! Measures handoffd as a TCP proxy beside HAProxy, nginx and systemd-socket-proxyd, in alternating
//! turns of one run.
//!
//! `cargo bench --bench compare` runs everything. After `--`, names of scenarios and candidates
//! select some of them, and `--turns` and `--seconds` set the duration. `--quick` measures less, in
//! about a minute. `--workers` sets the number of workers or threads of each proxy. handoffd with
//! 1, 2, 4 or 8 workers is measured only if it is named, as in `small handoffd-1 handoffd-8`.
//!
//! `--write` writes the figures into `docs/comparison.md` and a plot beside it. `HANDOFFD_BIN`
//! names a build of handoffd to measure instead, and `HANDOFFD_OTHER` names one to measure in
//! addition. Every turn restarts each candidate, and each turn starts with a different candidate.
//! The results are medians over the turns.
//!
//! Generator, upstream and proxy share the processors, so the rates differ less than the proxies
//! do. The processor time of the proxy itself is the most stable figure.
// A bench that cannot continue panics.
#![allow(clippy::panic)]

mod bulk;
mod candidate;
mod link;
mod load;
mod measure;
mod network;
mod page;
mod plot;
mod process;
mod proxy;
mod report;
mod scenario;
mod server;
mod settings;
#[path = "../support/mod.rs"]
mod support;
mod upstream;

use std::time::Duration;

use candidate::Candidate;
use clap::{Parser, ValueEnum};
use network::Network;
use report::Results;
use scenario::{Run, Scenario};

/// Measures handoffd beside other proxies.
#[derive(Debug, Parser)]
struct Options {
    /// Scenarios and candidates to measure; without a name of a kind, its default ones
    #[arg(value_parser = Selected::parse)]
    only: Vec<Selected>,
    /// Measure only the most telling scenarios and candidates, in about a minute
    #[arg(long)]
    quick: bool,
    /// How often each candidate is measured [default: 5; quick: 2]
    #[arg(long)]
    turns: Option<usize>,
    /// How long each measurement takes [default: 2; quick: 0.5]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// How many workers or threads each proxy has
    #[arg(long, default_value_t = 2, value_parser = workers)]
    workers: usize,
    /// Write the results of everything into docs/comparison.md and docs/comparison.svg
    #[arg(long, conflicts_with_all = ["only", "quick"])]
    write: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Selected {
    Scenario(Scenario),
    Candidate(Candidate),
}

impl Options {
    fn turns(&self) -> usize {
        self.turns.unwrap_or(if self.quick { 2 } else { 5 })
    }

    fn run(&self) -> Run {
        let time = Duration::from_millis(if self.quick { 500 } else { 2_000 });
        Run { time: self.seconds.unwrap_or(time), workers: self.workers }
    }

    /// Returns the candidates to measure: those that are named, or the default ones.
    fn candidates(&self) -> Vec<Candidate> {
        let named = |selected: &Selected| match *selected {
            Selected::Candidate(candidate) => Some(candidate),
            Selected::Scenario(_) => None,
        };
        let named: Vec<_> = self.only.iter().filter_map(named).collect();
        let mut candidates = Candidate::ALL.to_vec();
        candidates.retain(|one| match named.is_empty() {
            true => one.is_default() && (!self.quick || one.is_quick()),
            false => named.contains(one),
        });
        candidates
    }

    /// Returns the scenarios to measure: those that are named, or the default ones.
    fn scenarios(&self) -> Vec<Scenario> {
        let named = |selected: &Selected| match *selected {
            Selected::Scenario(scenario) => Some(scenario),
            Selected::Candidate(_) => None,
        };
        let named: Vec<_> = self.only.iter().filter_map(named).collect();
        let mut scenarios = Scenario::ALL.to_vec();
        scenarios.retain(|one| match named.is_empty() {
            true => !self.quick || one.is_quick(),
            false => named.contains(one),
        });
        scenarios
    }
}

impl Selected {
    fn parse(name: &str) -> Result<Self, String> {
        let scenario = Scenario::from_str(name, true).map(Self::Scenario);
        scenario.or_else(|_| Candidate::from_str(name, true).map(Self::Candidate)).map_err(|_| {
            let scenarios = Scenario::ALL.iter().map(|scenario| scenario.name());
            let candidates = Candidate::ALL.iter().map(|candidate| candidate.name());
            format!("there are {}", scenarios.chain(candidates).collect::<Vec<_>>().join(", "))
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Parses a number of workers. HAProxy has at most 64 threads.
fn workers(text: &str) -> Result<usize, String> {
    let is_possible = |workers: &usize| (1..=64).contains(workers);
    text.parse().ok().filter(is_possible).ok_or_else(|| String::from("not a number from 1 to 64"))
}

fn main() {
    if upstream::serve_if_asked() || link::serve_if_asked() {
        return;
    }
    support::run(|| compare(&Options::parse()));
}

fn compare(options: &Options) {
    let network = network::isolate();
    if network == Network::Shared {
        report::warn(
            "not root: on the machine's own loopback, where ports run out and its settings count",
        );
    }
    let mut candidates = options.candidates();
    candidates.retain(|one| report::introduce(*one));
    let (turns, run) = (options.turns(), options.run());
    let mut all = Vec::new();
    for scenario in options.scenarios() {
        let backend = match scenario.backend(network) {
            Ok(backend) => backend,
            Err(reason) => {
                report::warn(&format!("{} is not measured: {reason}", scenario.name()));
                continue;
            }
        };
        let mut results = Results::new(scenario, &candidates);
        for turn in 0..turns {
            for number in 0..candidates.len() {
                let number = (number + turn) % candidates.len();
                results.add(number, &scenario.run(candidates[number], &backend, run));
            }
        }
        results.print();
        all.push(results);
    }
    if options.write {
        page::write(&all, turns, run);
        plot::write(&all);
    }
}
