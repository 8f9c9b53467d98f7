//! A second process of the bench, which runs as a server beside the measured daemon. Its processor
//! time is counted separately or not at all.
//!
//! The bench executes itself with an argument that says which server to be. The server prints its
//! address on its standard output.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

/// A server process that ends when it is dropped.
pub(crate) struct Itself {
    child: Child,
    address: SocketAddr,
}

impl Itself {
    /// Starts the server and waits until it listens.
    pub(crate) fn start(argument: &str) -> Self {
        Self::start_with(argument, &[])
    }

    /// Starts the server with settings, which follow its argument, and waits until it listens.
    pub(crate) fn start_with(argument: &str, settings: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("find the bench's own path"));
        // A server that watches its standard input ends with the bench, however the bench ends.
        command.arg(argument).args(settings).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the bench once more");
        let stdout = child.stdout.take().expect("take the server's standard output");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("read the server's address");
        Self { child, address: line.trim().parse().expect("parse the address") }
    }

    /// Returns the address of the server.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the process of the server.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("convert the process id"))
    }
}

impl Drop for Itself {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns whether this process was started as the server of that argument.
pub(crate) fn is_asked_to_be(argument: &str) -> bool {
    std::env::args().nth(1).as_deref() == Some(argument)
}

/// Returns the settings of the server that this process was started as.
pub(crate) fn settings() -> impl Iterator<Item = String> {
    std::env::args().skip(2)
}

/// Prints the server's address for the bench.
pub(crate) fn say_where(address: SocketAddr) {
    writeln!(std::io::stdout(), "{address}").expect("print the address");
}
