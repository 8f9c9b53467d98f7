//! A client in the middle of a request: it has sent more than fits into the reply's way back, and does not read.

use std::fs;
use std::io::Write;

use super::Client;

/// A connection that is never idle until it is read.
#[derive(Debug)]
pub(crate) struct Stuck {
    client: Client,
    request: Vec<u8>,
}

impl Stuck {
    /// Connects to a Unix socket and sends. When this returns, the server has accepted the connection and is in the
    /// middle of it: of a Unix socket it is known what fits on the way back (`wmem_default`), and what the server takes
    /// at a time, and it is less than the request.
    pub(crate) fn on(path: &str) -> Self {
        let fits: usize = fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap().trim().parse().unwrap();
        let mut client = Client::connect(path).unwrap();
        let request: Vec<u8> = (0_u32..).flat_map(u32::to_be_bytes).take(fits + 50_000).collect();
        client.write_all(&request).unwrap();
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
