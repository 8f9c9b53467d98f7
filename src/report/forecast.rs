//! How many connections a generation may carry to its successor.

use std::collections::BTreeMap;

/// The number of connections that may be carried, for each listener with a connection limit.
///
/// The successor reserves that many permits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CarryForecast(BTreeMap<String, usize>);

impl CarryForecast {
    /// Returns each listener with its number of connections.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(listener, count)| (listener.as_str(), *count))
    }

    /// Adds the number of connections of one listener.
    pub(crate) fn add(&mut self, listener: String, count: usize) {
        self.0.insert(listener, count);
    }
}

impl FromIterator<(String, usize)> for CarryForecast {
    fn from_iter<T: IntoIterator<Item = (String, usize)>>(counts: T) -> Self {
        Self(counts.into_iter().collect())
    }
}
