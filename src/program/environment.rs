//! The environment variables of a program. They come from three sources: the environment of this
//! process, a file, and the configuration. A later source overrides an earlier one.
//!
//! The file is read at each start of the program, so that a change takes effect at the next
//! handoff. Variables that are meant only for this process, such as the channel to the predecessor,
//! are left out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use crate::sys;

/// Environment variables that are meant only for this process, so that the program must not inherit
/// them. The program gets its own values for some of them.
const OURS: [&str; 12] = [
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
    "FDSTORE",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
    "SYSTEMD_EXEC_PID",
];

/// The prefix of all variables that generations pass to each other.
const PREFIX: &str = "HANDOFFD_";

/// The environment variables of a program, by name.
pub(super) type ProgramEnvironment = BTreeMap<OsString, OsString>;

/// Returns the environment of this process, without the variables that are meant only for this
/// process.
pub(super) fn inherited() -> ProgramEnvironment {
    let is_ours = |name: &OsString| {
        name.to_str().is_some_and(|name| OURS.contains(&name) || name.starts_with(PREFIX))
    };
    sys::env::all().into_iter().filter(|(name, _)| !is_ours(name)).collect()
}

/// Reads a file in the format of systemd's `EnvironmentFile=` (see systemd.exec(5)).
///
/// # Errors
/// Fails when the file cannot be read or a line is not `NAME=VALUE`. The error names the line.
pub(super) fn read(path: &Path) -> io::Result<Vec<(String, String)>> {
    let text = String::from_utf8(sys::settings_file::read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))?;
    let invalid = |line: usize| {
        let what = format!("line {line} is not NAME=VALUE");
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    let mut variables = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| invalid(index + 1))?;
        let name = name.trim_end();
        let is_name = |name: &str| {
            let mut letters = name.bytes();
            letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
                && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_')
        };
        if !is_name(name) {
            return Err(invalid(index + 1));
        }
        let mut unquoted = UnquotedValue::default();
        let mut end = unquoted.add(value.trim_start());
        while end == LineEnd::Continues {
            let (_, next) = lines.next().ok_or_else(|| invalid(index + 1))?;
            end = unquoted.add(next);
        }
        variables.push((name.to_owned(), unquoted.text));
    }
    Ok(variables)
}

/// A value without its quotes and backslashes. It is read line by line, so that a long value takes
/// only linear time.
#[derive(Default)]
struct UnquotedValue {
    text: String,
    /// The quote that is open.
    quote: Option<char>,
    /// The length of the text whose trailing white space belongs to the value.
    kept: usize,
}

/// Whether a value ends with the line that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    /// The value is complete.
    Complete,
    /// A quote is open, or the line ends in a backslash. So the value continues on the next line.
    Continues,
}

impl UnquotedValue {
    /// Adds a line to the value.
    fn add(&mut self, line: &str) -> LineEnd {
        let mut letters = line.chars();
        while let Some(letter) = letters.next() {
            match (self.quote, letter) {
                (None, '\'' | '"') => self.quote = Some(letter),
                (Some(open), _) if letter == open => {
                    self.quote = None;
                    self.kept = self.text.len();
                }
                (None | Some('"'), '\\') => match letters.next() {
                    None => return LineEnd::Continues,
                    Some(escaped @ ('"' | '\\' | '`' | '$')) if self.quote.is_some() => {
                        self.text.push(escaped);
                    }
                    Some(escaped) if self.quote.is_some() => self.text.extend(['\\', escaped]),
                    Some(escaped) => {
                        self.text.push(escaped);
                        self.kept = self.text.len();
                    }
                },
                _ => self.text.push(letter),
            }
        }
        if self.quote.is_some() {
            self.text.push('\n');
            return LineEnd::Continues;
        }
        let end = self.text.trim_end().len().max(self.kept);
        self.text.truncate(end);
        LineEnd::Complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_systemd_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# comment\n; comment\n\nA=b\n  B = c d  \nC='e  f' \nD=\"g\\\"h\\n\"\nE=\nF=a\\\nb\n\
                    G='one\ntwo'\nH=x y\\ \n";
        std::fs::write(file.path(), text).unwrap();
        let said = read(file.path()).unwrap();
        let expected = [
            ("A", "b"),
            ("B", "c d"),
            ("C", "e  f"),
            ("D", "g\"h\\n"),
            ("E", ""),
            ("F", "ab"),
            ("G", "one\ntwo"),
            ("H", "x y "),
        ];
        assert_eq!(said, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    /// If each line were read again with all lines before it, this would take minutes.
    #[test]
    fn a_long_value_is_read_in_linear_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = "x\n".repeat(300_000);
        std::fs::write(file.path(), format!("A='{lines}'")).unwrap();
        assert_eq!(read(file.path()).unwrap(), [("A".to_owned(), lines.clone())]);
        std::fs::write(file.path(), format!("A='{lines}")).unwrap();
        assert!(read(file.path()).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn a_wrong_line_of_variables_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, line) in [("A=b\nwhat", "line 2"), ("1A=b", "line 1"), ("A='b", "line 1")] {
            std::fs::write(file.path(), text).unwrap();
            let error = read(file.path()).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
        assert!(read(Path::new("/nonexistent/file")).is_err());
    }
}
