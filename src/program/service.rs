//! This module serves the connections that this process accepts itself. It forwards them to a
//! program with a private address, and serves the listeners that do not belong to the program.

use std::collections::BTreeMap;
use std::io;

use crate::address::Address;
use crate::config::{ListenerName, ProgramConfig, ProxyConfig, Upstreams};
use crate::error::Error;
use crate::report::UpstreamCounters;
use crate::service::{Connection, Proxy, Service};

/// A service that forwards connections to a program, which listens on a private address. Another
/// service serves the listeners that do not belong to the program.
///
/// A forwarded connection never moves to a new process, because only the program knows its state.
#[derive(Debug)]
pub(crate) struct ProgramService<S> {
    /// The proxy that forwards connections to the program. `None` if the program only inherits the
    /// listeners and accepts connections itself.
    proxy: Option<Proxy>,
    others: S,
    other_listeners: Vec<ListenerName>,
    /// The private address of each instance.
    private: Vec<Option<Address>>,
}

impl<S> ProgramService<S> {
    /// Creates a service that forwards connections through `proxy`, and serves `other_listeners`
    /// with `others`.
    pub(super) fn new(
        proxy: Option<ProxyConfig>,
        others: S,
        other_listeners: Vec<ListenerName>,
        private: Vec<Option<Address>>,
    ) -> Self {
        Self { proxy: proxy.map(Proxy::new), others, other_listeners, private }
    }

    /// Returns the name of the instance with the private address `upstream`, for use in counters.
    /// The address is different in each generation. If counters contained the address, each handoff
    /// would add new counters.
    fn instance(&self, upstream: String) -> String {
        let is_at = |address: &Option<Address>| {
            address.as_ref().is_some_and(|address| address.to_string() == upstream)
        };
        let number = self.private.iter().position(is_at);
        number.map_or(upstream, |number| format!("instance-{number}"))
    }
}

impl<S: Service> Service for ProgramService<S> {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        let is_other = contains(&self.other_listeners, connection.listener());
        match &self.proxy {
            Some(proxy) if !is_other => proxy.serve(connection).await,
            // Box this future, because it would otherwise enlarge the future of every connection.
            _ => Box::pin(self.others.serve(connection)).await,
        }
    }

    fn proxy(&self, listener: &str) -> Option<&Proxy> {
        self.proxy.as_ref().filter(|_| !contains(&self.other_listeners, listener))
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        let mut all = self.others.upstreams();
        for (listener, upstreams) in self.proxy.iter().flat_map(Proxy::upstreams) {
            let named = upstreams.into_iter().map(|(name, one)| (self.instance(name), one));
            all.insert(listener, named.collect());
        }
        all
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        let mut all = self.others.header_errors();
        all.extend(self.proxy.as_ref().map(Proxy::header_errors).unwrap_or_default());
        all
    }
}

/// Returns whether a listener is one of `names`.
pub(super) fn contains(names: &[ListenerName], listener: &str) -> bool {
    names.iter().any(|name| name.as_str() == listener)
}

/// Returns the proxy settings for a program with these private addresses.
pub(super) fn proxy(
    program: &ProgramConfig,
    private: &[Option<Address>],
) -> Result<ProxyConfig, Error> {
    let upstreams = Upstreams::new(private.iter().flatten().cloned().map(Into::into).collect())?;
    Ok(ProxyConfig { upstreams, ..(*program.relay).clone() })
}
