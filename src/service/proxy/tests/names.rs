//! Tests of upstreams that are configured by host name. The tests control the DNS answers.

use std::sync::Mutex;

use tokio::task::JoinSet;

use super::*;
use crate::config::{Balance, Ejection};
use crate::service::proxy::resolver::Resolver;

const NAME: &str = "backend.test:9";

/// The answer that the resolver gives to all later lookups.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Option<Vec<SocketAddr>>>>);

impl Answers {
    fn are(&self, addresses: &[SocketAddr]) {
        *self.0.lock().unwrap() = Some(addresses.to_vec());
    }

    fn fail(&self) {
        *self.0.lock().unwrap() = None;
    }

    /// Creates a proxy whose upstream is [`NAME`]. The proxy resolves this name every 5 ms.
    fn proxy(&self, set: impl FnOnce(&mut ProxyConfig)) -> Arc<Proxy> {
        let mut config =
            ProxyConfig::to(crate::config::Upstreams::new(vec![NAME.parse().unwrap()]).unwrap());
        config.resolve_interval = Duration::from_millis(5);
        set(&mut config);
        let answers = self.clone();
        let resolve = move |_: &_| {
            answers.0.lock().unwrap().clone().ok_or_else(|| Error::other("no such name"))
        };
        Arc::new(Proxy { resolver: Resolver::new(resolve), ..Proxy::new(config) })
    }
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap()
}

fn counters(front: &Front, upstream: &str) -> Option<UpstreamCounters> {
    front.proxy.upstreams().get("web")?.get(upstream).copied()
}

/// Keeps the addresses of the host names up to date, in a task that ends with the test.
fn watch(proxy: &Arc<Proxy>) -> JoinSet<()> {
    let (mut tasks, proxy) = (JoinSet::new(), Arc::clone(proxy));
    tasks.spawn(async move { match proxy.watch().await {} });
    tasks
}

/// After a DNS change, new clients are connected to the new address. Existing connections stay
/// open.
#[tokio::test]
async fn new_clients_go_where_the_name_leads_and_old_ones_stay() {
    let (old, new, answers) = (listen().await, listen().await, Answers::default());
    answers.are(&[address(&old)]);
    let proxy = answers.proxy(|_| {});
    assert!(proxy.resolve().await);
    let front = Front::of(Arc::clone(&proxy)).await;
    let (mut first, mut server) = front.pair(&old).await;
    answers.are(&[address(&new)]);
    let _watch = watch(&proxy);
    let [old_name, new_name] = [&old, &new].map(|upstream| format!("{NAME}/{}", address(upstream)));
    becomes(|| counters(&front, &new_name).is_some()).await;
    let (mut second, mut other) = front.pair(&new).await;
    assert_linked(&mut second, &mut other).await;
    assert_linked(&mut first, &mut server).await;
    assert_eq!(counters(&front, &old_name).unwrap().active, 1);
    drop((first, server));
    // Once the connections to the removed address have ended, only the host name's counters include
    // them.
    becomes(|| counters(&front, &old_name).is_none()).await;
    let sums = counters(&front, NAME).unwrap();
    assert_eq!((sums.connected, sums.active, sums.sent, sums.received), (1, 0, 7, 5));
    assert_eq!(counters(&front, &new_name).unwrap().connected, 1);
}

/// A host name that stops resolving keeps the addresses of its last successful lookup.
#[tokio::test]
async fn a_name_that_does_not_resolve_any_more_keeps_its_addresses() {
    let (upstream, answers) = (listen().await, Answers::default());
    let proxy = answers.proxy(|_| {});
    assert!(!proxy.resolve().await);
    answers.are(&[address(&upstream)]);
    assert!(proxy.resolve().await);
    answers.fail();
    for _ in 0..3 {
        assert!(proxy.resolve().await);
    }
    answers.are(&[]);
    assert!(proxy.resolve().await, "a name without addresses does not resolve");
    let front = Front::of(proxy).await;
    front.proxy.expect("web");
    let (mut client, mut server) = front.pair(&upstream).await;
    assert_linked(&mut client, &mut server).await;
    assert_eq!(counters(&front, NAME).unwrap().resolve_failures, 5);
}

/// The name server returns an address again. The address keeps its position, and stays ejected if
/// it was.
#[tokio::test]
async fn an_address_that_stays_keeps_its_place_and_its_failures() {
    let (away, stays, comes, answers) =
        (nobody().await, listen().await, listen().await, Answers::default());
    let proxy = answers.proxy(|config| {
        config.balance = Balance::InOrder;
        config.ejection = Ejection { failures: 1, time: Duration::from_secs(3600) };
    });
    answers.are(&[away, address(&stays)]);
    assert!(proxy.resolve().await);
    let front = Front::of(Arc::clone(&proxy)).await;
    drop(front.pair(&stays).await);
    answers.are(&[address(&comes), address(&stays), away]);
    assert!(proxy.resolve().await);
    let labels: Vec<_> =
        proxy.upstreams.current().iter().map(|upstream| upstream.label().to_owned()).collect();
    assert_eq!(
        labels,
        [away, address(&stays), address(&comes)].map(|address| format!("{NAME}/{address}"))
    );
    drop(front.pair(&stays).await);
    let failed = counters(&front, &labels[0]).unwrap();
    assert_eq!((failed.failed, failed.ejected), (1, 1), "the upstream was tried again");
    // After the host name loses an address, the failures of that address count under the host name.
    answers.are(&[address(&stays)]);
    assert!(proxy.resolve().await);
    assert_eq!(counters(&front, &labels[0]), None);
    let sums = counters(&front, NAME).unwrap();
    assert_eq!((sums.failed, sums.ejected), (1, 1));
}

/// If a configured address also belongs to a configured host name, the proxy uses the address only
/// once.
#[tokio::test]
async fn an_address_that_is_configured_is_there_once() {
    let (upstream, answers) = (listen().await, Answers::default());
    let proxy = answers.proxy(|config| {
        let own = address(&upstream).to_string().parse().unwrap();
        config.upstreams = crate::config::Upstreams::new(vec![NAME.parse().unwrap(), own]).unwrap();
    });
    answers.are(&[address(&upstream)]);
    assert!(proxy.resolve().await);
    let labels: Vec<_> =
        proxy.upstreams.current().iter().map(|upstream| upstream.label().to_owned()).collect();
    assert_eq!(labels, [address(&upstream).to_string()]);
}

#[tokio::test]
async fn a_client_is_held_until_a_name_resolves() {
    let (upstream, answers) = (listen().await, Answers::default());
    let proxy = answers.proxy(|config| config.connect_patience = DEADLINE);
    let front = Front::of(Arc::clone(&proxy)).await;
    let _watch = watch(&proxy);
    let mut client = front.connect().await;
    becomes(|| proxy.upstreams.names().all(|name| name.failures() > 2)).await;
    answers.are(&[address(&upstream)]);
    assert_linked(&mut client, &mut accept(&upstream).await).await;
}

/// Health checks start for new addresses of a host name, and stop for removed addresses.
#[tokio::test]
async fn checks_follow_the_addresses_of_a_name() {
    let (old, new, answers) = (listen().await, listen().await, Answers::default());
    answers.are(&[address(&old)]);
    let proxy = answers.proxy(|config| {
        config.check =
            Some(crate::config::Check { interval: Duration::from_millis(5), timeout: DEADLINE });
    });
    let _watch = watch(&proxy);
    drop(accept(&old).await);
    answers.are(&[address(&new)]);
    drop(accept(&new).await);
    // The checks of the old address stop: after some time no more connections arrive there.
    timeout(DEADLINE, async { while timeout(SOON, old.accept()).await.is_ok() {} }).await.unwrap();
    drop(accept(&new).await);
}
