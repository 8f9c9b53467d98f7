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

/// Moves this process and its future children to a private loopback network. Returns false if that
/// is not permitted.
pub(crate) fn isolate() -> bool {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        return false;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(
        up.is_ok_and(|status| status.success()),
        "Debian's iproute2 is needed, to bring up a loopback"
    );
    for (name, value) in
        [("ip_local_port_range", PORTS), ("tcp_congestion_control", CONGESTION_CONTROL)]
    {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("set up the private network");
    }
    true
}
