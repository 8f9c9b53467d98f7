//! A mistake in a configuration file, with its line and column.

use std::ops::Range;
use std::path::Path;

use crate::error::Error;
use crate::text::cut_line;

/// Longest error message. A longer one is cut, so that even a whole page in place of an address
/// gives one line.
const LONGEST: usize = 1000;

/// A mistake and its position.
#[derive(Debug)]
pub(super) struct ConfigError {
    /// The position in bytes from the beginning of the file.
    offset: usize,
    what: String,
}

impl ConfigError {
    pub(super) fn at(offset: usize, what: impl Into<String>) -> Self {
        Self { offset, what: what.into() }
    }

    /// Converts an error of `toml`, which may come from our own value parsers.
    pub(super) fn of_toml(error: &toml::de::Error, text: &str) -> Self {
        let span = error.span().unwrap_or_default();
        if let Some(fault) = Self::of_value(error.message(), &span, text) {
            return fault;
        }
        let what = match error.message() {
            "duplicate key" => {
                let key = text.get(span.clone()).unwrap_or_default();
                format!("{key} is there already, expected each once")
            }
            other => other.to_owned(),
        };
        Self { offset: span.start, what }
    }

    /// Rewrites an error about an unreadable value. The messages of `toml` describe its own
    /// attempts: for `no` it says "invalid float, expected `nan`".
    fn of_value(message: &str, span: &Range<usize>, text: &str) -> Option<Self> {
        const OF_VALUES: [&str; 11] = [
            "string values must be quoted",
            "invalid float",
            "invalid boolean",
            "invalid mantissa",
            "invalid fraction",
            "invalid binary number",
            "unexpected leading zero",
            "`_` may only go between digits",
            "integer number overflowed",
            "floating-point number overflowed",
            "unexpected key or value",
        ];
        if !OF_VALUES.iter().any(|known| message.starts_with(known)) {
            return None;
        }
        let (start, value) = value_at(text, span.start)?;
        let what = if value.is_empty() {
            "there is no value".to_owned()
        } else {
            format!("bad value {value}")
        };
        Some(Self::at(start, format!("{what}: expected text in quotes, a number, true or false")))
    }

    /// Returns the error for this mistake in the given file.
    pub(super) fn into_error(self, file: &Path, text: &str) -> Error {
        let (line, column) = line_and_column(text, self.offset);
        Error::ConfigFile {
            file: file.to_owned(),
            line,
            column,
            what: cut_line(&self.what, LONGEST),
        }
    }
}

/// Returns the value that contains `offset`, and where the value begins. The value is the text
/// after the equals sign, or a single element in a list. Returns `None` for a line without a value.
fn value_at(text: &str, offset: usize) -> Option<(usize, &str)> {
    let before = text.get(..offset)?;
    let line = before.rfind('\n').map_or(0, |end| end + 1);
    let end = text[offset..].find(['\n', '#']).map_or(text.len(), |end| offset + end);
    let equals =
        text[line..end].find('=').map(|place| line + place + 1).filter(|start| *start <= offset);
    let whole = equals.map(|start| trimmed(text, start, end));
    match whole {
        Some((start, value))
            if !value.starts_with(['[', '{']) || value.ends_with(|last| !"]},[".contains(last)) =>
        {
            Some((start, value))
        }
        // Inside a list, which may have begun on an earlier line.
        _ => {
            const ENDS: &[char] = &[',', '[', ']', '{', '}', '='];
            let start = before[line..].rfind(ENDS).map_or(line, |place| line + place + 1);
            let end = text[offset..end].find(ENDS).map_or(end, |place| offset + place);
            let (start, value) = trimmed(text, start, end);
            (!value.is_empty()).then_some((start, value))
        }
    }
}

/// Returns the text between two offsets without surrounding white space, and where it begins.
fn trimmed(text: &str, start: usize, end: usize) -> (usize, &str) {
    let value = text[start..end].trim_end();
    let trimmed = value.trim_start();
    (start + value.len() - trimmed.len(), trimmed)
}

/// Returns the line and the column of an offset, both from 1. A column is a character.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    // Some editors begin a file with a byte order mark and do not show it.
    let before = before.strip_prefix('\u{feff}').unwrap_or(before);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_counted_in_lines_and_characters() {
        let text = "a\nüb\r\n\nc";
        for (offset, place) in [
            (0, (1, 1)),
            (1, (1, 2)),
            (2, (2, 1)),
            (4, (2, 2)),
            (7, (3, 1)),
            (8, (4, 1)),
            (99, (4, 2)),
        ] {
            assert_eq!(line_and_column(text, offset), place, "{offset}");
        }
    }
}
