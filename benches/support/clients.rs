//! Opens connections, and checks every byte that comes back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// What a client sends, and hears back.
pub(crate) const REQUEST: [u8; 64] =
    *b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.\n";

/// What idle connections have done before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// Nothing.
    Silent,
    /// One request.
    Asked,
}

/// How many may wait to be accepted: fewer than the shortest queue of the servers here (tokio's,
/// 128) holds. A client for whom there is no room tries again only after a second.
const BURST: usize = 64;

/// Opens `count` connections that stay open until they are dropped. All of them have been accepted.
pub(crate) fn idle(address: SocketAddr, count: usize, past: Past) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let burst = BURST.min(count - streams.len());
        streams.extend((0..burst).map(|_| {
            let mut stream = TcpStream::connect(address).expect("connect");
            if past == Past::Asked {
                echo(&mut stream).expect("a reply");
            }
            stream
        }));
        // Who comes last is accepted last: when this one has its reply, all before it have been
        // accepted.
        visit(address).expect("a reply");
    }
    streams
}

/// Connects, has one request answered, and closes.
pub(crate) fn visit(address: SocketAddr) -> io::Result<()> {
    echo(&mut TcpStream::connect(address)?)
}

/// Has one request answered.
pub(crate) fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut reply = [0; REQUEST.len()];
    stream.write_all(&REQUEST)?;
    stream.read_exact(&mut reply)?;
    assert_eq!(reply, REQUEST, "an altered reply");
    Ok(())
}
