//! What is carried has used some of its time elsewhere, and what cannot be carried keeps nobody waiting.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::net::TcpSocket;

use super::*;
use crate::carry::{Asking, Turns};

#[tokio::test]
async fn a_client_that_has_used_its_time_in_another_process_has_none_left_here() {
    let hour = Duration::from_secs(3600);
    let (hole, _queue) = black_hole();
    let upstream = Address::Tcp(hole.local_addr().unwrap());
    let mut config = ProxyConfig::to(crate::config::Upstreams::new(vec![upstream]).unwrap());
    config.accept_header_from = vec!["127.0.0.0/8".parse().unwrap()];
    (config.header_timeout, config.connect_patience, config.connect_timeout) = (hour, Duration::ZERO, hour);
    let proxy = Proxy::new(config);
    let listener = listen().await;
    for identified in [None, Some(Identified { route: None })] {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let stream = Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
        let (watch, _guard) = Drain::new().entry(Way::End).admit();
        let waited = Arriving { identified, since: tokio::time::Instant::now().checked_sub(hour) };
        let parcel = Some(crate::service::proxy::carried::arriving(waited));
        let mut connection = Connection::new(Admission { parcel, ..admission(stream, Peer::Tcp(peer), watch) });
        let served = timeout(DEADLINE, proxy.serve(&mut connection)).await.expect("it waits for an hour again");
        assert_eq!(served.unwrap_err().kind(), ErrorKind::TimedOut);
    }
}

#[tokio::test]
async fn what_is_left_of_a_broken_conversation_is_not_waited_for_by_a_carry() {
    let upstream = listen().await;
    let address = Address::Tcp(upstream.local_addr().unwrap());
    let proxy = Proxy::new(ProxyConfig::to(crate::config::Upstreams::new(vec![address]).unwrap()));
    let listener = listen().await;
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    let client = client.connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let stream = Stream::new(Socket::from(accepted.into_std().unwrap()), Peer::Tcp(peer)).unwrap();
    let (watch, _guard) = Drain::new().entry(Way::Carry).admit();
    let turns = Arc::<Turns>::default();
    let mut asking = Asking::new(Arc::clone(&turns));
    let word = Some(Arc::clone(asking.word()));
    let mut connection = Connection::new(Admission { word, ..admission(stream, Peer::Tcp(peer), watch) });
    let mut serving = pin!(proxy.serve(&mut connection));
    let mut server = tokio::select! {
        _ = &mut serving => panic!("it has ended"),
        server = accept(&upstream) => server,
    };
    // More than the kernel takes for a client that does not read.
    let all = vec![7; 32_000_000];
    tokio::select! {
        _ = &mut serving => panic!("it has ended"),
        written = timeout(SOON, server.write_all(&all)) => assert!(written.is_err()),
    }
    let server = Socket::from(server.into_std().unwrap());
    server.set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    // It asks nobody, for between the two nobody serves.
    let mut is_refused = || {
        turns.begin();
        asking.poll(&mut Context::from_waker(Waker::noop()));
        let is_refused = asking.word().is_refused();
        turns.end();
        asking.poll(&mut Context::from_waker(Waker::noop()));
        is_refused
    };
    let began = Instant::now();
    while !is_refused() {
        // So that there is room for what it holds: then it sees that nothing follows.
        let _ = client.try_read(&mut [0; 4096]);
        assert!(poll(&mut serving).await.is_pending() && began.elapsed() < DEADLINE, "it is waited for");
        tokio::task::yield_now().await;
    }
    drop(client);
    assert!(timeout(DEADLINE, serving).await.expect("it does not end").is_err());
}

async fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}
