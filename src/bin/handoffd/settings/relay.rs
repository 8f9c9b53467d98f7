//! The settings of forwarded connections, for a proxy and for a program with a private address.
//! Each is a key of a table `[listener.NAME]` or `[program]`, and a flag of the commands `proxy`
//! and `run`.

use clap::Args;
use handoffd::listen::Address;
use handoffd::proxy::{Balance, HeaderVersion, Network, ProxyConfig};
use serde::Deserialize;

use super::kinds::{KeepAlive, Time, UserTimeout, Wait};
use super::mistake::{Mistake, SettingSource};
use super::value::{Given, list, set, value};

/// The settings of forwarded connections. A field that is `None` was not given.
///
/// Each field declares both a key of the file and a flag. The key has the field's name, and the
/// flag has the same name with dashes. The field's comment is the help text, which ends with the
/// default. `docs/handoffd.toml` explains each setting.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RelaySettings {
    /// Which upstream is tried first: round-robin, least-connections or in-order
    /// [default: round-robin]
    #[arg(long, value_name = "ORDER")]
    balance: Option<Given<Balance>>,

    /// How long one upstream may take to accept a connection [default: 5s]
    #[arg(long, value_name = "TIME")]
    connect_timeout: Option<Given<Wait>>,

    /// How long a client waits while no upstream accepts it [default: 10s; of a program: 1h]
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

    /// How long a connection may be silent before the kernel sends probes [default: never]
    #[arg(long, value_name = "TIME")]
    keep_alive: Option<Given<KeepAlive>>,

    /// How long the client or the upstream may leave data unacknowledged before the kernel ends the
    /// connection [default: the default of the kernel, about 15 minutes]
    #[arg(long, value_name = "TIME")]
    user_timeout: Option<Given<UserTimeout>>,
}

impl RelaySettings {
    /// Applies these settings to a proxy whose listeners have these addresses.
    pub(super) fn apply(
        self,
        config: &mut ProxyConfig,
        source: SettingSource,
        addresses: &[&Address],
    ) -> Result<(), Mistake> {
        if let (Some(timeout), None) = (&self.proxy_header_timeout, &self.accept_proxy_header_from)
        {
            return Err(source.needs_other(
                timeout,
                "proxy_header_timeout",
                "accept_proxy_header_from",
            ));
        }
        let networks = self.accept_proxy_header_from.unwrap_or_default();
        check_networks(&networks, addresses)?;
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
        Ok(())
    }

    /// Returns the name and the position of the first forwarding setting that was given, if any.
    pub(super) fn first_given(&self) -> Option<(&'static str, Option<usize>)> {
        let place = |given: &Given<Wait>| given.offset;
        let networks = self.accept_proxy_header_from.as_deref();
        let all = [
            ("balance", self.balance.as_ref().map(|given| given.offset)),
            ("connect_timeout", self.connect_timeout.as_ref().map(place)),
            ("connect_patience", self.connect_patience.as_ref().map(|given| given.offset)),
            ("idle_timeout", self.idle_timeout.as_ref().map(place)),
            ("lifetime", self.lifetime.as_ref().map(place)),
            ("send_proxy_header", self.send_proxy_header.as_ref().map(|given| given.offset)),
            (
                "accept_proxy_header_from",
                networks.map(|list| list.first().and_then(|network| network.offset)),
            ),
            ("proxy_header_timeout", self.proxy_header_timeout.as_ref().map(place)),
            ("keep_alive", self.keep_alive.as_ref().map(|given| given.offset)),
            ("user_timeout", self.user_timeout.as_ref().map(|given| given.offset)),
        ];
        all.into_iter().find_map(|(name, given)| Some((name, given?)))
    }
}

/// Checks that clients from at least one of the networks can reach one of the addresses. Otherwise
/// the setting is a mistake, because the proxy would forward PROXY headers to the upstream as data.
fn check_networks(networks: &[Given<Network>], addresses: &[&Address]) -> Result<(), Mistake> {
    let reach = |network: &Given<Network>| {
        addresses.iter().any(|address| address.is_unix() == network.value.is_unix())
    };
    let Some(first) = networks.first().filter(|_| !addresses.is_empty()) else { return Ok(()) };
    if networks.iter().any(reach) {
        return Ok(());
    }
    let what = if addresses.iter().all(|address| address.is_unix()) {
        "clients of a Unix socket have no IP address, expected \"unix\" among these networks"
    } else {
        "this proxy does not listen on a Unix socket, expected a network of IP addresses"
    };
    Err(Mistake::at(first.offset, what))
}
