//! Helpers that format parts of error messages, such as a list of names or a duration.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::text::printable;

/// Formats the names of the existing listeners for the end of an error message.
pub(super) fn existing_names(existing: &[String]) -> String {
    let names: Vec<_> = existing.iter().map(|name| format!("{name:?}")).collect();
    if names.is_empty() { String::new() } else { format!(", only {}", names.join(", ")) }
}

/// Formats the value of `LD_PRELOAD` for use in an error message.
pub(super) fn preloaded_by(libraries: Option<&OsString>) -> String {
    let named = |libraries| format!(" with LD_PRELOAD={}", printable(Path::new(libraries)));
    libraries.map(named).unwrap_or_default()
}

/// A duration that is printed in seconds, in the form that flags accept.
pub(super) struct Seconds(pub(super) Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}
