//! Tests of load balancing between upstreams, and of their ejection.

use super::super::upstream::UpstreamLoad;
use super::*;
use std::io::{Error, ErrorKind, Read, Seek};

fn upstreams(count: usize, balance: Balance, ejection: Ejection) -> UpstreamPool {
    let addresses = (0..count).map(|number| format!("@upstream-{number}").parse().unwrap());
    let addresses = crate::config::Upstreams::new(addresses.collect()).unwrap();
    UpstreamPool::new(&ProxyConfig { balance, ejection, ..ProxyConfig::to(addresses) })
}

/// Returns the indices of the upstreams in the order in which one client would try them.
fn offered(upstreams: &UpstreamPool) -> Vec<usize> {
    let mut round = upstreams.round();
    while let Some(upstream) = upstreams.choose(&round) {
        round.tried(&upstream);
    }
    let place =
        |one: &Arc<Upstream>| round.all.iter().position(|other| Arc::ptr_eq(one, other)).unwrap();
    round.tried.iter().map(place).collect()
}

fn at(upstreams: &UpstreamPool, index: usize) -> Arc<Upstream> {
    Arc::clone(&upstreams.current()[index])
}

fn fail(upstreams: &UpstreamPool, index: usize, times: usize) {
    for _ in 0..times {
        upstreams.failed(&at(upstreams, index), "web", &Error::from(ErrorKind::ConnectionRefused));
    }
}

const LONG: Ejection = Ejection { failures: 2, time: Duration::from_secs(3600) };

/// Round robin starts at the next upstream for each client, and tries every upstream once.
#[test]
fn round_robin_offers_each_upstream_once() {
    let upstreams = upstreams(3, Balance::RoundRobin, LONG);
    assert_eq!(offered(&upstreams), [0, 1, 2]);
    assert_eq!(offered(&upstreams), [1, 2, 0]);
    assert_eq!(offered(&upstreams), [2, 0, 1]);
}

/// The proxy tries the upstream with the fewest connections first. Upstreams with equally many
/// connections take turns.
#[test]
fn the_upstream_with_the_fewest_connections_is_first() {
    let upstreams = upstreams(3, Balance::LeastConnections, LONG);
    let places: Vec<_> =
        [0, 0, 1, 2, 2, 2].map(|index| UpstreamLoad::take(&at(&upstreams, index))).into();
    assert_eq!(offered(&upstreams), [1, 0, 2]);
    drop(places);
    let first: Vec<_> = (0..3).map(|_| offered(&upstreams)[0]).collect();
    assert_ne!(first[0], first[1]);
    assert_ne!(first[1], first[2]);
}

/// With `in-order` balancing, later upstreams are standbys. The proxy tries a standby first only
/// while all earlier upstreams are ejected.
#[test]
fn standbys_are_first_only_while_others_are_ejected() {
    let upstreams = upstreams(3, Balance::InOrder, LONG);
    assert_eq!(offered(&upstreams), [0, 1, 2]);
    assert_eq!(offered(&upstreams), [0, 1, 2]);
    fail(&upstreams, 0, 2);
    assert_eq!(offered(&upstreams), [1, 2]);
    upstreams.succeeded(&at(&upstreams, 0), "web");
    assert_eq!(offered(&upstreams), [0, 1, 2]);
}

/// The proxy ejects an upstream after the configured number of failures in a row. It uses the
/// upstream again after the ejection time.
#[test]
fn consecutive_failures_eject_an_upstream_for_a_while() {
    let ejection = Ejection { failures: 2, time: Duration::from_millis(20) };
    let upstreams = upstreams(2, Balance::InOrder, ejection);
    fail(&upstreams, 0, 1);
    upstreams.succeeded(&at(&upstreams, 0), "web");
    fail(&upstreams, 0, 1);
    assert_eq!(offered(&upstreams), [0, 1], "the failures are not consecutive");
    fail(&upstreams, 0, 1);
    let since = Instant::now();
    fail(&upstreams, 0, 1);
    assert_eq!((offered(&upstreams), at(&upstreams, 0).ejected()), (vec![1], 1));
    while offered(&upstreams) != [0, 1] {
        assert!(since.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
    assert!(since.elapsed() >= Duration::from_millis(19), "{:?}", since.elapsed());
    // One more failure ejects the upstream again, because the end of the ejection does not reset
    // the number of failures.
    fail(&upstreams, 0, 1);
    assert_eq!((offered(&upstreams), at(&upstreams, 0).ejected()), (vec![1], 2));
}

/// If all upstreams are ejected, the proxy starts with the upstream whose ejection ends first.
#[test]
fn ejected_upstreams_are_tried_in_order_of_their_return() {
    let upstreams = upstreams(3, Balance::RoundRobin, LONG);
    for index in [2, 0, 1] {
        fail(&upstreams, index, 2);
        let now = upstreams.now();
        while upstreams.now() == now {
            std::thread::yield_now();
        }
    }
    assert_eq!(offered(&upstreams), [2, 0, 1]);
    assert_eq!(offered(&upstreams), [2, 0, 1]);
}

/// If the configured number of failures is 0, the proxy never ejects an upstream.
#[test]
fn with_zero_failures_no_upstream_is_ejected() {
    let upstreams = upstreams(2, Balance::InOrder, Ejection { failures: 0, ..LONG });
    fail(&upstreams, 0, 100);
    assert_eq!(offered(&upstreams), [0, 1]);
}

/// A failed health check ejects an upstream until a check succeeds. A client that connects in
/// between does not end the ejection.
#[test]
fn a_failed_check_ejects_until_a_check_passes() {
    let upstreams = upstreams(2, Balance::InOrder, LONG);
    upstreams.check_failed(&at(&upstreams, 0), "web", &Error::from(ErrorKind::TimedOut));
    upstreams.check_failed(&at(&upstreams, 0), "web", &Error::from(ErrorKind::TimedOut));
    assert_eq!((offered(&upstreams), at(&upstreams, 0).ejected()), (vec![1], 1));
    upstreams.succeeded(&at(&upstreams, 0), "web");
    assert_eq!(offered(&upstreams), [1], "a successful client does not end a failed check");
    upstreams.check_passed(&at(&upstreams, 0), "web");
    assert_eq!(offered(&upstreams), [0, 1]);
}

/// The log has one record when an upstream becomes unavailable, and one when it is available again.
#[test]
fn an_outage_and_its_end_are_logged_once_each() {
    let mut file = tempfile::tempfile().unwrap();
    let write = file.try_clone().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(write))
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let upstreams =
            upstreams(2, Balance::InOrder, Ejection { failures: 1, time: Duration::ZERO });
        for times in 1..=5 {
            fail(&upstreams, 0, 1);
            while upstreams.is_ejected(&at(&upstreams, 0)) {
                std::thread::yield_now();
            }
            assert_eq!(at(&upstreams, 0).ejected(), times);
        }
        upstreams.succeeded(&at(&upstreams, 0), "web");
        upstreams.succeeded(&at(&upstreams, 0), "web");
    });
    let mut log = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut log).unwrap();
    assert_eq!(
        (log.matches("was ejected").count(), log.matches("is available again").count()),
        (1, 1),
        "{log}"
    );
    assert!(
        log.contains("connection refused")
            && log.contains(r#"listener="web" upstream=@upstream-0"#),
        "{log}"
    );
}
