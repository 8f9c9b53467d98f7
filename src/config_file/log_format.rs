//! A parser for the format of log records.

use super::values::Kind;

/// How log records look on standard error. The journal always stores records as fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Each record is a line of text for people.
    #[default]
    Text,
    /// Each record is a line with one JSON object, for programs.
    Json,
}

/// Parses the name of a format of log records.
///
/// # Errors
/// Returns a description of a valid value if `text` is not valid.
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
