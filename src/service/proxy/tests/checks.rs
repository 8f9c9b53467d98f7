//! Tests of the health checks, in which a proxy connects to its upstreams at regular intervals.

use std::pin::pin;

use super::*;
use crate::config::{Balance, Check, HeaderVersion};

/// A health check ejects an upstream that is down before a client connects to it. A later check
/// brings the upstream back.
#[tokio::test]
async fn a_health_check_ejects_and_restores_an_upstream() {
    let (away, other) = (nobody().await, listen().await);
    let addresses = vec![Address::Tcp(away), Address::Tcp(other.local_addr().unwrap())];
    let front = Front::to(addresses, |config| {
        config.balance = Balance::InOrder;
        config.send_header = Some(HeaderVersion::V2);
        config.check = Some(Check { interval: Duration::from_millis(10), timeout: SOON });
    })
    .await;
    front.proxy.expect("web");
    let ejected = || front.proxy.upstreams()["web"][&away.to_string()].ejected;
    let mut watch = pin!(front.proxy.watch());
    tokio::select! {
        never = &mut watch => match never {},
        () = becomes(|| ejected() == 1) => {}
    }
    let back = listen_again(away);
    let met = async {
        // The PROXY header of a health check states no client address, because the check has no
        // client.
        let mut check = accept(&back).await;
        assert_eq!(read_to_end(&mut check).await.unwrap(), header::own(HeaderVersion::V2));
        // The upstream is no longer ejected, so it receives clients again.
        loop {
            let _client = front.connect().await;
            tokio::select! {
                accepted = back.accept() => {
                    let mut first = [0; 16];
                    accepted.unwrap().0.read_exact(&mut first).await.unwrap();
                    if first[12] == 0x21 {
                        return;
                    }
                }
                accepted = other.accept() => drop(accepted.unwrap()),
            }
        }
    };
    tokio::select! {
        never = &mut watch => match never {},
        met = timeout(DEADLINE, met) => met.expect("the upstream stays ejected"),
    }
    assert_eq!(
        front.proxy.upstreams()["web"][&away.to_string()].failed,
        0,
        "a client has met it while it was away"
    );
}

/// A health check fails at its timeout if the upstream does not answer.
#[tokio::test]
async fn a_health_check_that_hangs_fails() {
    let (hole, _queue) = black_hole();
    let address = hole.local_addr().unwrap();
    let front = Front::to(vec![Address::Tcp(address)], |config| {
        config.check = Some(Check { interval: DEADLINE, timeout: Duration::from_millis(50) });
    })
    .await;
    front.proxy.expect("web");
    tokio::select! {
        never = front.proxy.watch() => match never {},
        () = becomes(|| front.proxy.upstreams()["web"][&address.to_string()].ejected == 1) => {}
    }
}
