//! The events of the log are the same in the source, in the tests and in docs/operations.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Event;

/// The levels, most important first.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The description of an event in the source or in the documentation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Description {
    levels: Vec<String>,
    fields: Vec<String>,
}

/// Returns all source files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.collect()
}

/// Returns the code of a source file without its unit tests, which may log anything.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

/// Returns the arguments of a macro call, up to its closing parenthesis. `text` begins after the
/// opening one.
fn arguments(text: &str) -> Vec<String> {
    let (mut all, mut current, mut depth) = (Vec::new(), String::new(), 0);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ')' if depth == 0 => break,
            ',' if depth == 0 => {
                all.push(std::mem::take(&mut current).trim().to_owned());
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        current.push(letter);
        if letter == '"' {
            while let Some(inner) = letters.next() {
                current.push(inner);
                match inner {
                    '"' => break,
                    '\\' => current.extend(letters.next()),
                    _ => {}
                }
            }
        }
    }
    all.push(current.trim().to_owned());
    all
}

/// Returns the name of a field in `name`, `%name`, `?name` or `name = value`.
fn field_name(argument: &str) -> &str {
    argument.split('=').next().unwrap().trim().trim_start_matches(['%', '?'])
}

/// Returns every event in the source.
fn in_source() -> BTreeMap<String, Description> {
    let mut events = BTreeMap::<String, Description>::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = code(&path);
        for level in LEVELS {
            for call in text.split(&format!("tracing::{level}!(")).skip(1) {
                let all = arguments(call);
                let id = all[0].strip_prefix("event = \"").and_then(|id| id.strip_suffix('"'));
                let id =
                    id.unwrap_or_else(|| panic!("{}: {} names no event", path.display(), all[0]));
                let event = events.entry(id.to_owned()).or_default();
                event.levels.push(level.to_owned());
                let fields = all[1..].iter().take_while(|argument| !argument.starts_with('"'));
                event.fields.extend(fields.map(|argument| field_name(argument).to_owned()));
            }
        }
    }
    events
}

/// Returns every event in the table of docs/operations.md.
fn in_documentation() -> BTreeMap<String, Description> {
    let text = include_str!("../docs/operations.md");
    let section = text.split("\n## Events\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|row| row.starts_with("| `"));
    let list = |cell: &str| {
        let words = cell.split(", ").map(|word| word.trim_matches(['`', ' ']).to_owned());
        words.filter(|word| !word.is_empty()).collect()
    };
    let event = |row: &str| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert!(cells.len() == 6 && !cells[4].is_empty(), "{row}");
        let id = cells[1].trim_matches('`').to_owned();
        (id, Description { levels: list(cells[2]), fields: list(cells[3]) })
    };
    let all: Vec<_> = rows.map(event).collect();
    let count = all.len();
    let events: BTreeMap<_, _> = all.into_iter().collect();
    assert_eq!(events.len(), count, "an event has two rows");
    events
}

fn sorted(mut description: Description) -> Description {
    for list in [&mut description.levels, &mut description.fields] {
        list.sort();
        list.dedup();
    }
    description
}

/// A log call by a short name, as after `use tracing::warn`, would escape the other tests.
#[test]
fn every_log_call_in_the_source_is_written_in_full() {
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = code(&path);
        for level in LEVELS {
            let (call, full) = (format!("{level}!("), format!("tracing::{level}!("));
            let is_word = |place: usize| {
                !text[..place].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_')
            };
            let calls = text.match_indices(&call).filter(|(place, _)| is_word(*place)).count();
            assert_eq!(calls, text.matches(&full).count(), "{}: {call}", path.display());
        }
        assert!(!text.contains("tracing::event!"), "{}", path.display());
    }
}

#[test]
fn every_record_in_the_source_has_an_event_of_the_tests() {
    let known: Vec<_> = Event::ALL.iter().map(|event| event.id()).collect();
    let logged: Vec<_> = in_source().into_keys().collect();
    assert!(known.is_sorted(), "the list in tests/support/event.rs must be sorted");
    assert_eq!(logged, known);
}

#[test]
fn every_event_is_documented_with_its_levels_and_fields() {
    let mut documented = in_documentation();
    for (id, logged) in in_source() {
        let row = documented.remove(&id).unwrap_or_else(|| panic!("{id} has no row"));
        assert_eq!(sorted(row), sorted(logged), "{id}");
    }
    assert_eq!(documented, BTreeMap::new(), "rows of events that no longer exist");
}
