//! Gives the bench a loopback of its own, so that neither the machine's settings nor its
//! neighbours' connections count.
//!
//! Thousands of connections a second use up the ports of an ordinary machine within a second or
//! two, and then the kernel's search for a free one is what is measured. Congestion control is the
//! one that every kernel has and allows, whatever the machine's is: one that paces would hide what
//! the proxies differ in.

use std::fs;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// What outgoing connections are given; proxies listen below.
const PORTS: &str = "10000 65535";
const CONGESTION_CONTROL: &str = "reno";

/// Moves this process, and all that it starts, to a loopback of its own; false if it may not.
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
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("set up our own network");
    }
    true
}
