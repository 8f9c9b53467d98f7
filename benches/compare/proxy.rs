//! One proxy in front of its own upstream. All processes of both end with it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::candidate::Candidate;
use crate::link;
use crate::process;
use crate::server::Server;
use crate::settings::{Settings, UpstreamAddress, pid_file};
use crate::support::clients::visit;
use crate::support::itself::Itself;
use crate::upstream;

/// The longest wait until a proxy serves.
const PATIENCE: Duration = Duration::from_secs(20);
/// The visits before a measurement. They load the code into memory and exercise every worker.
const WARM: usize = 100;

/// What a proxy connects to.
pub(crate) enum Backend {
    /// The upstream of the bench, on TCP.
    Tcp,
    /// The upstream of the bench, on a Unix socket.
    Unix,
    /// The upstream of the bench, through a link with a delay.
    Delayed(Itself),
    /// A server of another project, which runs already.
    Server(Server),
}

impl Backend {
    /// Returns the process that does not belong to the proxy.
    fn process(&self) -> Option<Pid> {
        match self {
            Self::Tcp | Self::Unix => None,
            Self::Delayed(link) => Some(link.pid()),
            Self::Server(server) => Some(server.pid()),
        }
    }
}

/// A running proxy, which ends when it is dropped.
pub(crate) struct Proxy {
    candidate: Candidate,
    _upstream: Itself,
    address: SocketAddr,
    /// The first process, or `None` where there is no proxy.
    root: Option<Pid>,
    /// The children of this process that the proxy has not started.
    spared: Vec<Pid>,
    folder: TempDir,
}

impl Proxy {
    /// Starts the proxy in front of a new upstream, and waits until it serves.
    pub(crate) fn start(candidate: Candidate, backend: &Backend, workers: usize) -> Self {
        let folder = TempDir::new().expect("create a folder");
        let socket = folder.path().join("upstream");
        let upstream = upstream::start(&socket);
        let upstream_at = match backend {
            Backend::Tcp | Backend::Unix => upstream.address(),
            Backend::Delayed(_) => SocketAddr::from((link::FAR, upstream.address().port())),
            Backend::Server(server) => server.address(),
        };
        let listen = unused_address();
        let settings = Settings {
            folder: folder.path(),
            listen,
            upstream: match backend {
                Backend::Unix => UpstreamAddress::Unix(socket),
                Backend::Tcp | Backend::Delayed(_) | Backend::Server(_) => {
                    UpstreamAddress::Tcp(upstream_at)
                }
            },
            workers,
        };
        let command = settings.command(candidate);
        let address = if command.is_some() { listen } else { upstream_at };
        let root = command.map(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Reaped by its process id, like every process that it starts.
            #[allow(clippy::zombie_processes)]
            let child = command.spawn().expect("start the proxy");
            Pid::from_raw(i32::try_from(child.id()).expect("parse a process id"))
        });
        let spared = backend.process().into_iter().chain([upstream.pid()]).collect();
        let proxy = Self { candidate, _upstream: upstream, address, root, spared, folder };
        proxy.await_service(backend);
        proxy
    }

    /// Returns the address of the proxy.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns all processes of the proxy.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        self.root.map(process::family).unwrap_or_default()
    }

    /// Returns the processes that a reload replaces.
    pub(crate) fn generation(&self) -> Vec<Pid> {
        self.head().map_or_else(|| self.processes(), |head| vec![head])
    }

    /// Makes the proxy reload.
    pub(crate) fn reload(&self) {
        let pid = self.head().or(self.root).expect("find the proxy's process");
        let signal = self.candidate.reload().expect("only proxies that can reload");
        kill(pid, signal).expect("signal a process that is not reaped");
    }

    /// Returns the generation that handoffd's pid file names.
    fn head(&self) -> Option<Pid> {
        let text = fs::read_to_string(pid_file(self.folder.path())).ok()?;
        Some(Pid::from_raw(text.trim().parse().expect("parse a process id")))
    }

    fn await_service(&self, backend: &Backend) {
        let is_echo = !matches!(backend, Backend::Server(_));
        let attempt = || match is_echo {
            true => visit(self.address),
            false => TcpStream::connect(self.address).map(drop),
        };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = attempt() {
            assert!(Instant::now() < deadline, "{} does not serve: {error}", self.candidate.name());
            // The candidates have no common event that tells when they serve.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(10));
        }
        let visits = if is_echo { WARM } else { 0 };
        for _ in 0..visits {
            visit(self.address).expect("read the reply");
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        process::kill_children_but(&self.spared);
    }
}

/// Returns an unused address whose port is below the range of outgoing connections.
pub(crate) fn unused_address() -> SocketAddr {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    // Other benches at the same time start their search at other ports.
    let start = 2_000 + u16::try_from(std::process::id() % 80).expect("a small number") * 100;
    let port = (start..10_000).chain(2_000..start).find(free).expect("find an unused port");
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
