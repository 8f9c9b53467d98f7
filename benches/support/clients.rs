//! Opens connections, and checks every byte that comes back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// What a client sends, and hears back.
pub(crate) const REQUEST: [u8; 64] = *b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.\n";

/// What idle connections have done before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// Nothing.
    Silent,
    /// One request.
    Asked,
}

/// Opens `count` connections that stay open until they are dropped. All of them have been accepted.
pub(crate) fn idle(address: SocketAddr, count: usize, past: Past) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(address).expect("connect");
        if past == Past::Asked {
            echo(&mut stream).expect("a reply");
        }
        stream
    };
    let streams = (0..count).map(open).collect();
    // The queue is a queue: when the last to come has its reply, all before it were accepted.
    echo(&mut TcpStream::connect(address).expect("connect")).expect("a reply");
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
