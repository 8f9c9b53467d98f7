//! This module writes log records. They go to the systemd journal if standard error is connected to
//! it, and to standard error otherwise.
//!
//! The journal stores the fields of a record: `listener` becomes `HANDOFFD_LISTENER`. But
//! journalctl(1) shows only the message by default. The message therefore contains everything that
//! people need to know, such as the reason for a failure.
//!
//! On standard error, records are text or JSON. Every record begins with the time, the generation
//! and the process id, because all generations write to the same stream. The reader of standard
//! error, such as a pager, may stall. Writing a record never waits for the reader, so the daemon
//! keeps serving.

mod journal;
mod json;
mod outlet;
mod stream;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use handoffd::Generation;
use handoffd::text::{escaped, one_line};
use journal::Journal;
use json::Json;
use outlet::Outlet;
use stream::LogStream;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{
    DefaultVisitor, Format, FormatEvent, FormatFields, Full, Writer,
};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::LogFormat;

/// The outlet to which this process writes all log records.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// The place to which the process writes log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Journal,
    StandardError,
}

/// Starts logging for the whole process. `format` applies to records on standard error only.
pub(crate) fn start(
    destination: Destination,
    filter: &Targets,
    format: LogFormat,
    generation: Generation,
) {
    let registry = tracing_subscriber::registry().with(filter.clone());
    // Use standard error if the process cannot connect to the journal's socket, because the journal
    // receives standard error too.
    let journal =
        if destination == Destination::Journal { LogStream::journal().ok() } else { None };
    let is_journal = journal.is_some();
    let outlet =
        OUTLET.get_or_init(|| Outlet::new(journal.unwrap_or_else(LogStream::standard_error)));
    std::panic::set_hook(Box::new(report_panic));
    if is_journal {
        return registry.with(Journal::new(outlet.clone(), generation)).init();
    }
    if format == LogFormat::Json {
        return registry.with(Json::new(outlet.clone(), generation)).init();
    }
    let text = tracing_subscriber::fmt::layer()
        .with_writer(|| RecordWriter(outlet))
        .with_ansi(io::stderr().is_terminal())
        // Turn off error messages of the layer. It would report a failed write to standard error by
        // writing to standard error, and panic when that fails too.
        .log_internal_errors(false)
        .fmt_fields(MessageFormatter)
        .event_format(WithGeneration {
            generation,
            inner: Format::default().without_time().with_target(false),
        });
    registry.with(text).init();
}

/// Waits a short time for the reader to read the last log records.
pub(crate) fn finish() {
    if let Some(outlet) = OUTLET.get() {
        outlet.finish();
    }
}

/// Logs a panic. This function replaces the panic hook of the standard library, which would write
/// to standard error and wait for the reader.
fn report_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let is_captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = if is_captured { format!("\n{backtrace}") } else { String::new() };
    tracing::error!(event = "process.panicked", "{}{backtrace}", one_line(&panic.to_string()));
}

/// Writes one line to standard error, for a process that cannot log. Waits a short time for the
/// reader.
pub(crate) fn complain(line: &str) {
    let outlet = Outlet::new(LogStream::standard_error());
    outlet.put(line.as_bytes());
    outlet.finish();
}

/// A writer for one log record, which the formatter writes in one piece.
struct RecordWriter<'a>(&'a Outlet);

impl Write for RecordWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A formatter that begins each log record with the time, the generation and the process id.
struct WithGeneration {
    generation: Generation,
    inner: Format<Full, ()>,
}

impl<S, N> FormatEvent<S, N> for WithGeneration
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut to)?;
        write!(to, " generation={} pid={} ", self.generation, std::process::id())?;
        self.inner.format_event(context, to, event)
    }
}

/// The name of the field that identifies the kind of an event. The ids in this field never change,
/// even when messages do. docs/operations.md lists all ids.
const EVENT: &str = "event";

/// The name of the field that contains the message of a log record.
const MESSAGE: &str = "message";

/// The names of fields whose value is also in the message. The text format omits these fields.
const SAID: [&str; 2] = ["reason", "successor"];

/// A formatter that writes the message, and the fields whose value is not in the message.
struct MessageFormatter;

impl<'w> FormatFields<'w> for MessageFormatter {
    fn format_fields<R: RecordFields>(&self, to: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = FieldFormatter { inner: DefaultVisitor::new(to, true) };
        fields.record(&mut visitor);
        visitor.inner.finish()
    }
}

struct FieldFormatter<'w> {
    inner: DefaultVisitor<'w>,
}

impl Visit for FieldFormatter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !SAID.contains(&field.name()) {
            // Escape the value, because the name of a listener or a path may contain any text, and
            // a record must be one line.
            self.inner.record_debug(field, &format_args!("{}", escaped(&format!("{value:?}"))));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else if !SAID.contains(&field.name()) {
            // Strings need no escaping here, because the inner visitor quotes and escapes them.
            self.inner.record_str(field, value);
        }
    }
}
