//! Is what is wrong in a configuration file, and finds the line and the column.

use std::path::Path;

use crate::error::Error;
use crate::text::cut_line;

/// A message that is longer is cut: whoever writes a whole page where an address belongs still gets one line.
const LONGEST: usize = 1000;

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// In bytes, from the beginning of the file.
    offset: usize,
    what: String,
}

impl Fault {
    pub(super) fn at(offset: usize, what: impl Into<String>) -> Self {
        Self { offset, what: what.into() }
    }

    /// What `toml`, or one of our values in its hands, says of that text.
    pub(super) fn of_toml(error: &toml::de::Error, text: &str) -> Self {
        let span = error.span().unwrap_or_default();
        let what = match error.message() {
            "duplicate key" => {
                let key = text.get(span.clone()).unwrap_or_default();
                format!("{key} is there already, expected each once")
            }
            other => other.to_owned(),
        };
        Self { offset: span.start, what }
    }

    /// The error that it is in that file of that text.
    pub(super) fn into_error(self, file: &Path, text: &str) -> Error {
        let (line, column) = line_and_column(text, self.offset);
        Error::ConfigFile { file: file.to_owned(), line, column, what: cut_line(&self.what, LONGEST) }
    }
}

/// Both from 1; a column is a character.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    // Some editors begin a file with it and show nothing.
    let before = before.strip_prefix('\u{feff}').unwrap_or(before);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_lines_and_characters() {
        let text = "a\nüb\r\n\nc";
        for (offset, place) in
            [(0, (1, 1)), (1, (1, 2)), (2, (2, 1)), (4, (2, 2)), (7, (3, 1)), (8, (4, 1)), (99, (4, 2))]
        {
            assert_eq!(line_and_column(text, offset), place, "{offset}");
        }
    }
}
