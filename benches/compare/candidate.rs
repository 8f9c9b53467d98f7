//! The compared programs: their names, whether they are installed, and their settings.
//!
//! Each is set up as for production, with two threads or workers for two cores. It has no access
//! log and limits that are never reached. After a reload, old connections get half a minute.
//! Splicing is on where it is available. Every other setting is the product's default.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use nix::sys::signal::Signal;

/// The environment variables that name another binary to measure instead of ours, and one to
/// measure in addition.
const BINARY: &str = "HANDOFFD_BIN";
const OTHER: &str = "HANDOFFD_OTHER";
/// nginx's stream module, at Debian's path.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
const SOCKET_PROXYD: &str = "/usr/lib/systemd/systemd-socket-proxyd";
/// The configured number of connections. Every proxy can serve it with [`DESCRIPTORS`] descriptors.
const CONNECTIONS: usize = 7_000;
/// How many descriptors a process may have by default. In some environments even root cannot raise
/// this limit.
const DESCRIPTORS: usize = 20_000;

/// A measured proxy, or a direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    Handoffd(Build),
    Haproxy(Splice),
    Nginx,
    SocketProxyd,
    /// No proxy: the client connects to the upstream directly.
    Direct,
}

/// A build of handoffd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// The build that is compared with the peers.
    Ours,
    /// Another build for comparison.
    Other,
}

/// The splicing setting of HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Splice {
    /// If the proxy considers it worthwhile, as its manual recommends.
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

    /// Returns whether this is a proxy of another project.
    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Handoffd(_) | Self::Direct)
    }

    /// Returns whether it is measured by default. The other build is if it is configured.
    pub(crate) fn is_wanted(self) -> bool {
        self != Self::Handoffd(Build::Other) || variable(OTHER).is_some()
    }

    /// Returns the signal that makes it reload, if it can.
    pub(crate) fn reload(self) -> Option<Signal> {
        match self {
            Self::Handoffd(_) | Self::Nginx => Some(Signal::SIGHUP),
            Self::Haproxy(_) => Some(Signal::SIGUSR2),
            Self::SocketProxyd | Self::Direct => None,
        }
    }

    /// Returns how many connections it has descriptors for, at most `wanted`.
    pub(crate) fn room(self, wanted: usize) -> usize {
        match self {
            // Each connection needs two sockets, and two pipes from its first byte on.
            Self::SocketProxyd => wanted.min((DESCRIPTORS - 500) / 6),
            Self::Handoffd(_) | Self::Haproxy(_) | Self::Nginx | Self::Direct => wanted,
        }
    }

    /// Returns its version as it reports it. The error says how to install it.
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

    /// Returns the command that starts it in the foreground, with its settings in `folder`. Returns
    /// `None` where there is no proxy.
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

/// Returns the path of handoffd's pid file.
pub(crate) fn pid_file(folder: &Path) -> PathBuf {
    folder.join("pid")
}

/// Returns the path of the binary built with the bench, or of the configured one.
fn handoffd(build: Build) -> String {
    let named = variable(match build {
        Build::Ours => BINARY,
        Build::Other => OTHER,
    });
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_handoffd").to_owned())
}

fn variable(name: &str) -> Option<String> {
    // Environment variables are the only way to configure a bench that stays the same from run to
    // run.
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

/// Returns the first line of a program's output.
fn said(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
    output.status.success().then_some(line)
}
