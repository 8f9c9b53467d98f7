//! The routing service. For each listener, it calls the service that the configuration names.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::task::Poll;

use handoffd::carry::{CarriedState, Declined};
use handoffd::listen::ListenerName;
use handoffd::proxy::Proxy;
use handoffd::status::UpstreamCounters;
use handoffd::{Connection, Echo, Service};

/// A service that is part of handoffd.
#[derive(Debug)]
pub(crate) enum BuiltinService {
    /// The echo service, which sends back the bytes that the client sends.
    Echo(Echo),
    /// The proxy service, which forwards connections to upstreams.
    Proxy(Box<Proxy>),
}

/// The service of each named listener, and a default service for all other listeners.
#[derive(Debug)]
pub(crate) struct Routes {
    named: HashMap<String, BuiltinService>,
    others: BuiltinService,
}

impl Routes {
    /// Creates routes that use the service `served` for every listener.
    pub(crate) fn all(served: BuiltinService) -> Self {
        Self { named: HashMap::new(), others: served }
    }

    /// Uses the service `served` for the listener `name`, instead of the default service.
    pub(crate) fn with(mut self, name: &ListenerName, served: BuiltinService) -> Self {
        if let BuiltinService::Proxy(proxy) = &served {
            proxy.expect(name.as_str());
        }
        self.named.insert(name.as_str().to_owned(), served);
        self
    }

    /// Resolves the host names of all upstreams once, in parallel, within 5 s. Returns whether
    /// every proxy has at least one upstream address.
    pub(crate) async fn resolve(&self) -> bool {
        let mut lookups: Vec<_> = self.proxies().map(|proxy| Box::pin(proxy.resolve())).collect();
        let mut all_have_some = true;
        poll_fn(|cx| {
            lookups.retain_mut(|lookup| match lookup.as_mut().poll(cx) {
                Poll::Ready(has_some) => {
                    all_have_some &= has_some;
                    false
                }
                Poll::Pending => true,
            });
            if lookups.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        all_have_some
    }

    /// Keeps the DNS answers of all proxies up to date, and runs their health checks. Never
    /// returns. Dropping the future stops both tasks.
    pub(crate) async fn watch(&self) -> Infallible {
        let proxies = self.proxies();
        let mut watches: Vec<_> = proxies.map(|proxy| Box::pin(proxy.watch())).collect();
        poll_fn(|cx| {
            for watch in &mut watches {
                if let Poll::Ready(never) = watch.as_mut().poll(cx) {
                    return Poll::Ready(never);
                }
            }
            Poll::Pending
        })
        .await
    }

    fn on(&self, listener: &str) -> &BuiltinService {
        self.named.get(listener).unwrap_or(&self.others)
    }

    fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.named.values().chain([&self.others]).filter_map(|served| match served {
            BuiltinService::Proxy(proxy) => Some(&**proxy),
            BuiltinService::Echo(_) => None,
        })
    }
}

impl Service for Routes {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        match self.on(connection.listener()) {
            BuiltinService::Echo(echo) => echo.serve(connection).await,
            BuiltinService::Proxy(proxy) => proxy.serve(connection).await,
        }
    }

    fn proxy(&self, listener: &str) -> Option<&Proxy> {
        match self.on(listener) {
            BuiltinService::Proxy(proxy) => Some(proxy),
            BuiltinService::Echo(_) => None,
        }
    }

    fn carries(&self, listener: &str) -> bool {
        match self.on(listener) {
            BuiltinService::Echo(echo) => echo.carries(listener),
            BuiltinService::Proxy(proxy) => proxy.carries(listener),
        }
    }

    fn accepts(&self, listener: &str, saved_state: &CarriedState) -> Result<(), Declined> {
        match self.on(listener) {
            BuiltinService::Echo(echo) => echo.accepts(listener, saved_state),
            BuiltinService::Proxy(proxy) => proxy.accepts(listener, saved_state),
        }
    }

    fn upstreams(&self) -> BTreeMap<String, BTreeMap<String, UpstreamCounters>> {
        // Entries never overwrite each other, because only one proxy counts the clients of a
        // listener.
        self.proxies().flat_map(Proxy::upstreams).collect()
    }

    fn header_errors(&self) -> BTreeMap<String, u64> {
        self.proxies().flat_map(Proxy::header_errors).collect()
    }
}
