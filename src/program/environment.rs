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
        let mut value = value.trim_start().to_owned();
        // A value with an open quote or a trailing backslash continues on the next line.
        let unquoted = loop {
            match unquote(&value) {
                Some(unquoted) => break unquoted,
                None => match lines.next() {
                    Some((_, next)) => value = format!("{value}\n{next}"),
                    None => return Err(invalid(index + 1)),
                },
            }
        };
        variables.push((name.to_owned(), unquoted));
    }
    Ok(variables)
}

/// Returns a value without its quotes and backslashes. Returns `None` if the value continues on the
/// next line.
fn unquote(value: &str) -> Option<String> {
    let mut unquoted = String::new();
    let (mut quote, mut kept) = (None, 0);
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), _) if letter == open => {
                quote = None;
                kept = unquoted.len();
            }
            (None | Some('"'), '\\') => match letters.next() {
                None => return None,
                Some('\n') => {}
                Some(escaped @ ('"' | '\\' | '`' | '$')) if quote.is_some() => {
                    unquoted.push(escaped)
                }
                Some(escaped) if quote.is_some() => unquoted.extend(['\\', escaped]),
                Some(escaped) => {
                    unquoted.push(escaped);
                    kept = unquoted.len();
                }
            },
            _ => unquoted.push(letter),
        }
    }
    if quote.is_some() {
        return None;
    }
    let end = unquoted.trim_end().len().max(kept);
    unquoted.truncate(end);
    Some(unquoted)
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
