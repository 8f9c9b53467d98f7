//! Log records and the patterns that tests match them with.

use std::fmt::{Debug, Display};

use super::Event;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The generation that wrote the record; 0 for text that is not a record.
    pub(crate) generation: u64,
    pub(crate) pid: u32,
    /// The event, or `None` for text that the daemon did not write.
    pub(crate) event: Option<Event>,
    /// Level, message and fields, exactly as written.
    pub(crate) text: String,
}

/// A condition on records.
pub(crate) trait Pattern: Debug {
    fn matches(&self, record: &Record) -> bool;
}

/// An event with conditions on its fields and its message.
#[derive(Clone, Debug)]
pub(crate) struct EventWith {
    event: Event,
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug)]
enum Requirement {
    Field { name: &'static str, value: String },
    Text(String),
    Part { name: &'static str, part: &'static str },
}

impl Event {
    /// Requires this value in one field.
    pub(crate) fn with(self, name: &'static str, value: impl Display) -> EventWith {
        EventWith { event: self, requirements: Vec::new() }.with(name, value)
    }

    /// Requires this text in the record: usually an error text, which stays the same when the log
    /// message changes.
    pub(crate) fn mentioning(self, text: impl Into<String>) -> EventWith {
        EventWith { event: self, requirements: vec![Requirement::Text(text.into())] }
    }

    /// Requires a field that contains this text.
    pub(crate) fn containing(self, name: &'static str, part: &'static str) -> EventWith {
        EventWith { event: self, requirements: vec![Requirement::Part { name, part }] }
    }
}

impl EventWith {
    pub(crate) fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.requirements.push(Requirement::Field { name, value: value.to_string() });
        self
    }
}

impl Pattern for Event {
    fn matches(&self, record: &Record) -> bool {
        record.event == Some(*self)
    }
}

impl Pattern for EventWith {
    fn matches(&self, record: &Record) -> bool {
        let is_met = |requirement: &Requirement| match requirement {
            Requirement::Field { name, value } => record.field(name) == Some(value),
            Requirement::Text(text) => record.text.contains(text),
            Requirement::Part { name, part } => {
                record.field(name).is_some_and(|value| value.contains(part))
            }
        };
        self.event.matches(record) && self.requirements.iter().all(is_met)
    }
}

/// Matches output that the daemon did not write: from a script, or from a program that the daemon
/// started.
impl Pattern for &str {
    fn matches(&self, record: &Record) -> bool {
        record.event.is_none() && record.text.contains(self)
    }
}

impl Record {
    pub(super) fn parse(line: &str) -> Self {
        let mut words = line.splitn(4, ' ').skip(1);
        let mut number =
            |key: &str| words.next().and_then(|word| word.strip_prefix(key)?.parse().ok());
        let generation = number("generation=");
        let pid = number("pid=").and_then(|pid| u32::try_from(pid).ok());
        let event = Event::of(line);
        match (generation, pid, words.next()) {
            (Some(generation), Some(pid), Some(text)) => {
                Self { generation, pid, event, text: text.trim_start().to_owned() }
            }
            _ => Self { generation: 0, pid: 0, event, text: line.to_owned() },
        }
    }

    /// Returns the value of a field: quoted, a list in brackets, or a single word.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let value = self.text.split_once(&format!(" {name}="))?.1;
        if let Some(quoted) = value.strip_prefix('"') {
            return quoted.split('"').next();
        }
        if let Some(list) = value.strip_prefix('[') {
            return list.split(']').next();
        }
        value.split(' ').next()
    }

    /// Returns whether `generation` wrote the record and it matches.
    pub(crate) fn is(&self, generation: u64, wanted: impl Pattern) -> bool {
        self.generation == generation && wanted.matches(self)
    }

    /// Returns whether the record matches, for any generation.
    pub(crate) fn is_event(&self, wanted: impl Pattern) -> bool {
        wanted.matches(self)
    }

    /// Returns whether the record is a warning or an error.
    pub(crate) fn is_complaint(&self) -> bool {
        self.text.starts_with("WARN") || self.text.starts_with("ERROR")
    }
}
