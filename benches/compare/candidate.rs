//! The compared programs: their names, whether they are installed, and what they can do.

use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use nix::sys::signal::Signal;

/// The environment variables that name another binary to measure instead of ours, and one to
/// measure in addition.
const BINARY: &str = "HANDOFFD_BIN";
const OTHER: &str = "HANDOFFD_OTHER";
/// nginx's stream module, at Debian's path.
pub(crate) const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
pub(crate) const SOCKET_PROXYD: &str = "/usr/lib/systemd/systemd-socket-proxyd";
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
    /// Our build with a fixed number of workers.
    Workers(Workers),
}

/// A number of workers that does not depend on the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workers {
    One,
    Two,
    Four,
    Eight,
}

impl Workers {
    pub(crate) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
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

    pub(crate) const ALL: [Self; 11] = [
        Self::OURS,
        Self::Handoffd(Build::Other),
        Self::Handoffd(Build::Workers(Workers::One)),
        Self::Handoffd(Build::Workers(Workers::Two)),
        Self::Handoffd(Build::Workers(Workers::Four)),
        Self::Handoffd(Build::Workers(Workers::Eight)),
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
            Self::Handoffd(Build::Workers(Workers::One)) => "handoffd-1",
            Self::Handoffd(Build::Workers(Workers::Two)) => "handoffd-2",
            Self::Handoffd(Build::Workers(Workers::Four)) => "handoffd-4",
            Self::Handoffd(Build::Workers(Workers::Eight)) => "handoffd-8",
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

    /// Returns whether it is measured without being named.
    pub(crate) fn is_default(self) -> bool {
        match self {
            Self::Handoffd(Build::Other) => variable(OTHER).is_some(),
            Self::Handoffd(Build::Workers(_)) => false,
            Self::Handoffd(Build::Ours) | Self::Direct => true,
            Self::Haproxy(_) | Self::Nginx | Self::SocketProxyd => true,
        }
    }

    /// Returns whether it is part of a quick run: the builds of handoffd, and the two peers that
    /// are compared most often.
    pub(crate) fn is_quick(self) -> bool {
        matches!(self, Self::Handoffd(_) | Self::Haproxy(Splice::Auto) | Self::Nginx)
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
}

impl ValueEnum for Candidate {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// Returns the path of the binary built with the bench, or of the configured one.
pub(crate) fn handoffd(build: Build) -> String {
    let named = variable(match build {
        Build::Ours | Build::Workers(_) => BINARY,
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

/// Returns the first line of a program's output.
fn said(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
    output.status.success().then_some(line)
}
