//! The settings of a proxy. Each is both a key of a table `[listener.NAME]` and a flag of the
//! command `proxy`.

use std::collections::HashSet;

use clap::Args;
use handoffd::listen::Address;
use handoffd::proxy::{
    Balance, Check, HeaderVersion, Network, ProxyConfig, UpstreamTarget, Upstreams,
};
use serde::Deserialize;

use super::kinds::{Failures, KeepAlive, Time, UserTimeout, Wait};
use super::mistake::{Mistake, SettingSource};
use super::value::{Given, list, set, value};

/// The settings of a proxy. A field that is `None` was not given.
///
/// Each field declares both a key and a flag. The key has the field's name, and the flag has the
/// same name with dashes. The field's comment is the help text, which ends with the default.
/// `docs/handoffd.toml` explains each setting.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProxySettings {
    /// Forward connections to this upstream; if given several times, to each in turn.
    ///
    /// ADDRESS is IP:PORT, [IPV6]:PORT, HOST:PORT, /PATH or @NAME (abstract). A host name stands
    /// for all its addresses.
    #[arg(id = "upstreams", long = "to", value_name = "ADDRESS", required = true)]
    #[serde(deserialize_with = "list")]
    pub(super) upstreams: Option<Vec<Given<UpstreamTarget>>>,

    /// How often host names of upstreams are resolved [default: 30s]
    #[arg(long, value_name = "TIME")]
    resolve_interval: Option<Given<Wait>>,

    /// Which upstream is tried first: round-robin, least-connections or in-order
    /// [default: round-robin]
    #[arg(long, value_name = "ORDER")]
    balance: Option<Given<Balance>>,

    /// How long one upstream may take to accept a connection [default: 5s]
    #[arg(long, value_name = "TIME")]
    connect_timeout: Option<Given<Wait>>,

    /// How long a client waits while no upstream accepts [default: 10s]
    #[arg(long, value_name = "TIME")]
    connect_patience: Option<Given<Time>>,

    /// Close a connection that has been idle for this long [default: never]
    #[arg(long, value_name = "TIME")]
    idle_timeout: Option<Given<Wait>>,

    /// Close a connection that is older than this [default: never]
    #[arg(long, value_name = "TIME")]
    lifetime: Option<Given<Wait>>,

    /// Send the client's address to the upstream in a PROXY header: v1 or v2 [default: no
    /// header]
    #[arg(long, value_name = "VERSION")]
    send_proxy_header: Option<Given<HeaderVersion>>,

    /// Expect a PROXY header from clients in this network, or from all clients of a Unix socket
    /// (unix); may be given several times [default: none]
    #[arg(long, value_name = "NETWORK")]
    #[serde(deserialize_with = "list")]
    accept_proxy_header_from: Option<Vec<Given<Network>>>,

    /// How long a client may take to send its PROXY header [default: 3s]
    #[arg(long, value_name = "TIME")]
    proxy_header_timeout: Option<Given<Wait>>,

    /// How long a peer may be silent before the kernel probes it [default: never]
    #[arg(long, value_name = "TIME")]
    keep_alive: Option<Given<KeepAlive>>,

    /// How long sent data may stay unacknowledged [default: the default of the
    /// kernel, about 15 minutes]
    #[arg(long, value_name = "TIME")]
    user_timeout: Option<Given<UserTimeout>>,

    #[command(flatten)]
    #[serde(skip)]
    pub(super) health: HealthSettings,
}

/// The settings of a proxy for the detection of failing upstreams. They are parsed separately from
/// [`ProxySettings`], because `serde(flatten)` loses the positions of the values.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HealthSettings {
    /// After how many failures in a row an upstream is skipped for a while; 0: never [default: 3]
    #[arg(long, value_name = "COUNT")]
    eject_after: Option<Given<Failures>>,

    /// How long a failing upstream is skipped [default: 10s]
    #[arg(long, value_name = "TIME")]
    eject_for: Option<Given<Wait>>,

    /// How often a health check connects to each upstream [default: no health checks]
    #[arg(long, value_name = "TIME")]
    check_interval: Option<Given<Wait>>,

    /// How long a health check may take [default: 2s]
    #[arg(long, value_name = "TIME")]
    check_timeout: Option<Given<Wait>>,
}

impl ProxySettings {
    /// Returns the configuration of a proxy whose listeners have these addresses.
    pub(super) fn into_config(
        self,
        source: SettingSource,
        addresses: &[&Address],
    ) -> Result<ProxyConfig, Mistake> {
        self.check_pairs(source)?;
        let networks = self.accept_proxy_header_from.unwrap_or_default();
        check_networks(&networks, addresses)?;
        let mut config = ProxyConfig::to(upstreams(self.upstreams.unwrap_or_default())?);
        set(&mut config.resolve_interval, self.resolve_interval);
        set(&mut config.balance, self.balance);
        set(&mut config.connect_timeout, self.connect_timeout);
        set(&mut config.connect_patience, self.connect_patience);
        config.idle_timeout = value(self.idle_timeout);
        config.lifetime = value(self.lifetime);
        config.send_header = value(self.send_proxy_header);
        config.accept_header_from = networks.into_iter().map(|network| network.value).collect();
        set(&mut config.header_timeout, self.proxy_header_timeout);
        config.keep_alive = value(self.keep_alive);
        config.user_timeout = value(self.user_timeout);
        self.health.apply(&mut config);
        Ok(config)
    }

    /// Checks that no setting is given without the other setting that it depends on.
    fn check_pairs(&self, source: SettingSource) -> Result<(), Mistake> {
        let alone = |timeout: &Given<Wait>, setting, other| {
            let (setting, other) = (source.name(setting), source.name(other));
            let what = format!("{setting} has no effect alone, expected {other} as well");
            Err(Mistake::at(timeout.offset, what))
        };
        if let (Some(timeout), None) = (&self.proxy_header_timeout, &self.accept_proxy_header_from)
        {
            return alone(timeout, "proxy_header_timeout", "accept_proxy_header_from");
        }
        if let (Some(timeout), None) = (&self.health.check_timeout, &self.health.check_interval) {
            return alone(timeout, "check_timeout", "check_interval");
        }
        Ok(())
    }
}

impl HealthSettings {
    fn apply(self, config: &mut ProxyConfig) {
        set(&mut config.ejection.failures, self.eject_after);
        set(&mut config.ejection.time, self.eject_for);
        config.check = value(self.check_interval).map(Check::every);
        if let (Some(check), Some(timeout)) = (&mut config.check, self.check_timeout) {
            check.timeout = timeout.value;
        }
    }
}

fn upstreams(list: Vec<Given<UpstreamTarget>>) -> Result<Upstreams, Mistake> {
    let mut seen = HashSet::new();
    if let Some(second) = list.iter().find(|upstream| !seen.insert(&upstream.value)) {
        let what = format!("the upstream {} is given twice, expected each once", second.value);
        return Err(Mistake::at(second.offset, what));
    }
    let upstreams = Upstreams::new(list.into_iter().map(|upstream| upstream.value).collect());
    upstreams.map_err(|error| Mistake::at(None, error.to_string()))
}

/// Checks that clients from at least one of the networks can reach one of the addresses. If none of
/// them can, the setting is a mistake, and the proxy would forward PROXY headers to the upstream as
/// data.
fn check_networks(networks: &[Given<Network>], addresses: &[&Address]) -> Result<(), Mistake> {
    let reach = |network: &Given<Network>| {
        addresses.iter().any(|address| address.is_unix() == network.value.is_unix())
    };
    let Some(first) = networks.first().filter(|_| !addresses.is_empty()) else { return Ok(()) };
    if networks.iter().any(reach) {
        return Ok(());
    }
    let what = if addresses.iter().all(|address| address.is_unix()) {
        "clients of a Unix socket have no address, expected \"unix\" among these networks"
    } else {
        "no client connects to a Unix socket here, expected a network of IP addresses"
    };
    Err(Mistake::at(first.offset, what))
}
