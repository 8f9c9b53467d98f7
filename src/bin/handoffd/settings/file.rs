//! This module reads the configuration file, which contains the settings of the daemon and the
//! listeners with their services.
//!
//! The file is written in TOML. An error message is one line that contains the position, the
//! mistake and the expected value. A new generation reads the file again, and checks the whole file
//! before it changes anything. The check opens no other file.

use std::path::PathBuf;

use handoffd::Error;
use handoffd::listen::{ListenerName, Listeners, METRICS_LISTENER};
use handoffd::program::{ProgramConfig, check_settings, read_settings_file};
use handoffd::proxy::ProxyConfig;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::daemon::DaemonSettings;
use super::kinds::Time;
use super::listeners::{self, CheckedListener, Keys, TakenBy};
use super::mistake::{Mistake, SettingSource};
use super::program::ProgramSettings;
use super::relay::RelaySettings;
use super::value::Given;
use crate::failure::Failure;

/// The contents of a configuration file, and its path for error messages.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// The settings in a configuration file.
#[derive(Debug)]
pub(crate) struct FileSettings {
    pub(crate) daemon: DaemonSettings,
    pub(crate) listeners: Listeners,
    /// The service of each listener, in the order of the file. Each listener in `listeners` has one
    /// entry, and the list is never empty.
    pub(crate) services: Vec<(ListenerName, ServiceConfig)>,
    /// The program in the table `[program]`. If there is one, it serves all listeners.
    pub(crate) program: Option<ProgramConfig>,
    /// The setting `stop_timeout` of the program. It is checked when `drain_timeout` is known,
    /// which a flag may give.
    pub(crate) stop_timeout: Option<Given<Time>>,
}

/// The service that runs on a listener.
#[derive(Clone, Debug)]
pub(crate) enum ServiceConfig {
    /// The echo service, which sends back all data that it reads.
    Echo,
    /// The proxy service, which forwards connections to upstreams.
    Proxy(Box<ProxyConfig>),
    /// The program in the table `[program]`.
    Program,
}

impl ConfigFile {
    /// Reads the file at `path`.
    ///
    /// Returns [`Failure::ConfigFileUnreadable`] if the file cannot be read or is larger than 1
    /// MiB. Returns the same error if `path` is not a regular file, because the next generation
    /// could not read such a file again.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        match read_settings_file(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(source) => Err(Failure::ConfigFileUnreadable { file: path, source }),
        }
    }

    /// Creates a configuration file with these contents, without reading the file at `path`.
    #[cfg(any(fuzzing, test))]
    pub(super) fn of(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, bytes }
    }

    /// Returns the contents of the file. The identity of a generation contains a digest of them.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Parses the file. Returns [`Failure::ConfigFile`] for the first mistake, with its position.
    pub(crate) fn parse(&self) -> Result<FileSettings, Failure> {
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let place = error.valid_up_to();
            self.failure(Mistake::at(place, "not UTF-8, expected UTF-8 text"))
        })?;
        parse(text).map_err(|mistake| self.failure(mistake))
    }

    /// Returns the failure that reports a mistake in this file.
    pub(crate) fn failure(&self, mistake: Mistake) -> Failure {
        let text = match std::str::from_utf8(&self.bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&self.bytes[..error.valid_up_to()]).unwrap_or(""),
        };
        mistake.in_file(&self.path, text)
    }
}

fn parse(text: &str) -> Result<FileSettings, Mistake> {
    // Report only the first error in the file. After an invalid value, the parser misreads the text
    // that follows, so later errors may be wrong.
    let (mut file, errors) = DeTable::parse_recoverable(text);
    let first = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start));
    if let Some(first) = first {
        return Err(Mistake::of_toml(first, text));
    }
    let tables = listeners::take_tables(file.get_mut())?;
    let program = take_program(file.get_mut(), text)?;
    let daemon = DaemonSettings::deserialize(toml::Deserializer::from(file));
    let daemon = daemon.map_err(|error| Mistake::of_toml(&error, text))?;
    let mut taken = TakenBy::default();
    let listeners = listeners::read(tables, text, program.is_some(), &mut taken)?;
    check_metrics(&daemon, &listeners, &mut taken)?;
    let addresses: Vec<_> = listeners.iter().map(CheckedListener::address).collect();
    let stop_timeout = program.as_ref().and_then(|(_, program)| program.stop_timeout.clone());
    let program = program.map(|(place, program)| {
        let config = program.into_config(SettingSource::File, &addresses);
        config.map(|config| (place, config)).map_err(|mistake| mistake.or_at(place))
    });
    let program = program.transpose()?;
    let (listeners, services): (Vec<_>, Vec<_>) =
        listeners.into_iter().map(CheckedListener::split).unzip();
    // This call never fails, because the names and the addresses were already checked above, where
    // their positions in the file are known.
    let listeners = Listeners::new(listeners).map_err(|error| Mistake::at(0, error.to_string()))?;
    let checked = program.map(|(place, program)| {
        let done = check_settings(&program, &listeners);
        done.map(|()| program).map_err(|error| Mistake::at(place, error.to_string()))
    });
    Ok(FileSettings { daemon, listeners, services, program: checked.transpose()?, stop_timeout })
}

/// Removes the table `[program]` from the parsed file. Returns its settings, and its position in
/// the file for error messages.
fn take_program(
    file: &mut DeTable<'_>,
    text: &str,
) -> Result<Option<(usize, ProgramSettings)>, Mistake> {
    let Some(program) = file.remove("program") else { return Ok(None) };
    let span = program.span();
    let DeValue::Table(table) = program.into_inner() else {
        let what = "not a table, expected the settings of a program, as in [program]";
        return Err(Mistake::at(span.start, what));
    };
    let (relay, other) = Keys::of::<RelaySettings>().partition(Spanned::new(span.clone(), table));
    let mut settings: ProgramSettings = listeners::deserialize(other, text)?;
    settings.relay = listeners::deserialize(relay, text)?;
    if settings.command.is_none() {
        let what =
            "the program has no command, expected one, as in command = [\"gunicorn\", \"app:app\"]";
        return Err(Mistake::at(span.start, what));
    }
    Ok(Some((span.start, settings)))
}

/// Checks that no listener in the file has the name or the address of the metrics listener.
fn check_metrics(
    daemon: &DaemonSettings,
    listeners: &[CheckedListener],
    taken: &mut TakenBy,
) -> Result<(), Mistake> {
    let Some(metrics) = &daemon.metrics else { return Ok(()) };
    let refuse = |error: Error| Mistake::at(metrics.offset, error.to_string());
    let name: ListenerName = METRICS_LISTENER.parse().map_err(refuse)?;
    listeners::take(taken, metrics, &name)?;
    if listeners.iter().any(|listener| *listener.name() == name) {
        let what = format!(
            "another listener is named {METRICS_LISTENER:?}, which is reserved for the metrics \
            listener"
        );
        return Err(Mistake::at(metrics.offset, what));
    }
    Ok(())
}
