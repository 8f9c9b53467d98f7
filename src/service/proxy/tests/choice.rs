//! Tests of how the proxy chooses an upstream, and of how long a client waits while no upstream
//! accepts.

use socket2::SockRef;

use super::*;
use crate::config::{Balance, Ejection};

/// Round robin connects clients to the two upstreams alternately.
#[tokio::test]
async fn round_robin_alternates_between_upstreams() {
    let (one, other) = (listen().await, listen().await);
    let front = Front::new(&[&one, &other], |_| {}).await;
    for _ in 0..2 {
        let (mut client, mut upstream) = front.pair(&one).await;
        assert_linked(&mut client, &mut upstream).await;
        let (mut client, mut upstream) = front.pair(&other).await;
        assert_linked(&mut client, &mut upstream).await;
    }
}

/// With `least-connections` balancing, a new client is connected to the upstream with fewer
/// connections.
#[tokio::test]
async fn the_least_busy_upstream_gets_the_next_client() {
    let (one, other) = (listen().await, listen().await);
    let front =
        Front::new(&[&one, &other], |config| config.balance = Balance::LeastConnections).await;
    let _stays = front.pair(&one).await;
    for _ in 0..3 {
        let (client, mut upstream) = front.pair(&other).await;
        drop(client);
        assert_eq!(read_to_end(&mut upstream).await.unwrap(), b"");
        drop(upstream);
        becomes(|| front.counters(&other).active == 0).await;
    }
    assert_eq!((front.counters(&one).connected, front.counters(&other).connected), (1, 3));
}

/// A standby upstream gets the clients while the first upstream is down. The first upstream gets
/// clients again after its ejection time.
#[tokio::test]
async fn a_standby_serves_while_the_first_upstream_is_down() {
    let (first, stand_by) = (nobody().await, listen().await);
    let addresses = vec![Address::Tcp(first), Address::Tcp(stand_by.local_addr().unwrap())];
    let front = Front::to(addresses, |config| {
        config.balance = Balance::InOrder;
        config.ejection = Ejection { failures: 2, time: SOON };
    })
    .await;
    for _ in 0..4 {
        let (mut client, mut upstream) = front.pair(&stand_by).await;
        assert_linked(&mut client, &mut upstream).await;
    }
    let first = listen_again(first);
    let counters = front.counters(&first);
    assert_eq!(
        (counters.failed, counters.ejected, counters.connected),
        (2, 1, 0),
        "it was to be passed over after two"
    );
    // After the ejection time, the proxy prefers the first upstream to the standby again.
    let back = timeout(DEADLINE, async {
        loop {
            let client = front.connect().await;
            tokio::select! {
                _ = stand_by.accept() => {}
                accepted = first.accept() => return (client, accepted.unwrap().0),
            }
        }
    });
    let (mut client, mut upstream) = back.await.expect("the upstream stays ejected");
    assert_linked(&mut client, &mut upstream).await;
}

/// A client is connected to the next upstream if the first does not answer within the connect
/// timeout.
#[tokio::test]
async fn an_upstream_that_times_out_is_replaced_by_the_next() {
    let ((hole, _queue), other) = (black_hole(), listen().await);
    let addresses = [hole.local_addr().unwrap(), other.local_addr().unwrap()].map(Address::Tcp);
    let front = Front::to(addresses.into(), |config| {
        config.balance = Balance::InOrder;
        config.connect_timeout = SOON;
    })
    .await;
    let since = Instant::now();
    let (mut client, mut upstream) = front.pair(&other).await;
    assert!(since.elapsed() >= SOON);
    assert_linked(&mut client, &mut upstream).await;
}

#[tokio::test]
async fn a_client_is_held_until_an_upstream_accepts() {
    let address = nobody().await;
    let front =
        Front::to(vec![Address::Tcp(address)], |config| config.connect_patience = DEADLINE).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = front.connect().await;
        client.write_all(b"request").await.unwrap();
        clients.push(client);
    }
    // This client has half-closed its connection but still expects a reply.
    clients[0].shutdown().await.unwrap();
    becomes(|| front.proxy.upstreams().values().any(|by| by.values().any(|one| one.failed >= 60)))
        .await;
    let upstream = listen_again(address);
    for _ in 0..20 {
        let mut server = accept(&upstream).await;
        assert_eq!(read(&mut server, 7).await, b"request");
        server.write_all(b"reply").await.unwrap();
    }
    for client in &mut clients {
        assert_eq!(read_to_end(client).await.unwrap(), b"reply");
    }
}

/// The proxy resets a client if no upstream accepts within the client's waiting time
/// (`connect_patience`).
#[tokio::test]
async fn a_client_without_an_upstream_in_time_is_reset() {
    let (patience, address) = (SOON, nobody().await);
    for connect_patience in [Duration::ZERO, patience] {
        let front = Front::to(vec![Address::Tcp(address)], |config| {
            config.connect_patience = connect_patience
        })
        .await;
        let since = Instant::now();
        let mut client = front.connect().await;
        assert_reset(&mut client).await;
        // The proxy gives up early if its next wait would exceed the client's remaining time.
        assert!(since.elapsed() >= connect_patience / 2, "{:?}", since.elapsed());
        assert!(since.elapsed() < DEADLINE / 2);
    }
}

/// The proxy stops its attempts to connect soon after the client has disconnected.
#[tokio::test]
async fn attempts_stop_when_the_client_is_gone() {
    let (hole, _queue) = black_hole();
    for address in [nobody().await, hole.local_addr().unwrap()] {
        let front = Front::to(vec![Address::Tcp(address)], |config| {
            config.connect_patience = Duration::from_secs(3600);
            config.connect_timeout = Duration::from_secs(3600);
        })
        .await;
        let client = front.connect().await;
        let alive = || Arc::strong_count(&front.proxy);
        becomes(|| alive() == 3).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        becomes(|| alive() == 2).await;
    }
}
