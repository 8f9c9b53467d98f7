//! A mistake in the settings, and where it is: in a flag, or in a line of the configuration file.

use std::ops::Range;
use std::path::Path;

use handoffd::text::cut_line;

use super::value::{Given, Kind};
use crate::failure::Failure;

/// The maximum length of an error message in bytes. A longer message is truncated, so that it stays
/// readable even if it quotes a large part of the file.
const LONGEST: usize = 1000;

/// The place where settings are given. It decides how error messages write the names of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettingSource {
    Flags,
    File,
}

impl SettingSource {
    /// Returns the name of a setting as the user writes it: `--bake` as a flag, `bake` in the file.
    pub(super) fn name(self, setting: &str) -> String {
        match self {
            Self::Flags => format!("--{}", setting.replace('_', "-")),
            Self::File => setting.to_owned(),
        }
    }

    /// Returns the mistake for a setting that has no effect, because the setting `other` is
    /// missing.
    pub(super) fn needs_other<K: Kind>(
        self,
        given: &Given<K>,
        setting: &str,
        other: &str,
    ) -> Mistake {
        let (setting, other) = (self.name(setting), self.name(other));
        Mistake::at(
            given.offset,
            format!("{setting} has no effect on its own, expected {other} as well"),
        )
    }
}

/// A mistake in the settings.
#[derive(Debug)]
pub(super) struct Mistake {
    /// The position of the mistake in the file, in bytes. `None` if a flag is wrong.
    offset: Option<usize>,
    what: String,
}

impl Mistake {
    /// Creates a mistake at a position in the file, or in a flag if `offset` is `None`.
    pub(super) fn at(offset: impl Into<Option<usize>>, what: impl Into<String>) -> Self {
        Self { offset: offset.into(), what: what.into() }
    }

    /// Sets the position of the mistake in the file, unless the position is already known.
    pub(super) fn or_at(self, place: usize) -> Self {
        Self { offset: self.offset.or(Some(place)), ..self }
    }

    /// Converts an error from the crate `toml`. The error may originate in our own value parsers.
    pub(super) fn of_toml(error: &toml::de::Error, text: &str) -> Self {
        let span = error.span().unwrap_or_default();
        if let Some(fault) = Self::of_value(error.message(), &span, text) {
            return fault;
        }
        let what = match error.message() {
            "duplicate key" => {
                let key = text.get(span.clone()).unwrap_or_default();
                format!("{key} is given twice, expected only once")
            }
            other => other.to_owned(),
        };
        Self::at(span.start, what)
    }

    /// Replaces an error message about an invalid value. The crate `toml` only reports what its
    /// parser has tried, such as "invalid float, expected `nan`" for the value `no`.
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
            "the value is missing".to_owned()
        } else {
            format!("bad value {value}")
        };
        Some(Self::at(start, format!("{what}: expected text in quotes, a number, true or false")))
    }

    /// Returns the failure that reports a mistake in the flags.
    pub(super) fn in_flags(self) -> Failure {
        Failure::Usage(self.what)
    }

    /// Returns the failure that reports a mistake in `file`, whose contents are `text`. If a flag
    /// is wrong, the failure does not name the file.
    pub(super) fn in_file(self, file: &Path, text: &str) -> Failure {
        let Some(offset) = self.offset else { return self.in_flags() };
        let (line, column) = line_and_column(text, offset);
        let what = cut_line(&self.what, LONGEST);
        Failure::ConfigFile { file: file.to_owned(), line, column, what }
    }
}

/// Returns the value at `offset`, and the offset of its first byte. A value is the text after an
/// equals sign, or one element of a list. Returns `None` if the line has no value.
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
        // The offset is inside a list that may have begun on an earlier line.
        _ => {
            const ENDS: &[char] = &[',', '[', ']', '{', '}', '='];
            let start = before[line..].rfind(ENDS).map_or(line, |place| line + place + 1);
            let end = text[offset..end].find(ENDS).map_or(end, |place| offset + place);
            let (start, value) = trimmed(text, start, end);
            (!value.is_empty()).then_some((start, value))
        }
    }
}

/// Returns the text between two offsets without the surrounding white space, and the offset of the
/// result.
fn trimmed(text: &str, start: usize, end: usize) -> (usize, &str) {
    let value = text[start..end].trim_end();
    let trimmed = value.trim_start();
    (start + value.len() - trimmed.len(), trimmed)
}

/// Converts a byte offset into a line and a column. Both count from 1. A column is one character.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    // Do not count a byte order mark as a character, because editors do not display it.
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
