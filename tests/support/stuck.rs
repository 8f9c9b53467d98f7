//! A client in the middle of a request: it sends more than the buffers for the reply can hold, and
//! does not read.
//!
//! Either the request exceeds the space for the reply, or all buffers in between are full. The test
//! verifies the second case instead of assuming it: the server must be asleep, not merely slow.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::view::pause;
use super::{Client, DEADLINE, Line};

/// The most that the kernel of a client with a small receive buffer holds of a reply.
const NARROW: usize = 4_096;
/// An allowance for the part of a request that the server itself holds, and for a buffer that
/// exceeds its limit because it still had room for one byte.
const BESIDES: usize = 200_000;

/// A connection that is busy until its reply is read.
#[derive(Debug)]
pub(crate) struct Stuck {
    client: Client,
    request: Vec<u8>,
}

impl Stuck {
    /// Connects and sends more than the reply's buffers can hold. Until the test reads the reply,
    /// the server still has part of the request to read or to return.
    pub(crate) fn on(line: &Line, address: &str) -> Self {
        Self::on_sleeping_process(|| line.is_asleep(), address)
    }

    /// Does the same as [`Stuck::on`]. `is_asleep` tells whether the server sleeps.
    pub(crate) fn on_sleeping_process(is_asleep: impl Fn() -> bool, address: &str) -> Self {
        match address.parse() {
            // The send buffer of the reply over TCP grows up to the last value of tcp_wmem.
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

    /// Sends up to `length` bytes, or less if all buffers are full while the server sleeps.
    fn send(is_asleep: impl Fn() -> bool, mut client: Client, length: usize) -> Self {
        let mut request: Vec<u8> = (0_u32..).flat_map(u32::to_be_bytes).take(length).collect();
        client.set_nonblocking(true).unwrap();
        let (mut sent, mut slept) = (0, false);
        let until = Instant::now() + DEADLINE;
        while sent < length {
            match client.write(&request[sent..]) {
                Ok(count) => (sent, slept) = (sent + count, false),
                // The buffers are still full after the server was seen asleep.
                Err(error) if error.kind() == ErrorKind::WouldBlock && slept => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < until, "the server neither reads nor sleeps");
                    slept = is_asleep();
                    pause(1);
                }
                Err(error) => panic!("{error}"),
            }
        }
        client.set_nonblocking(false).unwrap();
        request.truncate(sent);
        Self { client, request }
    }

    /// Reads the reply, which must be complete.
    pub(crate) fn read(&mut self) {
        self.client.expect(&self.request).unwrap();
    }

    /// Reads the reply and the clean end from a draining server.
    pub(crate) fn read_to_end(mut self) {
        self.read();
        self.client.expect_end().unwrap();
    }

    /// Reads until a draining server ends the connection. Returns how much of the request was
    /// answered.
    pub(crate) fn read_until_end(mut self) -> usize {
        let mut reply = Vec::new();
        self.client.read_to_end(&mut reply).unwrap();
        assert!(self.request.starts_with(&reply), "the reply differs from the request");
        reply.len()
    }

    /// Reads the rest of a reply that the server has cut off: it must be incomplete.
    pub(crate) fn expect_cut(mut self) {
        assert!(
            self.client.expect(&self.request).is_err(),
            "the connection was cut, but the reply is complete"
        );
    }

    /// Half-closes the connection: no more bytes will be sent.
    pub(crate) fn half_close(&self) {
        self.client.half_close().unwrap();
    }
}

/// Connects with a receive buffer for little more than one packet. A long reply stays with the
/// server until the client reads it.
pub(crate) fn narrow(address: SocketAddr) -> Client {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(NARROW).unwrap();
    socket.connect(&address.into()).unwrap();
    let client = Client::Tcp(socket.into());
    client.set_read_timeout(DEADLINE).unwrap();
    client
}

/// Returns the last number of a kernel network setting.
fn setting(name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap();
    text.split_whitespace().last().unwrap().parse().unwrap()
}
