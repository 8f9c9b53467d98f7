//! The listeners of a configuration file. This module checks that required settings are present and
//! that listeners do not conflict.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use toml::Spanned;

use super::ServiceConfig;
use super::span::ConfigError;
use super::tables::ListenerTable;
use super::values::{As, Kind, List, Service};
use crate::address::Address;
use crate::config::{
    Check, Ejection, ListenerConfig, ListenerName, Loop, Network, ProxyConfig, SocketAccess,
    TakenAddresses, UpstreamTarget, Upstreams, find_loop,
};
use crate::error::Error;

/// How long a health check may take if the configuration file sets no timeout.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A listener of the configuration file, and the service that it runs.
pub(super) struct CheckedListener {
    name: ListenerName,
    config: ListenerConfig,
    service: ServiceConfig,
    /// Where each upstream is in the file, for error messages.
    upstream_places: Vec<usize>,
}

impl CheckedListener {
    pub(super) const fn name(&self) -> &ListenerName {
        &self.name
    }

    pub(super) fn split(self) -> (ListenerConfig, (ListenerName, ServiceConfig)) {
        (self.config, (self.name, self.service))
    }
}

/// The addresses that listeners already use. Each has the name of its listener, for error messages.
pub(super) type Taken = TakenAddresses<(Address, ListenerName)>;

/// Reads all listeners in the order of the file. Adds the address of each to `taken`.
pub(super) fn read(
    tables: BTreeMap<Spanned<String>, ListenerTable>,
    taken: &mut Taken,
) -> Result<Vec<CheckedListener>, ConfigError> {
    if tables.is_empty() {
        // Refuse a file without listeners. It may be empty or half-written, and accepting it would
        // close the sockets of the previous generation.
        return Err(ConfigError::at(
            0,
            "there is no listener, expected at least one, as in [listener.web]",
        ));
    }
    let mut tables: Vec<_> = tables.into_iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    let listeners: Vec<_> = tables
        .into_iter()
        .map(|(name, table)| one(&name, table, taken))
        .collect::<Result<_, _>>()?;
    leads_to_no_loop(&listeners)?;
    Ok(listeners)
}

/// Checks that no proxy connects to itself, directly or through other listeners.
fn leads_to_no_loop(listeners: &[CheckedListener]) -> Result<(), ConfigError> {
    let upstreams = |listener: &'_ CheckedListener| match &listener.service {
        ServiceConfig::Proxy(proxy) => proxy.upstreams.as_slice().to_vec(),
        ServiceConfig::Echo => Vec::new(),
    };
    let upstreams: Vec<_> = listeners.iter().map(upstreams).collect();
    let all = listeners
        .iter()
        .zip(&upstreams)
        .map(|(listener, to)| (&listener.config.address, to.as_slice()));
    let Some(Loop { listener, upstream, leads_to }) = find_loop(&all.collect::<Vec<_>>()) else {
        return Ok(());
    };
    let address = &upstreams[listener][upstream];
    let what = format!(
        "the upstream {address} leads back to the listener {:?}, expected one that does not",
        listeners[leads_to].name.as_str()
    );
    Err(ConfigError::at(listeners[listener].upstream_places[upstream], what))
}

/// Adds the address of a listener to `taken`. `place` is the position of the address in the file.
pub(super) fn take(
    taken: &mut Taken,
    address: &Address,
    name: &ListenerName,
    place: usize,
) -> Result<(), ConfigError> {
    taken.take(address, (address.clone(), name.clone())).map_err(|(other, owner)| {
        let owner = owner.as_str();
        ConfigError::at(
            place,
            if other == *address {
                format!(
                    "the listener {owner:?} has the address {address} already, expected \
                    another"
                )
            } else {
                format!(
                    "the address {address} overlaps with {other} of the listener {owner:?}, \
                    expected another"
                )
            },
        )
    })
}

/// Reads one listener from its table in the file.
fn one(
    name: &Spanned<String>,
    mut table: ListenerTable,
    taken: &mut Taken,
) -> Result<CheckedListener, ConfigError> {
    let refuse = |what| ConfigError::at(name.span().start, what);
    let lacks = |what, expected| {
        refuse(format!("the listener {:?} has no {what}, expected {expected}", name.get_ref()))
    };
    let parsed: Result<ListenerName, Error> = name.get_ref().parse();
    let parsed = parsed.map_err(|error| refuse(error.to_string()))?;
    let address = table
        .address
        .take()
        .ok_or_else(|| lacks("address", "one, as in address = \"127.0.0.1:8080\""))?;
    let place = address.span().start;
    let address = address.into_inner().0;
    take(taken, &address, &parsed, place)?;
    let upstreams_at = |list: &Spanned<List<UpstreamTarget>>| {
        list.get_ref().0.iter().map(|one| one.span().start).collect()
    };
    let upstream_places = table.upstreams.as_ref().map_or_else(Vec::new, upstreams_at);
    let config = ListenerConfig {
        name: Some(parsed.clone()),
        address,
        max_connections: table.max_connections.take().map(|count| count.0),
        on_handoff: table.carry.take().map(|carry| carry.0),
        access: SocketAccess {
            mode: table.mode.take().map(|mode| mode.0),
            user: table.user.take().map(|user| user.0),
            group: table.group.take().map(|group| group.0),
        },
    };
    let service = match table.service.as_ref().map(|service| service.0) {
        None => return Err(lacks("service", Service::EXPECTED)),
        Some(Service::Echo) => {
            if let Some((setting, place)) = table.first_of_a_proxy() {
                let what = format!(
                    "{setting} is a setting of a proxy, expected service = \"proxy\" and not \
                    \"echo\""
                );
                return Err(ConfigError::at(place, what));
            }
            ServiceConfig::Echo
        }
        Some(Service::Proxy) => {
            let list = table.upstreams.take();
            let list = list.ok_or_else(|| {
                lacks("upstreams", "some, as in upstreams = [\"127.0.0.1:9000\"]")
            })?;
            if let Some(networks) = &table.accept_proxy_header_from {
                meet_clients(networks, &config.address)?;
            }
            ServiceConfig::Proxy(Box::new(proxy(upstreams(list)?, table)?))
        }
    };
    Ok(CheckedListener { name: parsed, config, service, upstream_places })
}

fn upstreams(list: Spanned<List<UpstreamTarget>>) -> Result<Upstreams, ConfigError> {
    let place = list.span().start;
    let mut seen = HashSet::new();
    for upstream in &list.get_ref().0 {
        let address = &upstream.get_ref().0;
        if !seen.insert(address) {
            let what = format!("the upstream {address} is there twice, expected each once");
            return Err(ConfigError::at(upstream.span().start, what));
        }
    }
    let list = list.into_inner().0.into_iter().map(inner).collect();
    Upstreams::new(list)
        .map_err(|error| ConfigError::at(place, format!("{error}, expected at least one")))
}

/// Checks that clients from at least one of the networks can reach the listener's address. If none
/// can, the network setting is a mistake, and the proxy would forward PROXY headers to the upstream
/// as data.
fn meet_clients(networks: &Spanned<List<Network>>, address: &Address) -> Result<(), ConfigError> {
    let listens_on_unix = match address {
        Address::Tcp(_) | Address::Tcp6Only(_) => false,
        Address::UnixPath(_) | Address::UnixAbstract(_) => true,
    };
    let all = &networks.get_ref().0;
    if all.is_empty() || all.iter().any(|one| one.get_ref().0.is_unix() == listens_on_unix) {
        return Ok(());
    }
    let what = if listens_on_unix {
        "clients of a Unix socket have no address, expected \"unix\" among these networks"
    } else {
        "no client of this address comes by a Unix socket, expected a network of IP addresses"
    };
    Err(ConfigError::at(networks.span().start, what))
}

/// Returns the proxy settings of the table, with defaults for the settings that it omits.
fn proxy(upstreams: Upstreams, table: ListenerTable) -> Result<ProxyConfig, ConfigError> {
    let default = ProxyConfig::to(upstreams);
    let alone = |place: usize, setting: &str, other: &str| {
        Err(ConfigError::at(
            place,
            format!("{setting} says nothing alone, expected {other} beside it"),
        ))
    };
    if let (Some(timeout), None) = (&table.proxy_header_timeout, &table.accept_proxy_header_from) {
        return alone(timeout.span().start, "proxy_header_timeout", "accept_proxy_header_from");
    }
    let check = match (table.check_interval, table.check_timeout) {
        (None, None) => None,
        (None, Some(timeout)) => {
            return alone(timeout.span().start, "check_timeout", "check_interval");
        }
        (Some(interval), timeout) => {
            Some(Check { interval: inner(interval), timeout: timeout.map_or(CHECK_TIMEOUT, inner) })
        }
    };
    Ok(ProxyConfig {
        resolve_interval: table.resolve_interval.map_or(default.resolve_interval, inner),
        balance: table.balance.map_or(default.balance, inner),
        connect_timeout: table.connect_timeout.map_or(default.connect_timeout, inner),
        connect_patience: table.connect_patience.map_or(default.connect_patience, inner),
        idle_timeout: table.idle_timeout.map(inner),
        lifetime: table.lifetime.map(inner),
        send_header: table.send_proxy_header.map(inner),
        accept_header_from: table
            .accept_proxy_header_from
            .map_or_else(Vec::new, |list| list.into_inner().0.into_iter().map(inner).collect()),
        header_timeout: table.proxy_header_timeout.map_or(default.header_timeout, inner),
        keep_alive: table.keep_alive.map(inner),
        user_timeout: table.user_timeout.map(inner),
        ejection: Ejection {
            failures: table.eject_after.map_or(default.ejection.failures, inner),
            time: table.eject_for.map_or(default.ejection.time, inner),
        },
        check,
        upstreams: default.upstreams,
    })
}

fn inner<K: Kind>(value: Spanned<As<K>>) -> K::Value {
    value.into_inner().0
}
