//! Log records, sent to the journal if standard error is connected to it, else to standard error.
//!
//! In the journal's protocol fields stay fields: `listener` becomes `HANDOFFD_LISTENER`.
//! journalctl(1) shows only the message, so the message holds everything that people must know,
//! such as the reason of a failure.
//!
//! On standard error every record begins with the time, the generation and the process id, because
//! all generations write to the same place. There, records are text or JSON. The reader may stall,
//! for example a pager or a stopped journal. No signal and no client waits for the reader.

mod journal;
mod json;
mod outlet;
mod stream;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use handoffd::{Generation, LogFormat, escaped, one_line};
use journal::Journal;
use json::Json;
use outlet::Outlet;
use stream::Stream;
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

/// The outlet of all records of this process.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// The destination of log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Journal,
    StandardError,
}

/// Starts logging for the whole process. `format` is the format of records on standard error.
pub(crate) fn start(
    destination: Destination,
    filter: &Targets,
    format: LogFormat,
    generation: Generation,
) {
    let registry = tracing_subscriber::registry().with(filter.clone());
    // If the journal cannot be reached directly, standard error still leads to it.
    let journal = if destination == Destination::Journal { Stream::journal().ok() } else { None };
    let is_journal = journal.is_some();
    let outlet = OUTLET.get_or_init(|| Outlet::new(journal.unwrap_or_else(Stream::standard_error)));
    std::panic::set_hook(Box::new(report_panic));
    if is_journal {
        return registry.with(Journal::new(outlet.clone(), generation)).init();
    }
    if format == LogFormat::Json {
        return registry.with(Json::new(outlet.clone(), generation)).init();
    }
    let text = tracing_subscriber::fmt::layer()
        .with_writer(|| Record(outlet))
        .with_ansi(io::stderr().is_terminal())
        // With this option on, the layer reports a broken standard error on standard error, and
        // panics if that fails.
        .log_internal_errors(false)
        .fmt_fields(WhatIsNotSaid)
        .event_format(WithGeneration {
            generation,
            inner: Format::default().without_time().with_target(false),
        });
    registry.with(text).init();
}

/// Waits a moment for the last records to be read.
pub(crate) fn finish() {
    if let Some(outlet) = OUTLET.get() {
        outlet.finish();
    }
}

/// Logs a panic. The standard library's hook would write to standard error and wait for the reader.
fn report_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let is_captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = if is_captured { format!("\n{backtrace}") } else { String::new() };
    tracing::error!(event = "process.panicked", "{}{backtrace}", one_line(&panic.to_string()));
}

/// Writes one line to standard error for a process that has no log, and waits a moment for the
/// reader.
pub(crate) fn complain(line: &str) {
    let outlet = Outlet::new(Stream::standard_error());
    outlet.put(line.as_bytes());
    outlet.finish();
}

/// The writer of one record, which the formatter passes in one piece.
struct Record<'a>(&'a Outlet);

impl Write for Record<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A formatter that begins each record with the time, the generation and the process id.
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

/// The field that names the event. Its values never change, unlike the message. docs/operations.md
/// lists all of them.
const EVENT: &str = "event";

/// The field that holds the text of a record.
const MESSAGE: &str = "message";

/// Fields whose value the message already contains. Only the journal gets them.
const SAID: [&str; 2] = ["reason", "successor"];

/// A formatter for the message and the fields that the message does not contain.
struct WhatIsNotSaid;

impl<'w> FormatFields<'w> for WhatIsNotSaid {
    fn format_fields<R: RecordFields>(&self, to: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Unsaid { inner: DefaultVisitor::new(to, true) };
        fields.record(&mut visitor);
        visitor.inner.finish()
    }
}

struct Unsaid<'w> {
    inner: DefaultVisitor<'w>,
}

impl Visit for Unsaid<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !SAID.contains(&field.name()) {
            // The name of a listener or a path may contain any text, but a record must be one line.
            self.inner.record_debug(field, &format_args!("{}", escaped(&format!("{value:?}"))));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else if !SAID.contains(&field.name()) {
            // The inner visitor quotes and escapes strings.
            self.inner.record_str(field, value);
        }
    }
}
