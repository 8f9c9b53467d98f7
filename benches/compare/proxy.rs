//! Runs one proxy in front of an upstream of its own, and ends every process of both.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::candidate::{Candidate, pid_file};
use crate::process;
use crate::support::clients::visit;
use crate::support::itself::Itself;
use crate::upstream;

/// Longest wait for a proxy to serve.
const PATIENCE: Duration = Duration::from_secs(20);
/// Visits before anything is measured: code is in memory, and every worker has served.
const WARM: usize = 100;

/// A proxy that serves, until it is dropped.
pub(crate) struct Proxy {
    candidate: Candidate,
    upstream: Itself,
    address: SocketAddr,
    /// The first process; none where there is no proxy.
    root: Option<Pid>,
    folder: TempDir,
}

impl Proxy {
    /// Starts it and waits until it serves.
    pub(crate) fn start(candidate: Candidate) -> Self {
        let (upstream, folder) = (upstream::start(), TempDir::new().expect("a folder"));
        let listen = unused_address();
        let command = candidate.command(folder.path(), listen, upstream.address());
        let address = if command.is_some() { listen } else { upstream.address() };
        let root = command.map(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Reaped by its number, like every process that it starts.
            #[allow(clippy::zombie_processes)]
            let child = command.spawn().expect("start the proxy");
            Pid::from_raw(i32::try_from(child.id()).expect("a process id"))
        });
        let proxy = Self { candidate, upstream, address, root, folder };
        proxy.await_service();
        proxy
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All its processes.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        self.root.map(process::family).unwrap_or_default()
    }

    /// The processes that others take the place of when it reloads.
    pub(crate) fn generation(&self) -> Vec<Pid> {
        self.head().map_or_else(|| self.processes(), |head| vec![head])
    }

    /// Tells it to reload, in its own way.
    pub(crate) fn reload(&self) {
        let pid = self.head().or(self.root).expect("a proxy");
        let signal = self.candidate.reload().expect("one that can reload");
        kill(pid, signal).expect("signal a process that is not reaped");
    }

    /// The generation that handoffd's pid file names.
    fn head(&self) -> Option<Pid> {
        let text = fs::read_to_string(pid_file(self.folder.path())).ok()?;
        Some(Pid::from_raw(text.trim().parse().expect("a process id")))
    }

    fn await_service(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = visit(self.address) {
            assert!(Instant::now() < deadline, "{} does not serve: {error}", self.candidate.name());
            // There is no event to wait for that all of them have.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(10));
        }
        for _ in 0..WARM {
            visit(self.address).expect("a reply");
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        process::kill_children_but(self.upstream.pid());
    }
}

/// One that nobody uses, and that no outgoing connection is given: below the range for these.
fn unused_address() -> SocketAddr {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    // Neighbours begin somewhere else.
    let start = 2_000 + u16::try_from(std::process::id() % 80).expect("a small number") * 100;
    let port = (start..10_000).chain(2_000..start).find(free).expect("an unused port");
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
