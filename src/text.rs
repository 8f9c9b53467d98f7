//! Functions that make text from other programs safe to print as one line.
//!
//! The text may come from any program: from a successor, or from the daemon behind a control
//! socket. Without escaping, a line break in it could forge a second log record. An escape sequence
//! could control the operator's terminal, and a very long line could fill the log.

use std::fmt::Write as _;
use std::path::Path;

/// The maximum length of an escaped line in bytes.
const LONGEST: usize = 4000;

/// Returns `text` as one line that is safe to print on a terminal. Text that is too long for a log
/// is truncated.
#[must_use]
pub fn one_line(text: &str) -> String {
    cut_line(text, LONGEST)
}

/// Returns `text` as one line that is safe to print, truncated to about `longest` bytes.
#[must_use]
pub fn cut_line(text: &str, longest: usize) -> String {
    let mut line = String::with_capacity(text.len().min(longest));
    for character in text.chars() {
        if line.len() >= longest {
            line.push_str("...");
            break;
        }
        push(&mut line, character);
    }
    line
}

/// Returns `text` with control characters and invisible characters escaped, so that a terminal does
/// not interpret them.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    text.chars().for_each(|character| push(&mut line, character));
    line
}

/// Returns a path as one line without quotes. Compilers print paths in the same form, so editors
/// recognize the path and can open the file.
#[must_use]
pub fn printable(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

fn push(line: &mut String, character: char) {
    if character.is_control() || is_invisible(character) {
        // Ignore the result, because writing to a string cannot fail.
        let _ = write!(line, "{}", character.escape_default());
    } else {
        line.push(character);
    }
}

/// Returns whether a character is invisible, such as a line separator or a byte order mark.
const fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        assert_eq!(
            one_line("a\nb\r\0\u{1b}[2Jü\u{9b}c\u{202e}"),
            "a\\nb\\r\\u{0}\\u{1b}[2Jü\\u{9b}c\\u{202e}"
        );
        assert_eq!(one_line("\"quotes\" and \\ stay"), "\"quotes\" and \\ stay");
    }

    #[test]
    fn a_line_has_an_end() {
        assert_eq!(one_line(&"x".repeat(120_000)).len(), LONGEST + 3);
        assert!(one_line(&"\u{1b}".repeat(120_000)).len() < LONGEST + 10);
        assert_eq!(escaped(&"x".repeat(120_000)).len(), 120_000);
    }
}
