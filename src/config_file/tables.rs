//! The structure of a configuration file: its tables, and the settings in each table.
//!
//! `docs/handoffd.toml` explains the settings, and a test compares that file with this module.
//! Settings that can conflict with other settings have the type `Spanned`, so that an error message
//! can name their position.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tracing_subscriber::filter::Targets;

use super::log_format::LogFormat;
use super::span::ConfigError;
use super::values::{
    As, Count, Failures, FilePath, KeepAlive, List, Service, SocketPath, Time, UserOrGroup,
    UserTimeout, Wait, Workers,
};
use crate::address::Address;
use crate::config::{
    Balance, HeaderVersion, MaxGenerations, Network, OnHandoff, SocketMode, UpstreamTarget,
};

const A_LISTENER: &str = "expected a table with the listener's name, as in [listener.web]";

/// The top level of a configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) ready_timeout: Option<As<Time>>,
    pub(super) bake: Option<As<Time>>,
    pub(super) drain_timeout: Option<As<Time>>,
    pub(super) first_request_grace: Option<As<Time>>,
    pub(super) carry: Option<As<OnHandoff>>,
    pub(super) max_generations: Option<As<MaxGenerations>>,
    pub(super) pid_file: Option<As<FilePath>>,
    pub(super) control: Option<As<SocketPath>>,
    pub(super) log: Option<As<Targets>>,
    pub(super) log_format: Option<As<LogFormat>>,
    pub(super) workers: Option<As<Workers>>,
    pub(super) metrics: Option<Spanned<As<Address>>>,
    #[serde(default)]
    pub(super) listener: BTreeMap<Spanned<String>, ListenerTable>,
}

impl Root {
    /// Parses a configuration file.
    pub(super) fn read(text: &str) -> Result<Self, ConfigError> {
        // Report only the first error in the file. After an invalid value the parser misreads the
        // following text, so later errors may be wrong.
        let (file, errors) = DeTable::parse_recoverable(text);
        let first = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start));
        if let Some(first) = first {
            return Err(ConfigError::of_toml(first, text));
        }
        has_tables_of_listeners(file.get_ref())?;
        Self::deserialize(toml::Deserializer::from(file))
            .map_err(|error| ConfigError::of_toml(&error, text))
    }
}

/// Checks that `listener` and its entries are tables. Without this check, `serde` would accept a
/// list in place of a table. It would also accept a date, which `toml` presents as a table.
fn has_tables_of_listeners(file: &DeTable<'_>) -> Result<(), ConfigError> {
    let Some(listeners) = file.get("listener") else { return Ok(()) };
    let no_table = |place: Range<usize>| {
        ConfigError::at(place.start, format!("this is no table, {A_LISTENER}"))
    };
    let DeValue::Table(listeners) = listeners.get_ref() else {
        return Err(no_table(listeners.span()));
    };
    match listeners.values().find(|listener| !matches!(listener.get_ref(), DeValue::Table(_))) {
        Some(listener) => Err(no_table(listener.span())),
        None => Ok(()),
    }
}

/// The settings in a table `[listener.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenerTable {
    pub(super) address: Option<Spanned<As<Address>>>,
    pub(super) service: Option<As<Service>>,
    pub(super) max_connections: Option<As<Count>>,
    pub(super) carry: Option<As<OnHandoff>>,
    pub(super) mode: Option<As<SocketMode>>,
    pub(super) user: Option<As<UserOrGroup>>,
    pub(super) group: Option<As<UserOrGroup>>,

    pub(super) upstreams: Option<Spanned<List<UpstreamTarget>>>,
    pub(super) resolve_interval: Option<Spanned<As<Wait>>>,
    pub(super) balance: Option<Spanned<As<Balance>>>,
    pub(super) connect_timeout: Option<Spanned<As<Wait>>>,
    pub(super) connect_patience: Option<Spanned<As<Time>>>,
    pub(super) idle_timeout: Option<Spanned<As<Wait>>>,
    pub(super) lifetime: Option<Spanned<As<Wait>>>,
    pub(super) send_proxy_header: Option<Spanned<As<HeaderVersion>>>,
    pub(super) accept_proxy_header_from: Option<Spanned<List<Network>>>,
    pub(super) proxy_header_timeout: Option<Spanned<As<Wait>>>,
    pub(super) keep_alive: Option<Spanned<As<KeepAlive>>>,
    pub(super) user_timeout: Option<Spanned<As<UserTimeout>>>,
    pub(super) eject_after: Option<Spanned<As<Failures>>>,
    pub(super) eject_for: Option<Spanned<As<Wait>>>,
    pub(super) check_interval: Option<Spanned<As<Wait>>>,
    pub(super) check_timeout: Option<Spanned<As<Wait>>>,
}

impl ListenerTable {
    /// Returns the first setting that is valid only for a proxy, and the position of that setting's
    /// value.
    pub(super) fn first_of_a_proxy(&self) -> Option<(&'static str, usize)> {
        fn place<T>(value: Option<&Spanned<T>>) -> Option<Range<usize>> {
            value.map(Spanned::span)
        }
        let all = [
            ("upstreams", place(self.upstreams.as_ref())),
            ("resolve_interval", place(self.resolve_interval.as_ref())),
            ("balance", place(self.balance.as_ref())),
            ("connect_timeout", place(self.connect_timeout.as_ref())),
            ("connect_patience", place(self.connect_patience.as_ref())),
            ("idle_timeout", place(self.idle_timeout.as_ref())),
            ("lifetime", place(self.lifetime.as_ref())),
            ("send_proxy_header", place(self.send_proxy_header.as_ref())),
            ("accept_proxy_header_from", place(self.accept_proxy_header_from.as_ref())),
            ("proxy_header_timeout", place(self.proxy_header_timeout.as_ref())),
            ("keep_alive", place(self.keep_alive.as_ref())),
            ("user_timeout", place(self.user_timeout.as_ref())),
            ("eject_after", place(self.eject_after.as_ref())),
            ("eject_for", place(self.eject_for.as_ref())),
            ("check_interval", place(self.check_interval.as_ref())),
            ("check_timeout", place(self.check_timeout.as_ref())),
        ];
        let given = all.into_iter().filter_map(|(name, place)| Some((name, place?.start)));
        given.min_by_key(|(_, offset)| *offset)
    }
}
