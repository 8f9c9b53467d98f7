//! Sends log records to the journal, if standard error goes there, else to standard error.
//!
//! Over the journal's own protocol fields stay fields: `listener` becomes `HANDOFFD_LISTENER`, and
//! the message alone is what journalctl(1) shows; so it holds what people must know, as the reason
//! of a failure. On standard error every record opens with the time, the generation and the process
//! id, because all generations write to the same place. There it is text, or JSON. The reader may have stalled (a pager, a
//! terminal that is held up, a journal that is stopped); no signal and no client waits for it.

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

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Journal,
    StandardError,
}

/// Starts logging, for the whole process. `format` is that of records on standard error.
pub(crate) fn start(
    destination: Destination,
    filter: &Targets,
    format: LogFormat,
    generation: Generation,
) {
    let registry = tracing_subscriber::registry().with(filter.clone());
    // Without a journal to talk to, standard error still is its stream.
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
        // It would complain on standard error that standard error is broken, and panic when that
        // fails.
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

/// Logs a panic. The hook of the standard library writes to standard error and waits for its
/// reader.
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

/// The writer of one record: the formatter passes it in one piece.
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

/// Puts the time, the generation and the process in front of each record.
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

/// The field that names what happened. It never changes, unlike the message: docs/operations.md lists
/// every value.
const EVENT: &str = "event";

/// The field that a record's text is in.
const MESSAGE: &str = "message";

/// What a message holds already: the field is for the journal.
const SAID: [&str; 2] = ["reason", "successor"];

/// The message and the fields that it does not hold itself.
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
            // Text from outside has come this far by the name of a listener or a path; a record is
            // one line.
            self.inner.record_debug(field, &format_args!("{}", escaped(&format!("{value:?}"))));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else if !SAID.contains(&field.name()) {
            // In quotes, and escaped with them.
            self.inner.record_str(field, value);
        }
    }
}
