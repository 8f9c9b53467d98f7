//! Gathers what was measured, and prints it: medians, and the ratios of handoffd to each peer and to the best one.
// A bench is there to print.
#![allow(clippy::print_stdout)]

use crate::candidate::Candidate;
use crate::scenario::{Better, Measure, Scenario};
use crate::support::figures::Figures;
use crate::support::table::{Table, Target};

/// The results of one scenario.
pub(crate) struct Results {
    scenario: Scenario,
    candidates: Vec<Candidate>,
    /// For each candidate, for each measure, one value a turn.
    values: Vec<Vec<Figures>>,
}

/// Says which version will be measured, or that the candidate is missing; whether it is there.
pub(crate) fn introduce(candidate: Candidate) -> bool {
    match candidate.version() {
        Ok(version) => println!("  {:<15}{version}", candidate.name()),
        Err(remedy) => println!("  {:<15}missing, not measured: {remedy}", candidate.name()),
    }
    candidate.version().is_ok()
}

/// Says what makes the figures worth less.
pub(crate) fn warn(what: &str) {
    println!("  {what}");
}

impl Results {
    pub(crate) fn new(scenario: Scenario, candidates: &[Candidate]) -> Self {
        let values = vec![vec![Figures::default(); scenario.measures().len()]; candidates.len()];
        Self { scenario, candidates: candidates.to_vec(), values }
    }

    /// Takes what one turn of one candidate gave.
    pub(crate) fn add(&mut self, candidate: usize, values: &[f64]) {
        for (figures, value) in self.values[candidate].iter_mut().zip(values) {
            figures.push(*value);
        }
    }

    /// Prints a table of the medians, and one of the ratios.
    pub(crate) fn print(&self) {
        let names: Vec<&str> = self.candidates.iter().map(|candidate| candidate.name()).collect();
        let mut table = Table::new(&self.scenario.title(), &[&["best peer"], &names[..]].concat());
        for (number, measure) in self.scenario.measures().iter().enumerate() {
            let medians = self.values.iter().map(|values| values[number].median());
            let best = self.best_peer(number).map_or(f64::NAN, |peer| self.values[peer][number].median());
            table.row(measure.name, &std::iter::once(best).chain(medians).collect::<Vec<_>>(), Target::None);
        }
        let Some(ours) = self.candidates.iter().position(|candidate| *candidate == Candidate::Handoffd) else {
            return table.print();
        };
        for (number, measure) in self.scenario.measures().iter().enumerate() {
            let ratio = |theirs: usize| self.values[ours][number].over(&self.values[theirs][number]).median();
            let target = match measure.better {
                Better::Less => Target::AtMost(1.0),
                Better::More => Target::AtLeast(1.0),
                Better::Zero => continue,
            };
            let best = self.best_peer(number).map_or(f64::NAN, ratio);
            let ratios = std::iter::once(best).chain((0..self.candidates.len()).map(ratio)).collect::<Vec<_>>();
            table.row(&format!("handoffd's share: {}", unitless(measure)), &ratios, target);
        }
        table.print();
    }

    /// The peer with the best median.
    fn best_peer(&self, number: usize) -> Option<usize> {
        let median = |candidate: usize| self.values[candidate][number].median();
        let peers = (0..self.candidates.len()).filter(|one| self.candidates[*one].is_peer() && !median(*one).is_nan());
        match self.scenario.measures()[number].better {
            Better::Less | Better::Zero => peers.min_by(|one, other| median(*one).total_cmp(&median(*other))),
            Better::More => peers.max_by(|one, other| median(*one).total_cmp(&median(*other))),
        }
    }
}

fn unitless(measure: &Measure) -> &'static str {
    measure.name.split_once(", ").map_or(measure.name, |(name, _)| name)
}
