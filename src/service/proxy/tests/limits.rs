//! Tests of the limits of a connection (memory, idle time, lifetime, drain deadline) and of its
//! counters.

use super::*;

/// The idle timeout closes both sides without a reset. Traffic restarts the timeout.
#[tokio::test]
async fn an_idle_connection_is_closed() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| config.idle_timeout = Some(SOON)).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    let since = Instant::now();
    while since.elapsed() < SOON * 2 {
        assert_linked(&mut client, &mut server).await;
    }
    let since = Instant::now();
    assert_eq!(read_to_end(&mut client).await.unwrap(), b"");
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    assert!(since.elapsed() >= SOON - Duration::from_millis(20), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_connection_past_its_lifetime_is_reset() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |config| config.lifetime = Some(SOON)).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    let since = Instant::now();
    let mut bytes = [0; 5];
    let broke = loop {
        let _ = client.write_all(b"hello").await;
        if let Err(error) = server.read_exact(&mut bytes).await {
            break error;
        }
        assert!(since.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
    assert!(since.elapsed() >= SOON - Duration::from_millis(20));
}

/// The counters include the bytes of open connections.
#[tokio::test]
async fn counters_include_open_connections() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |_| {}).await;
    let (mut client, mut server) = front.pair(&upstream).await;
    assert_linked(&mut client, &mut server).await;
    let expected = UpstreamCounters {
        connected: 1,
        active: 1,
        sent: 7,
        received: 5,
        ..UpstreamCounters::default()
    };
    assert_eq!(front.counters(&upstream), expected);
    drop(client);
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"");
    drop(server);
    becomes(|| front.counters(&upstream) == UpstreamCounters { active: 0, ..expected }).await;
}

/// If the drain deadline ends a connection, the proxy resets both sides.
#[tokio::test]
async fn a_cut_connection_is_reset_on_both_sides() {
    let upstream = listen().await;
    let front = Front::new(&[&upstream], |_| {}).await;
    let listener = listen().await;
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let stream = Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
    let guard = Drain::new().entry(&"web".into(), OnDrain::Finish).admit();
    let watch = guard.watch().clone();
    let mut connection = connection(stream, Peer::Tcp(peer), watch);
    let serving = timeout(SOON, serve(&front.proxy, &mut connection)).await;
    assert!(serving.is_err());
    drop(connection);
    let mut server = accept(&upstream).await;
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
}
