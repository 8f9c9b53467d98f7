//! A client that exchanges raw bytes with the daemon over TCP or a Unix socket.

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use super::DEADLINE;

/// A connection. Reads and writes time out after [`DEADLINE`].
#[derive(Debug)]
pub(crate) enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    /// Connects to `IP:PORT`, `/PATH` or `@NAME`.
    pub(crate) fn connect(address: &str) -> io::Result<Self> {
        let client = if let Some(name) = address.strip_prefix('@') {
            Self::Unix(UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?)
        } else if address.starts_with('/') {
            Self::Unix(UnixStream::connect(address)?)
        } else {
            Self::Tcp(TcpStream::connect(address)?)
        };
        client.set_read_timeout(DEADLINE)?;
        Ok(client)
    }

    /// Sets the read timeout, and resets the write timeout to [`DEADLINE`].
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket
                .set_read_timeout(Some(timeout))
                .and_then(|()| socket.set_write_timeout(Some(DEADLINE))),
            Self::Unix(socket) => socket
                .set_read_timeout(Some(timeout))
                .and_then(|()| socket.set_write_timeout(Some(DEADLINE))),
        }
    }

    /// Sets whether a read or write that would block fails immediately instead.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(nonblocking),
            Self::Unix(socket) => socket.set_nonblocking(nonblocking),
        }
    }

    /// Sends `request` and reads the reply, which must be identical.
    pub(crate) fn echo(&mut self, request: &[u8]) -> io::Result<()> {
        self.write_all(request)?;
        self.expect(request)
    }

    /// Reads as many bytes as `expected` has; they must be identical.
    pub(crate) fn expect(&mut self, expected: &[u8]) -> io::Result<()> {
        let mut reply = vec![0; expected.len()];
        self.read_exact(&mut reply)?;
        if reply == expected {
            Ok(())
        } else {
            Err(io::Error::other("the reply differs from the request"))
        }
    }

    /// Half-closes the connection: no more bytes will be sent.
    pub(crate) fn half_close(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
    }

    /// Waits for the end of the stream. More bytes or a reset are errors.
    pub(crate) fn expect_end(&mut self) -> io::Result<()> {
        // `read_exact` retries when a signal interrupts it, as when the tests are suspended and
        // resumed.
        match self.read_exact(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("bytes came where the end was expected")),
        }
    }

    /// Runs one complete short connection: connect, request, reply, half-close, end.
    pub(crate) fn once(address: &str, request: &[u8]) -> io::Result<()> {
        let mut client = Self::connect(address)?;
        client.echo(request)?;
        client.half_close()?;
        client.expect_end()
    }

    /// Sends one HTTP request to the example with its own accept loop and reads the whole reply.
    /// Returns the generation that answers.
    pub(crate) fn get(&mut self) -> io::Result<u64> {
        self.write_all(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
        let mut reply = String::new();
        self.read_to_string(&mut reply)?;
        let body =
            reply.strip_prefix("HTTP/1.1 200 OK\r\n").and_then(|rest| rest.split_once("\r\n\r\n"));
        let words = body
            .and_then(|(_, body)| body.strip_suffix('\n'))
            .map(|body| body.split(' ').collect::<Vec<_>>());
        match words.as_deref() {
            Some(["generation", generation, "process", _]) => {
                generation.parse().map_err(io::Error::other)
            }
            _ => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("incomplete reply: {reply:?}"),
            )),
        }
    }
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
