//! A client in the middle of a request: it has sent more than fits into the reply's way back, and does not read.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::{Client, DEADLINE};

/// How much of a reply a narrow client's own kernel takes, at most.
const NARROW: usize = 4_096;
/// What a server may hold of a request besides, and what a buffer takes beyond its limit when it has room for one byte.
const BESIDES: usize = 200_000;

/// A connection that is never idle until it is read.
#[derive(Debug)]
pub(crate) struct Stuck {
    client: Client,
    request: Vec<u8>,
}

impl Stuck {
    /// Connects and sends more than fits on the way back: when this returns, and until the reply is read, the server
    /// has some of the request still to read or to write back.
    pub(crate) fn on(address: &str) -> Self {
        match address.parse() {
            // The way back over TCP grows up to the last number of tcp_wmem.
            Ok(address) => Self::send(narrow(address), setting("ipv4/tcp_wmem") + 2 * NARROW + BESIDES),
            Err(_) => Self::send(Client::connect(address).unwrap(), setting("core/wmem_default") + BESIDES / 4),
        }
    }

    /// Sends this much, or as much as anybody takes.
    fn send(mut client: Client, length: usize) -> Self {
        let mut request: Vec<u8> = (0_u32..).flat_map(u32::to_be_bytes).take(length).collect();
        client.set_write_timeout(Duration::from_millis(300)).unwrap();
        let mut sent = 0;
        while sent < length {
            match client.write(&request[sent..]) {
                Ok(count) => sent += count,
                // All the buffers between here and there are full: the server reads nothing, for it cannot write.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        client.set_write_timeout(DEADLINE).unwrap();
        request.truncate(sent);
        Self { client, request }
    }

    /// Reads the reply, which must be whole.
    pub(crate) fn read(&mut self) {
        self.client.expect(&self.request).unwrap();
    }

    /// Reads the reply, and the end that a draining server puts after it.
    pub(crate) fn read_to_end(mut self) {
        self.read();
        self.client.expect_end().unwrap();
    }

    /// Reads what is left of a reply after the server has cut the connection: part of it.
    pub(crate) fn expect_cut(mut self) {
        assert!(self.client.expect(&self.request).is_err(), "it was cut, and yet the reply is whole");
    }

    /// Says that nothing more will be sent.
    pub(crate) fn half_close(&self) {
        self.client.half_close().unwrap();
    }
}

/// Connects with room for little more than one packet: a reply stays with the server until it is read.
pub(crate) fn narrow(address: SocketAddr) -> Client {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(NARROW).unwrap();
    socket.connect(&address.into()).unwrap();
    let client = Client::Tcp(socket.into());
    client.set_read_timeout(DEADLINE).unwrap();
    client
}

/// The last number of a setting of the kernel's network.
fn setting(name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap();
    text.split_whitespace().last().unwrap().parse().unwrap()
}
