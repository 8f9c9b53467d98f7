//! A private loopback network for the bench, so that the machine's settings and other connections
//! have no effect.
//!
//! Thousands of connections per second use up the ports of a normal machine within seconds. Then
//! the bench would measure the kernel's search for a free port. Congestion control is the algorithm
//! that every kernel has and allows. An algorithm with pacing would hide differences between the
//! proxies.

use std::fs;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// The ports of outgoing connections. Proxies listen on lower ports.
const PORTS: &str = "10000 65535";
const CONGESTION_CONTROL: &str = "reno";

/// The network in which the bench runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Private,
    /// The machine's own network.
    Shared,
}

/// Moves this process and its future children to a private loopback network, if that is permitted.
pub(crate) fn isolate() -> Network {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        return Network::Shared;
    }
    ip(&["link", "set", "lo", "up"]);
    for (name, value) in [
        ("ip_local_port_range", PORTS),
        ("tcp_congestion_control", CONGESTION_CONTROL),
        // By default, ports of ended connections can be reused on loopback only.
        ("tcp_tw_reuse", "1"),
    ] {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("set up the private network");
    }
    Network::Private
}

/// Changes the network by `ip`.
pub(crate) fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "Debian's iproute2 is needed for `ip {}`",
        words.join(" ")
    );
}
