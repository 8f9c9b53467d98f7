//! Tests of servers that run inside of a test, beside other tests and their threads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use handoffd::embed::Life;
use handoffd::listen::{ListenerConfig, Listeners};
use handoffd::{Builder, Error, Inheritance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::{DEADLINE, assert_becomes};

/// How long a test waits for an event that must not happen.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs a server until its client has been served.
fn serve_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = Builder::new(Inheritance::none().unwrap()).listen("echo=127.0.0.1:0").unwrap();
    let ended = runtime.block_on(server.serve_here(async |life| {
        let mut acceptor = life.acceptor("echo")?;
        let (address, stop) = (life.address("echo")?, life.clone());
        let client = thread::spawn(move || {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"hello").unwrap();
            let mut reply = [0; 5];
            client.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"hello");
            stop.reload(); // has no effect: a test does not become a service
            stop.stop();
        });
        life.ready();
        while let Some((mut stream, _)) = acceptor.accept().await {
            let mut request = [0; 5];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&request).await.unwrap();
        }
        client.join().unwrap();
        Ok::<_, Error>(())
    }));
    assert_eq!(ended.unwrap().drain.cut, 0);
}

#[test]
fn several_servers_run_in_one_process() {
    let servers: Vec<_> = (0..4).map(|_| thread::spawn(serve_once)).collect();
    servers.into_iter().for_each(|server| server.join().unwrap());
}

/// Runs `test` with a server in a runtime of its own, and stops the server afterwards.
fn with_server<F: Future<Output = ()>>(
    set: impl FnOnce(Builder) -> Builder,
    test: impl Fn(Life) -> F,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = Builder::new(Inheritance::none().unwrap()).listen("echo=127.0.0.1:0").unwrap();
    let ended = runtime.block_on(set(server).serve_here(async |life| {
        timeout(DEADLINE, test(life.clone())).await.expect("the test ends");
        life.stop();
        life.retired().await;
        Ok::<_, Error>(())
    }));
    ended.unwrap();
}

fn connect(life: &Life) -> TcpStream {
    connect_to(life, "echo")
}

fn connect_to(life: &Life, name: &str) -> TcpStream {
    TcpStream::connect(life.address(name).unwrap()).unwrap()
}

#[test]
fn a_listener_may_have_several_acceptors() {
    with_server(
        |server| server,
        async |life| {
            let mut acceptors = [(); 3].map(|()| life.acceptor("echo").unwrap());
            let private = life.private_listener("echo").unwrap();
            private.set_nonblocking(true).unwrap();
            let private = tokio::net::UnixListener::from_std(private).unwrap();
            life.ready();
            for acceptor in &mut acceptors {
                let _client = connect(&life);
                // The private listener may get the client as well as this acceptor.
                tokio::select! {
                    accepted = acceptor.accept() => assert!(accepted.is_some()),
                    accepted = private.accept() => assert!(accepted.is_ok()),
                }
            }
        },
    );
}

/// Configures a listener that may have two connections.
fn two_at_most(server: Builder) -> Builder {
    server.configure(|config| {
        let mut echo: ListenerConfig = "echo=127.0.0.1:0".parse().unwrap();
        echo.max_connections = NonZeroUsize::new(2);
        config.listeners = Listeners::new(vec![echo]).unwrap();
    })
}

#[test]
fn a_connection_limit_applies_to_an_acceptor() {
    with_server(two_at_most, async |life| {
        let mut acceptor = life.acceptor("echo").unwrap();
        life.ready();
        let _clients = [(); 3].map(|()| connect(&life));
        let first = acceptor.accept().await.unwrap();
        let _second = acceptor.accept().await.unwrap();
        let mut third = Box::pin(acceptor.accept());
        // The third client waits until another one has gone.
        tokio::select! {
            biased;
            _ = &mut third => panic!("the limit is two connections"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        assert!(third.await.is_some());
    });
}

/// A thread that waits because of the limit continues when a connection ends, and when the service
/// stops.
#[test]
fn a_connection_limit_applies_to_threads() {
    with_server(two_at_most, async |life| {
        let listener = life.blocking("echo").unwrap();
        life.ready();
        let _clients = [(); 4].map(|()| connect(&life));
        let (send, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let has_room = Arc::new(AtomicBool::new(false));
        let room = Arc::clone(&has_room);
        let thread = thread::spawn(move || {
            let accept = || listener.accept_tcp().unwrap();
            (0..2).for_each(|_| send.send(accept()).unwrap());
            let third = accept();
            assert!(room.load(Ordering::SeqCst), "there were more than two connections");
            send.send(third).unwrap();
            // The last process serves the clients that are left, even beyond the limit.
            drop(accept());
        });
        let [first, _second] = [accepted.recv().await.unwrap(), accepted.recv().await.unwrap()];
        has_room.store(true, Ordering::SeqCst);
        drop(first);
        let _third = accepted.recv().await.unwrap();
        life.stop();
        tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
    });
}

/// Adds the listener `admin`, which stops last. A connection whose client has sent nothing delays
/// the drain only for a moment.
fn with_last(server: Builder) -> Builder {
    let server = server.listen("admin=127.0.0.1:0").unwrap().last("admin");
    server.configure(|config| config.first_request_grace = Duration::from_millis(10))
}

#[test]
fn a_movable_connection_of_a_last_listener_ends_last() {
    with_server(with_last, async |life| {
        let mut echo = life.acceptor("echo").unwrap();
        let mut admin = life.acceptor("admin").unwrap().carries(|_| Ok(()));
        life.ready();
        let _clients = ["echo", "admin"].map(|name| connect_to(&life, name));
        let (held, last) = (echo.accept().await.unwrap(), admin.accept().await.unwrap());
        life.stop();
        life.draining().await;
        assert!(timeout(PAUSE, last.carry.draining()).await.is_err());
        let _late = connect_to(&life, "admin");
        assert!(admin.accept().await.is_some());
        drop(held);
        last.carry.draining().await;
    });
}

/// The library does not know the clients that the server accepts on a copy of a socket.
#[test]
fn a_last_listener_waits_for_the_clients_of_a_copy() {
    let set = |server| {
        with_last(server).configure(|config| {
            config.keep_alive_grace = 2 * DEADLINE;
            config.drain_timeout = 4 * DEADLINE;
        })
    };
    with_server(set, async |life| {
        let _copy = life.tcp_listener("echo").unwrap();
        let mut admin = life.acceptor("admin").unwrap();
        life.ready();
        life.stop();
        life.draining().await;
        assert!(timeout(PAUSE, admin.accept()).await.is_err());
        let _late = connect_to(&life, "admin");
        assert!(admin.accept().await.is_some());
    });
}

#[test]
fn a_wrong_request_for_a_listener_names_the_cause() {
    with_server(
        |server| server,
        async |life| {
            life.ready();
            let error = life.unix_listener("echo").unwrap_err().to_string();
            assert!(error.starts_with("the listener \"echo\" is not a Unix socket"), "{error}");
            let error = life.acceptor("web").unwrap_err().to_string();
            assert_eq!(error, "there is no listener named \"web\", only \"echo\"");
        },
    );
}

/// As in a test that ends before its server does.
#[test]
fn a_server_whose_future_is_dropped_closes_its_listener() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = Builder::new(Inheritance::none().unwrap()).listen("echo=127.0.0.1:0").unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = std::cell::Cell::new(Some(tell));
    runtime.block_on(async {
        let serving = server.serve_here(async |life| {
            let mut acceptor = life.acceptor("echo")?;
            let accepting = tokio::spawn(async move { acceptor.accept().await.is_none() });
            life.ready();
            let address = life.address("echo")?;
            tell.take().unwrap().send((life.clone(), address, accepting)).ok().unwrap();
            std::future::pending::<Result<(), Error>>().await
        });
        let told = tokio::select! {
            _ = serving => panic!("the server does not return"),
            told = told => told,
        };
        let (life, address, accepting) = told.unwrap();
        timeout(DEADLINE, life.cut()).await.expect("the connections are cut");
        assert!(timeout(DEADLINE, accepting).await.unwrap().unwrap());
        // The thread of the driver closes its copy of the socket a moment later.
        assert_becomes(&true, || TcpStream::connect(&address).is_err());
    });
}
