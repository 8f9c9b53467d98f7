//! One upstream: its address and its health.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::address::Address;
use crate::config::HostPort;

/// The id that the next upstream will have.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// An address to which the proxy forwards clients. This value lives until the last connection to
/// the address ends, even if its host name no longer has the address.
#[derive(Debug)]
pub(super) struct Upstream {
    /// The id of this upstream, unique in this process.
    id: usize,
    /// The host name that has this address, or `None` if the configuration contains the address
    /// itself.
    host: Option<Arc<HostPort>>,
    address: Address,
    label: Box<str>,
    /// The number of connections to this upstream, including connection attempts in progress.
    pub(super) active: AtomicUsize,
    /// The number of failed connection attempts since the last success.
    pub(super) failures: AtomicU32,
    /// The time until which failed connection attempts keep the upstream ejected, in milliseconds
    /// since `epoch` in [`super::upstreams::UpstreamPool`]. 0 if there is no such time.
    pub(super) out_until: AtomicU64,
    /// Whether the last health check of this upstream failed.
    pub(super) check_failed: AtomicBool,
    /// Whether the log already says that this upstream is unavailable. Cleared when the log says
    /// that the upstream is available again.
    pub(super) said: AtomicBool,
    pub(super) ejected: AtomicU64,
}

impl Upstream {
    pub(super) fn new(host: Option<Arc<HostPort>>, address: Address) -> Self {
        let label = match &host {
            Some(host) => format!("{host}/{address}"),
            None => address.to_string(),
        };
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            host,
            address,
            label: label.into(),
            active: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            check_failed: AtomicBool::new(false),
            said: AtomicBool::new(false),
            ejected: AtomicU64::new(0),
        }
    }

    pub(super) const fn id(&self) -> usize {
        self.id
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    pub(super) const fn host(&self) -> Option<&Arc<HostPort>> {
        self.host.as_ref()
    }

    /// Returns the label that identifies this upstream in the log, in the counters and in messages
    /// to other processes. Without a host name, it is the address, as in `127.0.0.1:9000`. With a
    /// host name, it contains both, as in `backend.example:9000/192.0.2.1:9000`.
    pub(super) const fn label(&self) -> &str {
        &self.label
    }

    /// Returns whether this upstream has the host name `host` and the address `address`.
    pub(super) fn is(&self, host: &HostPort, address: SocketAddr) -> bool {
        self.host.as_deref() == Some(host) && self.address == Address::Tcp(address)
    }

    /// Returns how many times this upstream was ejected.
    pub(super) fn ejected(&self) -> u64 {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Logs that the upstream is unavailable. Further calls log nothing until the upstream is
    /// available again, even if it is ejected several times in the meantime.
    pub(super) fn log_unavailable(&self, listener: &str, reason: &io::Error) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                event = "upstream.unavailable", listener, upstream = %self.label, %reason,
                "the upstream {} was ejected and gets no new connections for a while: {reason}",
                self.label
            );
        }
    }
}

/// Parses an upstream's label into its host name, if it has one, and its address.
pub(super) fn read_label(label: &str) -> Option<(Option<&str>, Address)> {
    let is_unix = label.starts_with('/') || label.starts_with('@');
    let (host, address) = match label.split_once('/') {
        Some((host, address)) if !is_unix => (Some(host), address),
        _ => (None, label),
    };
    Some((host, address.parse().ok()?))
}

/// A guard that counts as one connection to an upstream until it is dropped.
#[derive(Debug)]
pub(super) struct UpstreamLoad(pub(super) Arc<Upstream>);

impl UpstreamLoad {
    pub(super) fn take(upstream: &Arc<Upstream>) -> Self {
        upstream.active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(upstream))
    }
}

impl Drop for UpstreamLoad {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamTarget;

    /// The label of an upstream contains its address and, if it has one, its host name.
    #[test]
    fn a_label_says_which_name_has_the_address() {
        let Ok(UpstreamTarget::Host(host)) = "backend:1".parse() else {
            panic!("not parsed as a host name")
        };
        for (host, address, label) in [
            (Some(host.clone()), "192.0.2.1:1", "backend:1/192.0.2.1:1"),
            (Some(host), "[2001:db8::1]:1", "backend:1/[2001:db8::1]:1"),
            (None, "127.0.0.1:2", "127.0.0.1:2"),
            (None, "/run/a/b", "/run/a/b"),
            (None, "@a/b", "@a/b"),
        ] {
            let upstream = Upstream::new(host.clone().map(Arc::new), address.parse().unwrap());
            assert_eq!(upstream.label(), label);
            let read = read_label(label).unwrap();
            assert_eq!(
                (read.0.map(str::to_owned), read.1),
                (host.map(|host| host.to_string()), address.parse().unwrap())
            );
        }
        assert!(read_label("backend:1").is_none() && read_label("backend:1/").is_none());
    }
}
