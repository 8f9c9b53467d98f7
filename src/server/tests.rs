//! Tests of the server on worker threads: the count of full listeners, heartbeats, and workers that
//! die or hang.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::*;
use crate::config::{ListenerConfig, Listeners};
use crate::data_plane::DataPlane;
use crate::error::Error;
use crate::net::{Origin, Passed};
use crate::service::Echo;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

/// Connects a client and waits until it is served.
fn client(address: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"?").unwrap();
    client.read_exact(&mut [0]).unwrap();
    client
}

/// Waits until every accept loop has run once.
async fn beat(server: &Server<Echo>) {
    timeout(DEADLINE, server.heartbeat().wait()).await.unwrap();
}

/// Waits until the server has counted the listener as full at least `times` times. Returns the
/// count.
async fn limited(server: &Server<Echo>, times: u64) -> u64 {
    let limited = || server.counters().listeners["few"].limited;
    let told = async {
        while limited() < times {
            beat(server).await;
        }
    };
    timeout(DEADLINE, told).await.unwrap();
    // Further iterations of the accept loops must not raise the count.
    for _ in 0..100 {
        beat(server).await;
    }
    limited()
}

/// A listener that becomes full is counted once, not once for each worker or heartbeat.
#[tokio::test]
async fn a_full_listener_is_counted_once_for_all_workers() {
    let [workers, limit] = [3, 2].map(|count| NonZeroUsize::new(count).unwrap());
    let few: ListenerConfig = "few=127.0.0.1:0".parse().unwrap();
    let few = ListenerConfig { max_connections: Some(limit), ..few };
    let config = Config { listeners: Listeners::new(vec![few]).unwrap(), ..Config::default() };
    let mut server = Server::new(Echo, Workers::start(workers).unwrap(), config);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Passed::check(socket.into(), None, Origin::Inherited).unwrap().adopt("few");
    server.start(std::slice::from_ref(&listener)).unwrap();
    assert_eq!(limited(&server, 0).await, 0);
    let mut inside = vec![client(listener.address())];
    assert_eq!(limited(&server, 0).await, 0);
    for times in 1..10 {
        inside.push(client(listener.address()));
        assert_eq!(limited(&server, times).await, times);
        drop(inside.remove(0));
    }
}

/// Two sockets share one limit. A socket without clients takes nothing from the other one.
#[tokio::test]
async fn an_idle_socket_holds_no_place_under_the_limit() {
    let few: ListenerConfig = "few=127.0.0.1:0".parse().unwrap();
    let few = ListenerConfig { max_connections: Some(NonZeroUsize::MIN), ..few };
    let config = Config { listeners: Listeners::new(vec![few]).unwrap(), ..Config::default() };
    let mut server = Server::new(Echo, Workers::start(NonZeroUsize::MIN).unwrap(), config);
    let listeners = [(); 2].map(|()| {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Passed::check(socket.into(), None, Origin::Inherited).unwrap().adopt("few")
    });
    server.start(&listeners).unwrap();
    for _ in 0..3 {
        for listener in &listeners {
            beat(&server).await;
            drop(client(listener.address()));
        }
    }
}

/// A heartbeat completes only when all accept loops have run. If it is sent before accepting begins
/// or after accepting stops, it never completes.
#[tokio::test]
async fn a_heartbeat_that_finds_no_loop_is_never_over() {
    let mut server =
        Server::new(Echo, Workers::start(NonZeroUsize::MIN).unwrap(), Config::default());
    // The heartbeat is a task tracker, which never completes while it is open.
    assert!(!server.heartbeat().is_closed());
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Passed::check(socket.into(), None, Origin::Inherited).unwrap().adopt("web");
    server.start(std::slice::from_ref(&listener)).unwrap();
    beat(&server).await;
    server.stop_accepting().await;
    assert!(!server.heartbeat().is_closed());
}

/// `Server::start` fails once a worker has died.
#[tokio::test]
async fn nothing_is_accepted_again_when_a_worker_has_died() {
    let workers = Workers::start(NonZeroUsize::MIN).unwrap();
    workers.deaths().report("worker-1", "it was unwell");
    let mut server = Server::new(Echo, workers, Config::default());
    assert!(matches!(server.start(&[]), Err(Error::Died { .. })));
}

/// A hanging worker blocks neither `stop_accepting` nor the drop of the server.
#[tokio::test]
async fn a_worker_that_hangs_holds_up_neither_a_stop_nor_the_end() {
    let workers = Workers::start(NonZeroUsize::new(2).unwrap()).unwrap();
    let mut server = Server::new(Echo, workers, Config::default());
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Passed::check(socket.into(), None, Origin::Inherited).unwrap().adopt("web");
    server.start(std::slice::from_ref(&listener)).unwrap();
    beat(&server).await;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (hangs, hung) = tokio::sync::oneshot::channel();
    server.workers.all()[0].handle().spawn(async move {
        hangs.send(()).unwrap();
        // Block the worker's thread, which a real service must never do.
        let _ = held.recv();
    });
    hung.await.unwrap();
    timeout(DEADLINE, server.stop_accepting()).await.unwrap();
    let ended = tokio::task::spawn_blocking(move || drop(server));
    timeout(DEADLINE, ended).await.unwrap().unwrap();
    drop(release);
}
