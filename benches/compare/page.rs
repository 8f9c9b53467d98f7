//! Writes the results into `docs/comparison.md` between two marks. The rest of the page is written
//! by hand.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::measure::{Better, Measure};
use crate::report::Results;
use crate::scenario::Run;
use crate::support::table::short;

const BEGIN: &str = "<!-- measured: cargo bench --bench compare -- --write -->\n";
const END: &str = "<!-- end of what was measured -->\n";

/// Returns the path of a file in the documentation.
pub(crate) fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file)
}

/// Replaces the previous results.
pub(crate) fn write(all: &[Results], turns: usize, run: Run) {
    let path = docs("comparison.md");
    let page = fs::read_to_string(&path).expect("read the page");
    let (before, rest) = page.split_once(BEGIN).expect("find the mark before the results");
    let (_, after) = rest.split_once(END).expect("find the mark after the results");
    let mut results = introduction(all, turns, run);
    for one in all {
        results.push_str(&table(one));
    }
    fs::write(path, format!("{before}{BEGIN}{results}\n{END}{after}")).expect("write the page");
}

fn introduction(all: &[Results], turns: usize, run: Run) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processors = read("/proc/cpuinfo");
    let processor =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let release = read("/proc/sys/kernel/osrelease");
    let kernel = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let mut text = format!(
        "\n{turns} turns of {} s with {} workers, on a virtual machine with {cores} cores \
         ({}, Linux {kernel}).\n\n",
        run.time.as_secs_f64(),
        run.workers,
        processor.map_or("unknown", |(_, name)| name),
    );
    for candidate in all.first().map(Results::candidates).unwrap_or_default() {
        let version = candidate.version().unwrap_or_else(str::to_owned);
        let version = version.split(" - http").next().unwrap_or_default();
        writeln!(text, "- {}: {version}", candidate.name()).expect("write to a string");
    }
    text
}

fn table(results: &Results) -> String {
    let names = results
        .candidates()
        .iter()
        .map(|candidate| candidate.name())
        .collect::<Vec<_>>()
        .join(" | ");
    let mut text = format!("\n### {}\n\n", results.scenario().title());
    text += &format!("| | {names} | handoffd over the best peer |\n");
    text += &format!("|---{}|\n", "|--:".repeat(results.candidates().len() + 1));
    for (number, measure) in results.scenario().measures().iter().enumerate() {
        let values = results
            .medians(number)
            .into_iter()
            .map(|value| value_of(value, measure))
            .collect::<Vec<_>>();
        let ratio = match (measure.better, results.best_peer(number)) {
            (Better::Zero, _) | (_, None) => String::new(),
            (_, Some(peer)) => {
                format!(
                    "{} ({})",
                    short(results.ratios(number)[peer]),
                    results.candidates()[peer].name()
                )
            }
        };
        text += &format!("| {} | {} | {ratio} |\n", measure.name, values.join(" | "));
    }
    text
}

/// Formats a value briefly. A number of losses is a whole number.
pub(crate) fn value_of(value: f64, measure: &Measure) -> String {
    match measure.better {
        _ if value.is_nan() => String::from("none"),
        Better::Zero => format!("{value:.0}"),
        Better::Less | Better::More => short(value),
    }
}
