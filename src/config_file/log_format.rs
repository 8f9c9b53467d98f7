//! This module reads the format of log records.

use super::values::Kind;

/// How records are written to standard error. In the journal every field is a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for people.
    #[default]
    Text,
    /// A line with a JSON object for programs.
    Json,
}

/// Reads the format of log records.
///
/// # Errors
/// What was expected.
pub fn parse_log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json"),
    }
}

impl Kind for LogFormat {
    type Value = Self;
    const EXPECTED: &'static str = "\"text\" or \"json\"";

    fn text(text: &str) -> Option<Result<Self, String>> {
        Some(parse_log_format(text).map_err(|why| format!("bad format {text:?}: {why}")))
    }
}
