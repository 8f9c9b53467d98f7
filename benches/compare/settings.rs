//! The settings of the compared programs, and the commands that start them.
//!
//! Each is set up as for production. All have the same number of workers or threads, no access log,
//! and limits that are never reached. After a reload, old connections get half a minute. Splicing
//! is on where it is available. Every other setting is the product's default, except where its
//! manual advises another one for many new connections:
//!
//! - nginx has `reuseport`, which gives each worker its own listening socket.
//! - HAProxy has `tune.listener.multi-queue`, which distributes new connections over the threads.
//!   It is also the default. The manual advises `shards` only for very large numbers of threads.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::candidate::{Build, Candidate, NGINX_STREAM, SOCKET_PROXYD, Splice, handoffd};

/// The configured number of connections. Every proxy can serve it with 20,000 descriptors: two for
/// each connection, and some hundred for HAProxy's pipes and threads.
const CONNECTIONS: usize = 9_600;
/// The number of HAProxy's pipes for splicing: more than all clients need at once. By default it
/// reserves one for four connections, and does not start without descriptors for them.
const PIPES: usize = 150;

/// The address of an upstream.
#[derive(Clone, Debug)]
pub(crate) enum UpstreamAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for UpstreamAddress {
    /// Writes the address as handoffd and systemd-socket-proxyd expect it.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(to, "{address}"),
            Self::Unix(path) => write!(to, "{}", path.display()),
        }
    }
}

/// What a proxy is started with.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    /// A folder for the files of the proxy.
    pub(crate) folder: &'a Path,
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: UpstreamAddress,
    /// The number of workers or threads.
    pub(crate) workers: usize,
}

/// Returns the path of handoffd's pid file.
pub(crate) fn pid_file(folder: &Path) -> PathBuf {
    folder.join("pid")
}

impl Settings<'_> {
    /// Returns the command that starts a candidate in the foreground. Returns `None` where there is
    /// no proxy.
    pub(crate) fn command(&self, candidate: Candidate) -> Option<Command> {
        let Self { folder, listen, upstream, workers } = self;
        let mut command;
        match candidate {
            Candidate::Direct => return None,
            Candidate::Handoffd(build) => {
                let workers = match build {
                    Build::Ours | Build::Other => *workers,
                    Build::Workers(fixed) => fixed.count(),
                };
                command = Command::new(handoffd(build));
                command.args(["proxy", "--listen", &listen.to_string()]);
                command.args(["--to", &upstream.to_string(), "--workers", &workers.to_string()]);
                command.arg("--pid-file").arg(pid_file(folder));
            }
            Candidate::Haproxy(splice) => {
                command = Command::new("haproxy");
                command.args(["-W", "-db", "-f"]);
                command.arg(self.write("haproxy.cfg", &self.haproxy(splice)));
            }
            Candidate::Nginx => {
                command = Command::new("nginx");
                command.arg("-p").arg(folder).arg("-e").arg(folder.join("error.log"));
                command.arg("-c").arg(self.write("nginx.conf", &self.nginx()));
            }
            Candidate::SocketProxyd => {
                command = Command::new("systemd-socket-activate");
                command.args(["--listen", &listen.to_string(), SOCKET_PROXYD]);
                command.args(["--connections-max", &CONNECTIONS.to_string()]);
                command.arg(upstream.to_string());
            }
        }
        Some(command)
    }

    fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.folder.join(file);
        fs::write(&path, text).expect("write the settings");
        path
    }

    fn haproxy(&self, splice: Splice) -> String {
        let Self { listen, workers, .. } = self;
        let splice = match splice {
            Splice::Auto => "option splice-auto",
            Splice::Always => "option splice-request\n    option splice-response",
        };
        let upstream = match &self.upstream {
            UpstreamAddress::Tcp(address) => address.to_string(),
            UpstreamAddress::Unix(path) => format!("unix@{}", path.display()),
        };
        format!(
            "global
    nbthread {workers}
    maxconn {CONNECTIONS}
    maxpipes {PIPES}
    hard-stop-after 30s
    tune.listener.multi-queue on
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

    fn nginx(&self) -> String {
        let Self { listen, workers, .. } = self;
        let folder = self.folder.display();
        let upstream = match &self.upstream {
            UpstreamAddress::Tcp(address) => address.to_string(),
            UpstreamAddress::Unix(path) => format!("unix:{}", path.display()),
        };
        format!(
            "load_module {NGINX_STREAM};
daemon off;
user root;
worker_processes {workers};
worker_shutdown_timeout 30s;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {both_sides}; }}
stream {{
    access_log off;
    server {{
        listen {listen} backlog=4096 reuseport;
        proxy_pass {upstream};
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
",
            both_sides = CONNECTIONS * 2,
        )
    }
}
