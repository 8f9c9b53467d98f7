//! Names what is compared, says whether it is there, and writes the settings under which it runs.
//!
//! Each is set up as for production: two threads or workers for two cores, no log of accesses,
//! limits that are never reached, half a minute for old connections after a reload, splicing where
//! it is offered. What is not said here is the product's own default.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use nix::sys::signal::Signal;

/// The variables that name another binary in the place of ours, and one beside it.
const BINARY: &str = "HANDOFFD_BIN";
const OTHER: &str = "HANDOFFD_OTHER";
/// Where Debian puts nginx's modules.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
const SOCKET_PROXYD: &str = "/usr/lib/systemd/systemd-socket-proxyd";
/// For how many they are set up: what fits into [`DESCRIPTORS`] for every proxy's own reckoning.
const CONNECTIONS: usize = 7_000;
/// What a process may hold, if the machine does not say otherwise: not every root may raise that.
const DESCRIPTORS: usize = 20_000;

/// A proxy, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    Handoffd(Build),
    Haproxy(Splice),
    Nginx,
    SocketProxyd,
    /// The client asks the upstream itself.
    Direct,
}

/// Which handoffd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// The one that is held against the peers.
    Ours,
    /// One to hold beside it.
    Other,
}

/// When bytes are to stay in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Splice {
    /// When the proxy finds it worthwhile, as its manual recommends.
    Auto,
    Always,
}

impl Candidate {
    pub(crate) const OURS: Self = Self::Handoffd(Build::Ours);

    pub(crate) const ALL: [Self; 7] = [
        Self::OURS,
        Self::Handoffd(Build::Other),
        Self::Haproxy(Splice::Auto),
        Self::Haproxy(Splice::Always),
        Self::Nginx,
        Self::SocketProxyd,
        Self::Direct,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Handoffd(Build::Ours) => "handoffd",
            Self::Handoffd(Build::Other) => "other",
            Self::Haproxy(Splice::Auto) => "haproxy",
            Self::Haproxy(Splice::Always) => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::SocketProxyd => "socket-proxyd",
            Self::Direct => "direct",
        }
    }

    /// Whether it is a proxy of somebody else.
    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Handoffd(_) | Self::Direct)
    }

    /// Whether it is measured without being named: another build is when there is one.
    pub(crate) fn is_wanted(self) -> bool {
        self != Self::Handoffd(Build::Other) || variable(OTHER).is_some()
    }

    /// What tells it to reload, if it can.
    pub(crate) fn reload(self) -> Option<Signal> {
        match self {
            Self::Handoffd(_) | Self::Nginx => Some(Signal::SIGHUP),
            Self::Haproxy(_) => Some(Signal::SIGUSR2),
            Self::SocketProxyd | Self::Direct => None,
        }
    }

    /// How many connections it has descriptors for, if so many are wanted.
    pub(crate) fn room(self, wanted: usize) -> usize {
        match self {
            // Two sockets, and two pipes from the first byte on.
            Self::SocketProxyd => wanted.min((DESCRIPTORS - 500) / 6),
            Self::Handoffd(_) | Self::Haproxy(_) | Self::Nginx | Self::Direct => wanted,
        }
    }

    /// Its own words about its version, or what to do to have it.
    pub(crate) fn version(self) -> Result<String, &'static str> {
        match self {
            Self::Handoffd(build) => {
                said(&[&handoffd(build), "proxy", "--help"]).ok_or("its build has no `proxy`")?;
                said(&[&handoffd(build), "--version"]).ok_or("it does not start")
            }
            Self::Haproxy(_) => said(&["haproxy", "-v"]).ok_or("apt-get install haproxy"),
            Self::Nginx if !Path::new(NGINX_STREAM).exists() => {
                Err("apt-get install nginx libnginx-mod-stream")
            }
            Self::Nginx => said(&["nginx", "-v"]).ok_or("apt-get install nginx"),
            Self::SocketProxyd => {
                said(&[SOCKET_PROXYD, "--version"]).ok_or("apt-get install systemd")
            }
            Self::Direct => Ok(String::from("no proxy")),
        }
    }

    /// The command that starts it, in the foreground, with its settings in `folder`; none where
    /// there is no proxy.
    pub(crate) fn command(
        self,
        folder: &Path,
        listen: SocketAddr,
        upstream: SocketAddr,
    ) -> Option<Command> {
        let (listen_at, upstream_at) = (listen.to_string(), upstream.to_string());
        let mut command;
        match self {
            Self::Direct => return None,
            Self::Handoffd(build) => {
                command = Command::new(handoffd(build));
                command.args(["proxy", "--listen", &listen_at, "--to", &upstream_at]);
                command.arg("--pid-file").arg(pid_file(folder));
            }
            Self::Haproxy(splice) => {
                let settings = folder.join("haproxy.cfg");
                fs::write(&settings, haproxy(splice, listen, upstream))
                    .expect("write the settings");
                command = Command::new("haproxy");
                command.args(["-W", "-db", "-f"]).arg(settings);
            }
            Self::Nginx => {
                let settings = folder.join("nginx.conf");
                fs::write(&settings, nginx(folder, listen, upstream)).expect("write the settings");
                command = Command::new("nginx");
                command
                    .arg("-p")
                    .arg(folder)
                    .arg("-e")
                    .arg(folder.join("error.log"))
                    .arg("-c")
                    .arg(settings);
            }
            Self::SocketProxyd => {
                command = Command::new("systemd-socket-activate");
                command.args([
                    "--listen",
                    &listen_at,
                    SOCKET_PROXYD,
                    "--connections-max",
                    &CONNECTIONS.to_string(),
                ]);
                command.arg(upstream_at);
            }
        }
        Some(command)
    }
}

impl ValueEnum for Candidate {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// Where handoffd says which of its processes to signal.
pub(crate) fn pid_file(folder: &Path) -> PathBuf {
    folder.join("pid")
}

/// The binary that was built with the bench, or another one.
fn handoffd(build: Build) -> String {
    let named = variable(match build {
        Build::Ours => BINARY,
        Build::Other => OTHER,
    });
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_handoffd").to_owned())
}

fn variable(name: &str) -> Option<String> {
    // A bench has no other way to be told that stays the same from run to run.
    #[allow(clippy::disallowed_methods)]
    std::env::var(name).ok()
}

fn haproxy(splice: Splice, listen: SocketAddr, upstream: SocketAddr) -> String {
    let splice = match splice {
        Splice::Auto => "option splice-auto",
        Splice::Always => "option splice-request\n    option splice-response",
    };
    format!(
        "global
    nbthread 2
    maxconn {CONNECTIONS}
    hard-stop-after 30s
defaults
    mode tcp
    {splice}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen proxy
    bind {listen}
    server upstream {upstream}
"
    )
}

fn nginx(folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "load_module {NGINX_STREAM};
daemon off;
user root;
worker_processes 2;
worker_shutdown_timeout 30s;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {both_sides}; }}
stream {{
    access_log off;
    server {{
        listen {listen} backlog=4096;
        proxy_pass {upstream};
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
",
        both_sides = CONNECTIONS * 2,
    )
}

/// The first line that a program says.
fn said(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
    output.status.success().then_some(line)
}
