//! Upstreams that a test plays itself, and the proxy in front of them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use socket2::SockRef;

use super::{Client, DEADLINE, Event, Line, REAL};

impl Line {
    /// Starts a proxy on `127.0.0.1:0` in front of these upstreams, and waits until it serves.
    pub(crate) fn proxy(upstreams: &[&str], arguments: &[&str]) -> Self {
        Self::proxy_with(upstreams, arguments, |_, _| {})
    }

    /// Starts a proxy like [`Line::proxy`], with a control socket for [`Line::counter`].
    pub(crate) fn counted_proxy(upstreams: &[&str], arguments: &[&str]) -> Self {
        Self::proxy_with(upstreams, arguments, |command, folder| {
            command.arg("--control").arg(folder.join("control"));
        })
    }

    fn proxy_with(
        upstreams: &[&str],
        arguments: &[&str],
        set: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let line = Self::start_program(Path::new(REAL), |command, folder| {
            command.args(["proxy", "--log", "debug", "--listen", "127.0.0.1:0"]).args(arguments);
            for upstream in upstreams {
                command.args(["--to", upstream]);
            }
            if !arguments.contains(&"--carry") {
                command.arg("--no-carry");
            }
            set(command, folder);
        });
        line.wait_for(1, Event::GenerationServing);
        line
    }

    /// Connects a client to the proxy; returns it and the upstream's end of its connection.
    pub(crate) fn pair(&self, upstream: &Upstream) -> (Client, Client) {
        let client = Client::connect(&self.address()).unwrap();
        (client, upstream.accept())
    }
}

/// A listening socket on which the test accepts connections itself.
#[derive(Debug)]
pub(crate) enum Upstream {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Upstream {
    /// Listens on `IP:PORT`, `/PATH` or `@NAME`. An earlier listener at the address must be closed.
    pub(crate) fn on(address: &str) -> Self {
        if let Some(name) = address.strip_prefix('@') {
            Self::Unix(
                UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap(),
            )
        } else if address.starts_with('/') {
            Self::Unix(UnixListener::bind(address).unwrap())
        } else {
            Self::Tcp(TcpListener::bind(address).unwrap())
        }
    }

    /// Listens on a port that the kernel chooses.
    pub(crate) fn tcp() -> Self {
        Self::on("127.0.0.1:0")
    }

    /// Returns the TCP address. Panics for a Unix socket: the test knows its path.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().unwrap().to_string(),
            Self::Unix(listener) => panic!("{listener:?} has a path instead of a TCP address"),
        }
    }

    /// Accepts the next connection; panics if none arrives before the deadline.
    pub(crate) fn accept(&self) -> Client {
        self.accept_within(DEADLINE).expect("no connection arrived")
    }

    /// Accepts the next connection, or returns `None` if none arrives within `time`.
    pub(crate) fn accept_within(&self, time: Duration) -> Option<Client> {
        let mut poll = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        if nix::poll::poll(&mut poll, PollTimeout::try_from(time).unwrap()).unwrap() == 0 {
            return None;
        }
        let client = match self {
            Self::Tcp(listener) => Client::Tcp(listener.accept().unwrap().0),
            Self::Unix(listener) => Client::Unix(listener.accept().unwrap().0),
        };
        client.set_read_timeout(DEADLINE).unwrap();
        Some(client)
    }
}

impl AsFd for Upstream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Client {
    /// Closes the connection with a reset.
    pub(crate) fn reset(self) {
        let Self::Tcp(socket) = &self else { panic!("Unix sockets have no resets") };
        SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Sends a byte of urgent data, tcp(7).
    pub(crate) fn send_urgent(&self, byte: u8) {
        let Self::Tcp(socket) = self else { panic!("Unix sockets have no urgent data") };
        assert_eq!(SockRef::from(socket).send_out_of_band(&[byte]).unwrap(), 1);
    }

    /// Reads to the end of the stream or to an error; returns the bytes and the result.
    pub(crate) fn read_all(&mut self) -> (Vec<u8>, io::Result<()>) {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return (bytes, Ok(())),
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (bytes, Err(error)),
            }
        }
    }

    /// Asserts that the connection was reset without sending any bytes.
    pub(crate) fn expect_reset(&mut self) {
        let (bytes, end) = self.read_all();
        assert_eq!((bytes, end.unwrap_err().kind()), (Vec::new(), io::ErrorKind::ConnectionReset));
    }
}

/// An echo server with a thread for each connection, which runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Echoing {
    address: String,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Echoing {
    pub(crate) fn on(upstream: Upstream, address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            loop {
                // Accept once more after the stop, to serve the connections still in the backlog.
                let is_last = stopping.load(Ordering::SeqCst);
                match upstream.accept_within(Duration::from_millis(2)) {
                    Some(client) => serving.push(std::thread::spawn(move || echo(client))),
                    None if is_last => break,
                    None => {}
                }
                serving.retain(|thread| !thread.is_finished());
            }
            drop(upstream);
            for thread in serving {
                thread.join().unwrap();
            }
        });
        Self { address: address.to_owned(), stop, accepting: Some(accepting) }
    }

    /// Stops accepting, then waits until all connections have ended.
    pub(crate) fn stop(mut self) {
        self.halt();
        self.accepting.take().unwrap().join().unwrap();
    }

    fn halt(&self) {
        if self.address.starts_with('/') {
            let _ = std::fs::remove_file(&self.address);
        }
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Drop for Echoing {
    fn drop(&mut self) {
        self.halt();
    }
}

fn echo(mut client: Client) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        if client.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = match &client {
        Client::Tcp(socket) => socket.shutdown(Shutdown::Write),
        Client::Unix(socket) => socket.shutdown(Shutdown::Write),
    };
}
