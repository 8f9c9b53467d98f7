//! Tests of connections that are cut.

use super::*;

/// A cut resets both sides of every relayed connection, and ends the drain.
#[tokio::test]
async fn a_cut_resets_both_sides() {
    let (upstream, address) = listen();
    let mut front = Relaying::start(&[address], |_| {});
    let (mut client, mut end) = front.pair(&upstream);
    front.server.stop_accepting().await;
    front.server.drain(None);
    front.server.cut();
    timeout(DEADLINE, front.server.drained()).await.unwrap();
    for side in [&mut client, &mut end] {
        assert_eq!(side.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!((front.counters().cut, front.server.report().cut), (1, 1));
}

/// A cut resets a client that still waits for an upstream. A clean close would look like an empty
/// reply.
#[tokio::test]
async fn a_cut_resets_a_client_that_has_no_upstream() {
    let (_, refusing) = listen();
    let mut front = Relaying::start(&[refusing], |config| config.connect_patience = DEADLINE * 10);
    let mut client = front.connect();
    let label = refusing.to_string();
    let has_failed = |front: &Relaying| {
        let upstreams = front.server.counters().upstreams;
        upstreams.get("web").and_then(|all| all.get(&label)).is_some_and(|one| one.failed > 1)
    };
    front.becomes(has_failed).await;
    front.server.stop_accepting().await;
    front.server.drain(None);
    front.server.cut();
    timeout(DEADLINE, front.server.drained()).await.unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
