//! Is the bench once more, in a process of its own: as a server beside what is measured, whose time
//! is counted apart or not at all.
//!
//! The bench executes itself with an argument by which it learns what it is to be. The server says
//! on its standard output where it listens.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

/// The server, until it is dropped.
pub(crate) struct Itself {
    child: Child,
    address: SocketAddr,
}

impl Itself {
    /// Starts it and waits until it listens.
    pub(crate) fn start(argument: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        // One that watches its standard input ends with us, whatever becomes of us.
        command.arg(argument).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the bench once more");
        let stdout = child.stdout.take().expect("its standard output");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("hear where it listens");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }
}

impl Drop for Itself {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process was started to be that.
pub(crate) fn is_asked_to_be(argument: &str) -> bool {
    std::env::args().nth(1).as_deref() == Some(argument)
}

/// Tells who started it where it listens.
pub(crate) fn say_where(address: SocketAddr) {
    writeln!(std::io::stdout(), "{address}").expect("say where");
}
