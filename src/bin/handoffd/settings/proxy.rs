//! The settings of a proxy. Each is both a key of a table `[listener.NAME]` and a flag of the
//! command `proxy`.

use std::collections::HashSet;

use clap::Args;
use handoffd::listen::Address;
use handoffd::proxy::{Check, ProxyConfig, UpstreamTarget, Upstreams};
use serde::Deserialize;

use super::kinds::{Failures, Wait};
use super::mistake::{Mistake, SettingSource};
use super::relay::RelaySettings;
use super::value::{Given, list, set, value};

/// The settings of a proxy. A field that is `None` was not given. `relay` and `health` are read
/// separately from the other fields, because `serde(flatten)` loses the positions of the values.
///
/// Each field declares both a key of the file and a flag. The key has the field's name, and the
/// flag has the same name with dashes. The field's comment is the help text, which ends with the
/// default. `docs/handoffd.toml` explains each setting.
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

    #[command(flatten)]
    #[serde(skip)]
    pub(super) relay: RelaySettings,

    #[command(flatten)]
    #[serde(skip)]
    pub(super) health: HealthSettings,
}

/// The settings of a proxy for the detection of failing upstreams.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HealthSettings {
    /// How many failures in a row make the proxy skip an upstream; 0 means never [default: 3]
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
        if let (Some(timeout), None) = (&self.health.check_timeout, &self.health.check_interval) {
            return Err(source.needs_other(timeout, "check_timeout", "check_interval"));
        }
        let mut config = ProxyConfig::to(upstreams(self.upstreams.unwrap_or_default())?);
        set(&mut config.resolve_interval, self.resolve_interval);
        self.relay.apply(&mut config, source, addresses)?;
        self.health.apply(&mut config);
        Ok(config)
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
        let what = format!("the upstream {} is given twice, expected only once", second.value);
        return Err(Mistake::at(second.offset, what));
    }
    let upstreams = Upstreams::new(list.into_iter().map(|upstream| upstream.value).collect());
    upstreams.map_err(|error| Mistake::at(None, error.to_string()))
}
