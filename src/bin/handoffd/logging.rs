//! Sends log records to the journal, if standard error goes there, else to standard error.
//!
//! Over the journal's own protocol fields stay fields: `listener` becomes `HANDOFFD_LISTENER`, and the message alone is what
//! journalctl(1) shows; so it holds what people must know, as the reason of a failure. On standard error every record opens with the time, the generation and the process id, for all generations of a line write to the same place.
//! Whoever reads there may have stalled (a pager, a terminal that is held up); no signal and no client waits for that.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use handoffd::{Generation, escaped};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{DefaultVisitor, Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// What the journal's fields begin with.
const PREFIX: &str = "HANDOFFD";

/// How long a reader of standard error may hold us up, in milliseconds; what comes after that is dropped until it reads.
const PATIENCE: u16 = 1000;

/// What can be written to a pipe that poll(2) calls writable without waiting: `PIPE_BUF`, pipe(7).
const AT_ONCE: usize = 4096;

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
        .with_writer(|| StandardError)
        .with_ansi(io::stderr().is_terminal())
        // It would complain on standard error that standard error is broken, and panic when that fails.
        .log_internal_errors(false)
        .fmt_fields(WhatIsNotSaid)
        .event_format(WithGeneration { generation, inner: Format::default().without_time().with_target(false) });
    registry.with(text).init();
}

/// Standard error, for as long as somebody reads it.
///
/// Not by `O_NONBLOCK`: that would act on every process that holds the stream, the shell included.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        static STALLED: AtomicBool = AtomicBool::new(false);
        // Locked before the look, so that no other thread takes the room that was seen.
        let mut stderr = io::stderr().lock();
        let patience = if STALLED.load(Ordering::Relaxed) { 0 } else { PATIENCE };
        let mut poll = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        // A signal that comes meanwhile ends the wait, and the write would wait for ever: what is not known to have room
        // has none. Of any other error of poll's, the write tells.
        let stalled = matches!(nix::poll::poll(&mut poll, PollTimeout::from(patience)), Ok(0) | Err(Errno::EINTR));
        STALLED.store(stalled, Ordering::Relaxed);
        if stalled {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stderr.write(&bytes[..bytes.len().min(AT_ONCE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
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
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut to)?;
        write!(to, " generation={} pid={} ", self.generation, std::process::id())?;
        self.inner.format_event(context, to, event)
    }
}

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
            // Text from outside has come this far by the name of a listener or a path; a record is one line.
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
