//! The `status` command, which shows every generation (process of the service) as text or JSON. It
//! prints the status once, or repeatedly until no handoff and no drain is in progress.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use handoffd::Generation;
use handoffd::control::{Control, ControlError};
use handoffd::status::{
    Counters, GenerationState, HandoffCounters, LastHandoff, ListenerCounters, ListenerReport,
    Outcome, ProgramReport, Report, Status, UpstreamCounters,
};
use handoffd::text::{escaped, one_line};

use crate::cli::{OutputFormat, StatusMode};
use crate::failure::Failure;
use crate::output::print;

/// How often the command asks the daemon for its status with `--watch`.
const EVERY: Duration = Duration::from_secs(1);
/// How many characters of a digest the table shows: enough to tell two digests apart.
const SHORT: usize = 12;

/// Asks the daemon for its status and prints it.
pub(crate) fn run(control: PathBuf, form: OutputFormat, span: StatusMode) -> Result<(), Failure> {
    let control = Control::at(control);
    let mut said = String::new();
    loop {
        let status = match control.status() {
            // The daemon has ended while this command was watching its status.
            Err(ControlError::NobodyAnswers { .. }) if !said.is_empty() => return Ok(()),
            status => status?,
        };
        let text = match (form, span) {
            (OutputFormat::Programs, _) => json(&status)?,
            (OutputFormat::People, StatusMode::Once) => table(&status),
            (OutputFormat::People, StatusMode::Watch) => one_line(&status.to_string()) + "\n",
        };
        if text != said {
            print("the status", &text)?;
        }
        if span == StatusMode::Once || is_quiet(&status) {
            return Ok(());
        }
        said = text;
        wait();
    }
}

fn json(status: &Status) -> Result<String, Failure> {
    let text = serde_json::to_string(status)
        .map_err(|error| Failure::System { doing: "write JSON", source: error.into() })?;
    Ok(text + "\n")
}

#[expect(clippy::disallowed_methods, reason = "to look every second is what was asked for")]
fn wait() {
    std::thread::sleep(EVERY);
}

/// Returns whether no handoff and no drain is in progress. This is the case when only one
/// generation is left and it serves.
fn is_quiet(status: &Status) -> bool {
    matches!(&status.generations[..], [alone] if alone.state == GenerationState::Serving)
}

/// Formats the status as tables with a row for each generation, program, listener and upstream. The
/// last row describes the last handoff.
fn table(status: &Status) -> String {
    let head = [
        "GENERATION",
        "PID",
        "STATE",
        "FOR",
        "CONNECTIONS",
        "OLDEST",
        "CUT IN",
        "VERSION",
        "BUILD",
        "CONFIG",
    ];
    let mut text = aligned(head, status.generations.iter().map(row));
    text += &program_table(&status.generations);
    let head = [
        "LISTENER", "ADDRESS", "ACCEPTED", "OPEN", "FULL", "RECEIVED", "SENT", "DRAINED", "CUT",
        "CARRIED", "REFUSED",
    ];
    text.push('\n');
    text += &aligned(head, listener_rows(&status.listeners, &status.counters));
    text += &upstream_table(&status.counters.upstreams);
    text.push('\n');
    text += &refusals(&status.counters);
    let HandoffCounters { succeeded, failed, rolled_back, .. } = status.counters.handoffs;
    text +=
        &format!("handoffs: {succeeded} succeeded, {failed} failed, {rolled_back} rolled back\n");
    if let Some(last) = &status.last_handoff {
        text += &format!("last handoff: {}\n", tell(last));
    }
    text
}

/// Formats a row for each process of a program, after an empty line. Returns an empty string if
/// there is no program.
fn program_table(generations: &[Report]) -> String {
    let mut rows = generations
        .iter()
        .flat_map(|report| {
            report.programs.iter().map(|program| program_row(report.generation, program))
        })
        .peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let head = ["GENERATION", "PROGRAM", "STATE", "STARTS", "STATUS"];
    "\n".to_owned() + &aligned(head, rows)
}

fn program_row(generation: Generation, program: &ProgramReport) -> [String; 5] {
    [
        generation.to_string(),
        program.pid.map_or_else(none, |pid| pid.to_string()),
        program.state.name().to_owned(),
        program.starts.to_string(),
        program.status.clone().unwrap_or_else(none),
    ]
}

/// Formats a row for each upstream, after an empty line. Returns an empty string if there is no
/// upstream.
fn upstream_table(upstreams: &BTreeMap<String, BTreeMap<String, UpstreamCounters>>) -> String {
    let mut rows =
        upstreams.iter().flat_map(|(listener, all)| upstream_rows(listener, all)).peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let head =
        ["LISTENER", "UPSTREAM", "CONNECTED", "OPEN", "FAILED", "EJECTED", "SENT", "RECEIVED"];
    "\n".to_owned() + &aligned(head, rows)
}

/// Returns a line for each listener whose clients sent wrong PROXY headers, and for each host name
/// that did not resolve.
fn refusals(counters: &Counters) -> String {
    let mut text = String::new();
    for (listener, ListenerCounters { header_errors, .. }) in &counters.listeners {
        if *header_errors > 0 {
            let listener = escaped(listener);
            text += &format!(
                "{listener}: {header_errors} clients refused because of their PROXY header\n"
            );
        }
    }
    for (listener, all) in &counters.upstreams {
        for (host, UpstreamCounters { resolve_failures, .. }) in all {
            if *resolve_failures > 0 {
                let (listener, host) = (escaped(listener), escaped(host));
                text += &format!(
                    "{listener}: the host name {host} failed to resolve {resolve_failures} times\n"
                );
            }
        }
    }
    text
}

/// Formats rows as a table in which each column is as wide as its widest cell.
fn aligned<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) -> String {
    // Escape the text, because it comes from the daemon and may contain any characters.
    let rows = rows.map(|row| row.map(|cell| escaped(&cell)));
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [_; COLUMNS] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len()).max().unwrap_or_default()
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Returns a row for each address. If several addresses have one name, they share its counters, so
/// only the row of the first address has numbers.
fn listener_rows<'a>(
    listeners: &'a [ListenerReport],
    counters: &'a Counters,
) -> impl Iterator<Item = [String; 11]> + 'a {
    let mut seen = BTreeSet::new();
    listeners.iter().map(move |listener| {
        let mut row = listener_row(listener, counters);
        if !seen.insert(&listener.name) {
            row[2..].iter_mut().for_each(String::clear);
        }
        row
    })
}

fn listener_row(listener: &ListenerReport, counters: &Counters) -> [String; 11] {
    // The table omits the remaining counters of a listener. They are usually zero, and the log has
    // them.
    let ListenerCounters {
        accepted,
        active,
        limited,
        received,
        sent,
        drained,
        cut,
        carried,
        refused,
        ..
    } = counters.listeners.get(&listener.name).copied().unwrap_or_default();
    let numbers = [accepted, active, limited, received, sent, drained, cut, carried, refused];
    let [accepted, active, limited, received, sent, drained, cut, carried, refused] =
        numbers.map(|number| number.to_string());
    let (name, address) = (listener.name.clone(), listener.address.clone());
    [name, address, accepted, active, limited, received, sent, drained, cut, carried, refused]
}

/// Returns a row for each upstream. A host name with known addresses gets a separate row only if
/// the counters of its former addresses are not all zero.
fn upstream_rows<'a>(
    listener: &'a str,
    all: &'a BTreeMap<String, UpstreamCounters>,
) -> impl Iterator<Item = [String; 8]> + 'a {
    let has_addresses = |name: &str| {
        let of_the_name = format!("{name}/");
        all.range(of_the_name.clone()..)
            .next()
            .is_some_and(|(next, _)| next.starts_with(&of_the_name))
    };
    let is_nothing = |one: &UpstreamCounters| {
        let mut nothing = UpstreamCounters::default();
        nothing.resolve_failures = one.resolve_failures;
        *one == nothing
    };
    let rows = all.iter().filter(move |(name, one)| !(is_nothing(one) && has_addresses(name)));
    rows.map(move |one| upstream_row(listener, one))
}

fn upstream_row(listener: &str, (upstream, counters): (&String, &UpstreamCounters)) -> [String; 8] {
    let UpstreamCounters { connected, active, failed, ejected, sent, received, .. } = *counters;
    let numbers = [connected, active, failed, ejected, sent, received];
    let [connected, active, failed, ejected, sent, received] =
        numbers.map(|number| number.to_string());
    [listener.to_owned(), upstream.clone(), connected, active, failed, ejected, sent, received]
}

fn row(report: &Report) -> [String; 10] {
    let short = |text: &Option<String>| {
        text.as_ref().map_or_else(none, |text| text.chars().take(SHORT).collect())
    };
    let age = report.for_ms.map(Duration::from_millis).or_else(|| by_date(report.since_unix_ms));
    let connections = report.connections.as_ref();
    let oldest =
        connections.and_then(|connections| connections.oldest_ms).map(Duration::from_millis);
    [
        report.generation.to_string(),
        report.pid.map_or_else(none, |pid| pid.to_string()),
        report.state.name().to_owned(),
        age.map_or_else(none, seconds),
        connections.map_or_else(none, |connections| connections.open.to_string()),
        oldest.map_or_else(none, seconds),
        report.drain_left_ms.map(Duration::from_millis).map_or_else(none, seconds),
        report.identity.version.clone().unwrap_or_else(none),
        short(&report.identity.build),
        short(&report.identity.configuration),
    ]
}

/// Returns the time since a date. This function is used for a generation of an old version, which
/// reports only a date. The result is wrong if the clock was set in the meantime.
fn by_date(unix_ms: u64) -> Option<Duration> {
    let date = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    (unix_ms > 0).then(|| SystemTime::now().duration_since(date).unwrap_or_default())
}

fn none() -> String {
    "-".to_owned()
}

/// Returns a duration in whole seconds, which is precise enough for a table.
fn seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn tell(last: &LastHandoff) -> String {
    let outcome = match last.outcome {
        Outcome::Committed => "took over",
        Outcome::Failed => "failed",
        Outcome::RolledBack => "was rolled back",
        Outcome::TimedOut => "timed out",
        Outcome::Unknown => "ended",
    };
    let when = humantime::format_rfc3339_seconds(
        SystemTime::UNIX_EPOCH + Duration::from_millis(last.unix_ms),
    );
    let reason = last.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    one_line(&format!("generation {} {outcome} at {when}{reason}", last.successor))
}
