//! Figures from measurements: medians and percentiles, on which one disturbed turn has no effect.

use std::time::Duration;

/// Measurements of one kind, all in the same unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Adds a measurement.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a duration, in milliseconds.
    pub(crate) fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    /// Adds other measurements.
    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns the number of measurements.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the median.
    pub(crate) fn median(&self) -> f64 {
        self.per_mille(500)
    }

    /// Returns the smallest measurement that is not below `rank` thousandths of all measurements.
    pub(crate) fn per_mille(&self, rank: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() * rank).div_ceil(1000).max(1) - 1]
    }

    /// Returns the largest measurement.
    pub(crate) fn max(&self) -> f64 {
        self.per_mille(1000)
    }

    /// Divides each measurement by the measurement of the same turn in `other`.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}
