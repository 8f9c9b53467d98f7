//! A forecast of how many connections may move from a generation to its successor.

use std::collections::BTreeMap;

/// For each listener with a connection limit, the number of its connections that may move to the
/// successor.
///
/// The successor reserves one place in the listener's connection limit for each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CarryForecast(BTreeMap<String, usize>);

impl CarryForecast {
    /// Returns each listener's name, and how many of its connections may move to the successor.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(listener, count)| (listener.as_str(), *count))
    }

    /// Adds a listener, and how many of its connections may move to the successor.
    pub(crate) fn add(&mut self, listener: String, count: usize) {
        self.0.insert(listener, count);
    }
}

impl FromIterator<(String, usize)> for CarryForecast {
    fn from_iter<T: IntoIterator<Item = (String, usize)>>(counts: T) -> Self {
        Self(counts.into_iter().collect())
    }
}
