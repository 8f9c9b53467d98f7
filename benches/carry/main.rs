//! Measures the cost of a handoff with `--carry`: how long until the old process has ended, and how
//! long clients wait for answers meanwhile.
//!
//! All connections are busy, at the same total rate whatever their number. So figures that grow
//! with the number of connections show the cost of the carry. A pause is the time that one answer
//! took. The pauses between the commit and the end of the old process are compared with the pauses
//! of some time before, in the same turn. `cargo bench --bench carry -- --turns 9` runs more turns.
// Printing is the purpose of a bench.
#![allow(clippy::print_stdout)]

mod case;
mod clients;
#[path = "../support/mod.rs"]
mod support;

use clap::Parser;
use tokio::runtime::Builder;

use case::{Case, Service};
use support::table::{Table, Target, short};

/// The longest time from the commit to the end of the old process, in milliseconds, for the most
/// connections here.
const END: Target = Target::AtMost(1_000.0);
/// The longest 99.9th percentile of the pauses, in milliseconds.
const PAUSE: Target = Target::AtMost(50.0);

/// Measures handoffs that carry connections.
#[derive(Debug, Parser)]
struct Options {
    /// How often each number of connections is measured
    #[arg(long, default_value = "5")]
    turns: std::num::NonZeroUsize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    support::run(|| {
        let options = Options::parse();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("start a runtime");
        let upstream = runtime.block_on(clients::upstream());
        let of =
            |service| [500, 1_000, 2_000, 5_000].map(|connections| Case::new(service, connections));
        let mut cases: Vec<Case> =
            [Service::Echo, Service::Proxy].into_iter().flat_map(of).collect();
        for _ in 0..options.turns.get() {
            for case in &mut cases {
                case.turn(&runtime, upstream);
            }
        }
        print(&cases);
    });
}

fn print(cases: &[Case]) {
    let columns = ["median", "longest", "per 1,000", "processor us each", "idle before, %"];
    let mut table = Table::new("commit to the end of the old process, ms", &columns);
    for case in cases {
        let carry = case.carries.median();
        let values = [
            carry,
            case.carries.max(),
            carry / thousands(case),
            case.costs.median(),
            case.idle.median(),
        ];
        table.row(&case.to_string(), &values, END);
    }
    table.print();

    let columns = ["p99.9", "p50", "p99", "longest", "before: p50", "p99", "p99.9", "longest"];
    let mut table = Table::new("pause around a handoff, ms", &columns);
    for case in cases {
        let [p50, p99, p999, longest] = case.during.medians();
        table.row(
            &case.to_string(),
            &[&[p999, p50, p99, longest], &case.before.medians()[..]].concat(),
            PAUSE,
        );
    }
    table.print();

    println!();
    for service in [Service::Echo, Service::Proxy] {
        let of_it = cases.iter().filter(|case| case.service == service);
        let growth = |figure: fn(&Case) -> f64| {
            let (fixed, each) = line(of_it.clone().map(|case| (thousands(case), figure(case))));
            format!("{} ms and {} ms for each thousand", short(fixed), short(each))
        };
        let (total, pause) =
            (growth(|case| case.carries.median()), growth(|case| case.during.p999.median()));
        println!("  {service:?}: until the old process has ended {total}; pause at p99.9 {pause}");
    }
}

fn thousands(case: &Case) -> f64 {
    f64::from(case.connections) / 1e3
}

/// Returns the straight line with the least squares: its value at 0 and its slope.
fn line(points: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    let mean = |of: fn((f64, f64)) -> f64| {
        let values: Vec<f64> = points.clone().map(of).collect();
        values.iter().sum::<f64>()
            / f64::from(u32::try_from(values.len()).expect("a small number of points"))
    };
    let (x, y, xx, xy) =
        (mean(|(x, _)| x), mean(|(_, y)| y), mean(|(x, _)| x * x), mean(|(x, y)| x * y));
    let steep = (xy - x * y) / (xx - x * x);
    (y - steep * x, steep)
}
