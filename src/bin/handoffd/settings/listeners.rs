//! This module reads the listeners of a configuration file. It checks that required settings are
//! present and that listeners do not conflict.

use std::ops::Range;

use clap::Args;
use handoffd::Error;
use handoffd::listen::{Address, ListenerConfig, ListenerName, TakenAddresses};
use handoffd::proxy::{Loop, UpstreamTarget, find_loop};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::file::ServiceConfig;
use super::kinds::ServiceName;
use super::listener::ListenerSettings;
use super::mistake::{Mistake, SettingSource};
use super::proxy::{HealthSettings, ProxySettings};
use super::relay::RelaySettings;
use super::value::{Given, Kind};

const A_LISTENER: &str = "expected a table with the listener's name, as in [listener.web]";

/// The name of a listener in the file, and its table.
type ListenerTable<'a> = (Spanned<DeString<'a>>, Spanned<DeTable<'a>>);

/// The addresses that listeners already use, each with the name of its listener for error messages.
pub(super) type TakenBy = TakenAddresses<(Address, ListenerName)>;

/// A listener of the configuration file, and the service that it runs.
pub(super) struct CheckedListener {
    name: ListenerName,
    config: ListenerConfig,
    service: ServiceConfig,
    /// Where each upstream is in the file, for error messages.
    upstream_places: Vec<Option<usize>>,
}

impl CheckedListener {
    pub(super) const fn name(&self) -> &ListenerName {
        &self.name
    }

    pub(super) const fn address(&self) -> &Address {
        &self.config.address
    }

    pub(super) fn split(self) -> (ListenerConfig, (ListenerName, ServiceConfig)) {
        (self.config, (self.name, self.service))
    }

    fn upstreams(&self) -> &[UpstreamTarget] {
        match &self.service {
            ServiceConfig::Proxy(proxy) => proxy.upstreams.as_slice(),
            ServiceConfig::Echo | ServiceConfig::Program => &[],
        }
    }
}

/// Removes all tables `[listener.NAME]` from the parsed file, and returns them in the order of the
/// file. Returns a mistake if a listener is not a table.
pub(super) fn take_tables<'a>(file: &mut DeTable<'a>) -> Result<Vec<ListenerTable<'a>>, Mistake> {
    let no_table =
        |place: Range<usize>| Mistake::at(place.start, format!("not a table, {A_LISTENER}"));
    let table = |value: Spanned<DeValue<'a>>| {
        let span = value.span();
        let DeValue::Table(table) = value.into_inner() else { return Err(no_table(span)) };
        Ok(Spanned::new(span, table))
    };
    let Some(listeners) = file.remove("listener") else { return Ok(Vec::new()) };
    let mut tables = table(listeners)?
        .into_inner()
        .into_iter()
        .map(|(name, value)| Ok((name, table(value)?)))
        .collect::<Result<Vec<_>, _>>()?;
    tables.sort_by_key(|(name, _)| name.span().start);
    Ok(tables)
}

/// Reads all listeners of the file, whose contents are `text`. Adds each listener's address to
/// `taken`.
pub(super) fn read(
    tables: Vec<ListenerTable<'_>>,
    text: &str,
    has_program: bool,
    taken: &mut TakenBy,
) -> Result<Vec<CheckedListener>, Mistake> {
    if tables.is_empty() {
        // Refuse a file without listeners. The file may be empty or half-written, and accepting it
        // would close the sockets of the previous generation.
        let what = "no listener is configured, expected at least one, as in [listener.web]";
        return Err(Mistake::at(0, what));
    }
    let keys = ListenerKeys::all();
    let listeners: Vec<_> = tables
        .into_iter()
        .map(|table| one(table, &keys, text, has_program, taken))
        .collect::<Result<_, _>>()?;
    check_loops(&listeners)?;
    Ok(listeners)
}

/// Checks that no proxy connects to itself, directly or through other listeners.
fn check_loops(listeners: &[CheckedListener]) -> Result<(), Mistake> {
    let all = listeners.iter().map(|listener| (&listener.config.address, listener.upstreams()));
    let Some(Loop { listener, upstream, leads_to }) = find_loop(&all.collect::<Vec<_>>()) else {
        return Ok(());
    };
    let what = format!(
        "the upstream {} leads back to the listener {:?}: connections would loop forever",
        listeners[listener].upstreams()[upstream],
        listeners[leads_to].name.as_str()
    );
    Err(Mistake::at(listeners[listener].upstream_places[upstream], what))
}

/// Adds the address of a listener to `taken`.
pub(super) fn take(
    taken: &mut TakenBy,
    address: &Given<Address>,
    name: &ListenerName,
) -> Result<(), Mistake> {
    let Given { value: address, offset } = address;
    taken.take(address, (address.clone(), name.clone())).map_err(|(other, owner)| {
        let owner = owner.as_str();
        let what = if other == *address {
            format!("the listener {owner:?} already has the address {address}, expected another")
        } else {
            format!(
                "the address {address} overlaps with {other} of the listener {owner:?}, expected \
                another"
            )
        };
        Mistake::at(*offset, what)
    })
}

/// Reads one listener from its table in the file.
fn one(
    (name, table): ListenerTable<'_>,
    keys: &ListenerKeys,
    text: &str,
    has_program: bool,
    taken: &mut TakenBy,
) -> Result<CheckedListener, Mistake> {
    let place = name.span().start;
    let lacks = |what, expected| {
        let name = name.get_ref();
        Mistake::at(place, format!("the listener {name:?} has no {what}, expected {expected}"))
    };
    let parsed: Result<ListenerName, Error> = name.get_ref().parse();
    let parsed = parsed.map_err(|error| Mistake::at(place, error.to_string()))?;
    let (mut settings, proxy) = split(table, keys, text)?;
    let address = settings.address.take();
    let address = address
        .ok_or_else(|| lacks("address", "an address, as in address = \"127.0.0.1:8080\""))?;
    take(taken, &address, &parsed)?;
    let address = address.value;
    let mut upstream_places = Vec::new();
    let service = service_name(has_program, &settings)?;
    let service = match service.ok_or_else(|| lacks("service", ServiceName::EXPECTED))? {
        ServiceName::Program => {
            check_no_proxy_setting(proxy.get_ref())?;
            ServiceConfig::Program
        }
        ServiceName::Echo => {
            check_no_proxy_setting(proxy.get_ref())?;
            ServiceConfig::Echo
        }
        ServiceName::Proxy => {
            let list = proxy.get_ref().get("upstreams").map(|list| list.span().start);
            let proxy = read_proxy(proxy, keys, text)?;
            let Some(upstreams) = &proxy.upstreams else {
                return Err(lacks("upstreams", "a list, as in upstreams = [\"127.0.0.1:9000\"]"));
            };
            if upstreams.is_empty() {
                let what = "no upstream is given, expected at least one";
                return Err(Mistake::at(list, what));
            }
            upstream_places = upstreams.iter().map(|upstream| upstream.offset).collect();
            ServiceConfig::Proxy(Box::new(proxy.into_config(SettingSource::File, &[&address])?))
        }
    };
    let mut config = ListenerConfig::new(address);
    config.name = Some(parsed.clone());
    settings.apply(&mut config);
    Ok(CheckedListener { name: parsed, config, service, upstream_places })
}

/// Returns the service of a listener. If the file has a program, the program serves every listener,
/// and no listener may name a service.
fn service_name(
    has_program: bool,
    settings: &ListenerSettings,
) -> Result<Option<ServiceName>, Mistake> {
    match &settings.service {
        Some(service) if has_program => {
            let what = "the program in [program] serves this listener, so the listener may have no \
                service";
            Err(Mistake::at(service.offset, what))
        }
        Some(service) => Ok(Some(service.value)),
        None => Ok(has_program.then_some(ServiceName::Program)),
    }
}

/// Parses the settings that every listener has, and returns the proxy settings unparsed. Both kinds
/// are keys of the same table. Whether proxy settings are allowed depends on the service, which the
/// caller checks later.
fn split<'a>(
    table: Spanned<DeTable<'a>>,
    keys: &ListenerKeys,
    text: &str,
) -> Result<(ListenerSettings, Spanned<DeTable<'a>>), Mistake> {
    let (proxy, other) = keys.proxy.partition(table);
    Ok((deserialize(other, text)?, proxy))
}

/// Checks that a listener without a proxy has no proxy settings.
fn check_no_proxy_setting(table: &DeTable<'_>) -> Result<(), Mistake> {
    let first = table.iter().min_by_key(|(_, value)| value.span().start);
    let Some((setting, value)) = first else { return Ok(()) };
    let what = format!(
        "{} is a setting of a proxy, allowed only with service = \"proxy\"",
        setting.get_ref()
    );
    Err(Mistake::at(value.span().start, what))
}

fn read_proxy(
    table: Spanned<DeTable<'_>>,
    keys: &ListenerKeys,
    text: &str,
) -> Result<ProxySettings, Mistake> {
    let (health, other) = keys.health.partition(table);
    let (relay, other) = keys.relay.partition(other);
    let mut proxy: ProxySettings = deserialize(other, text)?;
    proxy.health = deserialize(health, text)?;
    proxy.relay = deserialize(relay, text)?;
    Ok(proxy)
}

/// The keys of three groups of settings in a table `[listener.NAME]`: settings of the proxy itself,
/// of its forwarded connections, and of its health checks.
struct ListenerKeys {
    proxy: Keys,
    relay: Keys,
    health: Keys,
}

impl ListenerKeys {
    fn all() -> Self {
        Self {
            proxy: Keys::of::<ProxySettings>(),
            relay: Keys::of::<RelaySettings>(),
            health: Keys::of::<HealthSettings>(),
        }
    }
}

/// The keys of one kind of settings. They are computed once for each file, because this takes
/// longer than reading a listener.
pub(super) struct Keys(Vec<String>);

impl Keys {
    /// Returns the keys that `S` declares.
    pub(super) fn of<S: Args>() -> Self {
        let flags = S::augment_args(clap::Command::default());
        Self(flags.get_arguments().map(|flag| flag.get_id().to_string()).collect())
    }

    /// Splits a table into the entries with these keys and all other entries.
    pub(super) fn partition<'a>(
        &self,
        table: Spanned<DeTable<'a>>,
    ) -> (Spanned<DeTable<'a>>, Spanned<DeTable<'a>>) {
        let span = table.span();
        let is_declared = |key: &DeString<'_>| self.0.iter().any(|known| **known == **key);
        let (declared, other) =
            table.into_inner().into_iter().partition(|(key, _)| is_declared(key.get_ref()));
        (Spanned::new(span.clone(), declared), Spanned::new(span, other))
    }
}

pub(super) fn deserialize<T: for<'de> Deserialize<'de>>(
    table: Spanned<DeTable<'_>>,
    text: &str,
) -> Result<T, Mistake> {
    T::deserialize(toml::Deserializer::from(table)).map_err(|error| Mistake::of_toml(&error, text))
}
