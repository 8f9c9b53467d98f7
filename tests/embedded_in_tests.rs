//! Tests of servers that run inside of a test, beside other tests and their threads.

use std::io::{Read, Write};
use std::net::TcpStream;

use handoffd::{Builder, Error, Inheritance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Runs a server until its client has been served.
fn serve_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = Builder::new(Inheritance::none().unwrap()).listen("echo=127.0.0.1:0").unwrap();
    let ended = runtime.block_on(server.serve_here(async |life| {
        let mut acceptor = life.acceptor("echo")?;
        let (address, stop) = (life.address("echo")?, life.clone());
        let client = std::thread::spawn(move || {
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
    let servers: Vec<_> = (0..4).map(|_| std::thread::spawn(serve_once)).collect();
    servers.into_iter().for_each(|server| server.join().unwrap());
}
