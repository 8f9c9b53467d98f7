//! A log layer that sends records to the systemd journal. It uses the journal's native protocol,
//! which keeps the fields of a record (see systemd.io/JOURNAL_NATIVE_PROTOCOL).

use std::fmt::{self, Write};

use handoffd::Generation;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::outlet::Outlet;
use super::{EVENT, MESSAGE};

/// The prefix of the journal fields in which our log fields are stored.
const PREFIX: &str = "HANDOFFD_";

/// The maximum length of a field's value in bytes. A longer value is truncated, because a record
/// must fit into one datagram.
const LONGEST: usize = 32 * 1024;

/// A tracing layer that sends each log event to the journal as one record.
pub(super) struct Journal {
    outlet: Outlet,
    common: Vec<u8>,
}

impl Journal {
    pub(super) fn new(outlet: Outlet, generation: Generation) -> Self {
        let program = std::env::args_os().next().map(std::path::PathBuf::from);
        let name = program
            .as_ref()
            .and_then(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned());
        let mut common = Vec::new();
        put(&mut common, "SYSLOG_IDENTIFIER", &name.unwrap_or_default());
        put(&mut common, &format!("{PREFIX}GENERATION"), &generation.to_string());
        Self { outlet, common }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = Vec::with_capacity(512);
        about(&mut record, event.metadata());
        record.extend_from_slice(&self.common);
        event.record(&mut JournalFields(&mut record));
        self.outlet.put(&record);
    }
}

/// Adds the severity and the source location of a log event to its record.
fn about(record: &mut Vec<u8>, metadata: &Metadata<'_>) {
    let priority = match *metadata.level() {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    };
    put(record, "PRIORITY", priority);
    put(record, "TARGET", metadata.target());
    if let Some(file) = metadata.file() {
        put(record, "CODE_FILE", file);
    }
    if let Some(line) = metadata.line() {
        put(record, "CODE_LINE", &line.to_string());
    }
}

struct JournalFields<'a>(&'a mut Vec<u8>);

impl Visit for JournalFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Ignore the result, because writing to a string cannot fail.
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            put(self.0, "MESSAGE", value);
        } else if field.name() == EVENT {
            put(self.0, "EVENT", value);
        } else {
            // Convert the field's name to upper case, because the journal accepts no lower-case
            // letters in names.
            put(
                self.0,
                &format!("{PREFIX}{}", field.name().to_ascii_uppercase().replace('.', "_")),
                value,
            );
        }
    }
}

/// Adds a field to the record. The value is preceded by its length, so it may contain any bytes,
/// including line feeds.
fn put(record: &mut Vec<u8>, name: &str, value: &str) {
    let end = (0..=LONGEST.min(value.len()))
        .rev()
        .find(|end| value.is_char_boundary(*end))
        .unwrap_or_default();
    let value = &value.as_bytes()[..end];
    record.extend_from_slice(name.as_bytes());
    record.push(b'\n');
    record.extend_from_slice(&(value.len() as u64).to_le_bytes());
    record.extend_from_slice(value);
    record.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_its_length_ahead_and_is_cut_to_fit() {
        let mut record = Vec::new();
        put(&mut record, "MESSAGE", "two\nlines");
        assert_eq!(record, b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n");
        record.clear();
        put(&mut record, "M", &"\u{e9}".repeat(LONGEST));
        assert_eq!(record.len(), 2 + 8 + LONGEST + 1);
    }
}
