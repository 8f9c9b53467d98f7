//! A client in the middle of a request: it has sent more than fits into the reply's way back, and
//! does not read.
//!
//! Either more is sent than fits on the way back, or all the buffers between here and there are
//! full. That they are, and that the server has not merely been slow, is seen and not supposed:
//! whoever might read on sleeps.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::{Client, DEADLINE, Line};

/// How much of a reply a narrow client's own kernel takes, at most.
const NARROW: usize = 4_096;
/// What a server may hold of a request besides, and what a buffer takes beyond its limit when it
/// has room for one byte.
const BESIDES: usize = 200_000;

/// A connection that is never idle until it is read.
#[derive(Debug)]
pub(crate) struct Stuck {
    client: Client,
    request: Vec<u8>,
}

impl Stuck {
    /// Connects and sends more than fits on the way back: when this returns, and until the reply is
    /// read, the server has some of the request still to read or to write back.
    pub(crate) fn on(line: &Line, address: &str) -> Self {
        Self::on_whoever_sleeps(|| line.is_asleep(), address)
    }

    /// The same, with the word of the caller for whether whoever serves there sleeps.
    pub(crate) fn on_whoever_sleeps(is_asleep: impl Fn() -> bool, address: &str) -> Self {
        match address.parse() {
            // The way back over TCP grows up to the last number of tcp_wmem.
            Ok(address) => Self::send(
                is_asleep,
                narrow(address),
                setting("ipv4/tcp_wmem") + 2 * NARROW + BESIDES,
            ),
            Err(_) => Self::send(
                is_asleep,
                Client::connect(address).unwrap(),
                setting("core/wmem_default") + BESIDES / 4,
            ),
        }
    }

    /// Sends this much, or as much as anybody takes.
    fn send(is_asleep: impl Fn() -> bool, mut client: Client, length: usize) -> Self {
        let mut request: Vec<u8> = (0_u32..).flat_map(u32::to_be_bytes).take(length).collect();
        client.set_nonblocking(true).unwrap();
        let (mut sent, mut slept) = (0, false);
        let until = Instant::now() + DEADLINE;
        while sent < length {
            match client.write(&request[sent..]) {
                Ok(count) => (sent, slept) = (sent + count, false),
                // Full, also after the server was seen asleep.
                Err(error) if error.kind() == ErrorKind::WouldBlock && slept => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < until, "the server neither reads nor sleeps");
                    slept = is_asleep();
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
        client.set_nonblocking(false).unwrap();
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

    /// Reads to the end that a draining server puts after what it has taken on: how much of the
    /// request that was.
    pub(crate) fn read_until_end(mut self) -> usize {
        let mut reply = Vec::new();
        self.client.read_to_end(&mut reply).unwrap();
        assert!(self.request.starts_with(&reply), "the reply differs from the request");
        reply.len()
    }

    /// Reads what is left of a reply after the server has cut the connection: part of it.
    pub(crate) fn expect_cut(mut self) {
        assert!(
            self.client.expect(&self.request).is_err(),
            "it was cut, and yet the reply is whole"
        );
    }

    /// Says that nothing more will be sent.
    pub(crate) fn half_close(&self) {
        self.client.half_close().unwrap();
    }
}

/// Connects with room for little more than one packet: a reply stays with the server until it is
/// read.
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
