//! A parent that passes sockets to the daemon: descriptors from 3 up, `LISTEN_FDS` and related
//! variables.
//!
//! The child's process id is only known after the fork, so a shell sets `LISTEN_PID` and then
//! executes the daemon. Tests can also make every mistake that a parent can make.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::socket::{Shutdown, shutdown};

use super::{Event, Line, Refusal};

/// Sets `LISTEN_PID` and executes the program.
const NAME_THE_PID: [&str; 3] = ["bash", "-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""];

/// A parent, with the descriptors and variables that it passes.
#[derive(Debug)]
pub(crate) struct Parent {
    passed: Vec<(i32, OwnedFd)>,
    launcher: Vec<&'static str>,
    variables: Vec<(&'static str, String)>,
}

impl Parent {
    /// Passes these as descriptors 3, 4, and so on, with correct variables but without names.
    pub(crate) fn passing<const N: usize>(descriptors: [OwnedFd; N]) -> Self {
        let variables = vec![("LISTEN_FDS", N.to_string())];
        Self {
            passed: (3..).zip(descriptors).collect(),
            launcher: NAME_THE_PID.to_vec(),
            variables,
        }
    }

    /// Also passes this descriptor under this number without counting it. The number may leave a
    /// gap.
    pub(crate) fn leaving(mut self, number: i32, descriptor: OwnedFd) -> Self {
        self.passed.push((number, descriptor));
        self
    }

    /// Adds an environment variable. `LISTEN_PID` replaces the correct value.
    pub(crate) fn saying(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        if variable == "LISTEN_PID" {
            self.launcher.clear();
        }
        self.variables.push((variable, value.into()));
        self
    }

    /// Leaves `LISTEN_PID` unset.
    pub(crate) fn without_pid(mut self) -> Self {
        self.launcher.clear();
        self
    }

    /// Starts the daemon.
    pub(crate) fn start(self, arguments: &[&str]) -> Line {
        let launcher = self.launcher.clone();
        Line::start_under(&launcher, |command, _| self.prepare(command, arguments))
    }

    /// Starts another program that uses the library, in the folder of its line.
    pub(crate) fn start_program(self, real: &Path, arguments: &[&str]) -> Line {
        let launcher = self.launcher.clone();
        Line::start_program_under(&launcher, real, |command, folder| {
            self.prepare(command, arguments);
            command.current_dir(folder).env("RUNTIME_DIRECTORY", folder);
        })
    }

    /// Starts the daemon, and waits until it serves.
    pub(crate) fn serve(self, arguments: &[&str]) -> Line {
        let line = self.start(arguments);
        line.wait_for(1, Event::GenerationServing);
        line
    }

    /// Starts the daemon, which must refuse to serve and exit by itself.
    pub(crate) fn refused(self, arguments: &[&str]) -> Refusal {
        let mut words = self.launcher.clone().into_iter().chain([env!("CARGO_BIN_EXE_handoffd")]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        self.prepare(&mut command, arguments);
        Refusal::of(command)
    }

    fn prepare(self, command: &mut Command, arguments: &[&str]) {
        command.args(arguments).envs(self.variables);
        let mappings =
            self.passed.into_iter().map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).unwrap();
    }
}

/// Returns an unused port for tests that cannot use port 0. It is outside the range of the kernel's
/// automatic ports, so no other test receives it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    assert!(lowest > 2048, "the automatic ports begin at {lowest}");
    // Other test processes on this machine start at other ports.
    let start = std::process::id().wrapping_mul(61);
    loop {
        let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)).wrapping_add(start);
        let port = 1024 + u16::try_from(next % u32::from(lowest - 1024)).unwrap();
        // One after the other: the IPv6 socket also takes the IPv4 port.
        let six = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).map(close);
        let four = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(close);
        if six.and(four).is_ok() {
            return port;
        }
    }
}

/// Closes a listener and frees its address immediately. Without the shutdown, a process that
/// another test has just forked could keep a copy open until its exec.
pub(crate) fn close(listener: TcpListener) {
    shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
    drop(listener);
}
