//! Sends log records to the journal, if standard error goes there, else to standard error.
//!
//! Over the journal's own protocol fields stay fields: `listener` becomes `HANDOFFD_LISTENER`. On standard error every
//! record opens with the time, the generation and the process id, for all generations of a line write to the same place.

use std::fmt;
use std::io::{self, IsTerminal};

use handoffd::Generation;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// What the journal's fields begin with.
const PREFIX: &str = "HANDOFFD";

/// Where records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Journal,
    StandardError,
}

/// Starts logging, for the whole process.
pub(crate) fn start(destination: Destination, filter: &Targets, generation: Generation) {
    let registry = tracing_subscriber::registry().with(filter.clone());
    if destination == Destination::Journal {
        // Without a journal to talk to, standard error still is one's stream.
        if let Ok(journal) = tracing_journald::layer() {
            let generation = [(format!("{PREFIX}_GENERATION"), generation.to_string())];
            let journal = journal.with_field_prefix(Some(PREFIX.to_owned())).with_custom_fields(generation);
            return registry.with(journal).init();
        }
    }
    let text = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would complain on standard error that standard error is broken, and panic when that fails.
        .log_internal_errors(false)
        .event_format(WithGeneration { generation, inner: Format::default().without_time().with_target(false) });
    registry.with(text).init();
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
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut to)?;
        write!(to, " generation={} pid={} ", self.generation, std::process::id())?;
        self.inner.format_event(context, to, event)
    }
}
