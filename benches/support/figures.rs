//! Makes figures of measurements: medians and percentiles, so that one disturbed turn moves
//! nothing.

use std::time::Duration;

/// Measurements of one kind, in whatever unit they were made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds one, in milliseconds.
    pub(crate) fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    /// Adds those of another time.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        self.per_mille(500)
    }

    /// The smallest one that is not below `rank` thousandths of all.
    pub(crate) fn per_mille(&self, rank: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() * rank).div_ceil(1000).max(1) - 1]
    }

    /// The largest one.
    pub(crate) fn max(&self) -> f64 {
        self.per_mille(1000)
    }

    /// Each divided by the one of the same turn.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}
