//! The measured results and their printing: medians, and the ratios of handoffd to each peer and to
//! the best one.
// Printing is the purpose of a bench.
#![allow(clippy::print_stdout)]

use crate::candidate::Candidate;
use crate::measure::Better;
use crate::scenario::Scenario;
use crate::support::figures::Figures;
use crate::support::table::{Table, Target};

/// The results of one scenario.
pub(crate) struct Results {
    scenario: Scenario,
    candidates: Vec<Candidate>,
    /// For each candidate and each measure, one value per turn.
    values: Vec<Vec<Figures>>,
}

/// Prints the version of the candidate, or that it is missing. Returns whether it is installed.
pub(crate) fn introduce(candidate: Candidate) -> bool {
    match candidate.version() {
        Ok(version) => println!("  {:<15}{version}", candidate.name()),
        Err(remedy) => println!("  {:<15}missing, not measured: {remedy}", candidate.name()),
    }
    candidate.version().is_ok()
}

/// Prints a warning that makes the figures less meaningful.
pub(crate) fn warn(what: &str) {
    println!("  {what}");
}

impl Results {
    pub(crate) fn new(scenario: Scenario, candidates: &[Candidate]) -> Self {
        let values = vec![vec![Figures::default(); scenario.measures().len()]; candidates.len()];
        Self { scenario, candidates: candidates.to_vec(), values }
    }

    /// Adds the values of one turn of one candidate.
    pub(crate) fn add(&mut self, candidate: usize, values: &[f64]) {
        for (figures, value) in self.values[candidate].iter_mut().zip(values) {
            figures.push(*value);
        }
    }

    pub(crate) fn scenario(&self) -> Scenario {
        self.scenario
    }

    pub(crate) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Returns the medians of one measure, one for each candidate.
    pub(crate) fn medians(&self, measure: usize) -> Vec<f64> {
        self.values.iter().map(|values| values[measure].median()).collect()
    }

    /// Returns for each candidate the median ratio of handoffd's value to its value in the same
    /// turn. It is NaN where there is no value.
    pub(crate) fn ratios(&self, measure: usize) -> Vec<f64> {
        let ours = self.candidates.iter().position(|candidate| *candidate == Candidate::OURS);
        let ratio = |theirs: &Vec<Figures>| {
            ours.map_or(f64::NAN, |ours| self.values[ours][measure].over(&theirs[measure]).median())
        };
        self.values.iter().map(ratio).collect()
    }

    /// Returns the peer with the best median.
    pub(crate) fn best_peer(&self, measure: usize) -> Option<usize> {
        let medians = self.medians(measure);
        let peers = (0..medians.len())
            .filter(|one| self.candidates[*one].is_peer() && !medians[*one].is_nan());
        let order = |one: &usize, other: &usize| medians[*one].total_cmp(&medians[*other]);
        match self.scenario.measures()[measure].better {
            Better::Less | Better::Zero => peers.min_by(order),
            Better::More => peers.max_by(order),
        }
    }

    /// Prints the medians, and then the ratios.
    pub(crate) fn print(&self) {
        let names: Vec<&str> = self.candidates.iter().map(|candidate| candidate.name()).collect();
        let mut table = Table::new(&self.scenario.title(), &[&["best peer"], &names[..]].concat());
        let with_best = |number: usize, values: Vec<f64>| {
            let best = self.best_peer(number).map_or(f64::NAN, |peer| values[peer]);
            std::iter::once(best).chain(values).collect::<Vec<_>>()
        };
        for (number, measure) in self.scenario.measures().iter().enumerate() {
            table.row(measure.name, &with_best(number, self.medians(number)), Target::None);
        }
        for (number, measure) in self.scenario.measures().iter().enumerate() {
            let ratios = with_best(number, self.ratios(number));
            let target = match measure.better {
                Better::Zero => continue,
                _ if ratios[0].is_nan() => Target::None,
                Better::Less => Target::AtMost(1.0),
                Better::More => Target::AtLeast(1.0),
            };
            table.row(&format!("handoffd over it: {}", measure.figure()), &ratios, target);
        }
        table.print();
    }
}
