//! Client connections that verify every byte of their replies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The request of a client, and its reply.
pub(crate) const REQUEST: [u8; 64] =
    *b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.\n";

/// The history of idle connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// The connection never sent a request.
    Silent,
    /// The connection had one request answered.
    Asked,
}

/// How many connections may wait to be accepted: fewer than the shortest backlog of the servers
/// here holds (tokio's, 128). A client that finds a full backlog retries only after a second.
const BURST: usize = 64;

/// Opens `count` connections that stay open until they are dropped. When this returns, all of them
/// have been accepted.
pub(crate) fn idle(address: SocketAddr, count: usize, past: Past) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let burst = BURST.min(count - streams.len());
        streams.extend((0..burst).map(|_| {
            let mut stream = TcpStream::connect(address).expect("connect");
            if past == Past::Asked {
                echo(&mut stream).expect("read the reply");
            }
            stream
        }));
        // Connections are accepted in order: once this one has its reply, all before it have been
        // accepted.
        visit(address).expect("read the reply");
    }
    streams
}

/// Connects, sends one request, reads the reply and closes.
pub(crate) fn visit(address: SocketAddr) -> io::Result<()> {
    echo(&mut TcpStream::connect(address)?)
}

/// Sends one request and reads the reply.
pub(crate) fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut reply = [0; REQUEST.len()];
    stream.write_all(&REQUEST)?;
    stream.read_exact(&mut reply)?;
    assert_eq!(reply, REQUEST, "the reply was altered");
    Ok(())
}
