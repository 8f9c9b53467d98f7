//! A network of its own for a load.
//!
//! A load keeps the queues of many sockets full. The kernel then drops segments for which a socket
//! has no memory left, and doubles its timeout before each further attempt, to two minutes at most.
//! When the load ends, such a connection seems to be stuck, although every process has done its
//! part. In the network of a load, no timeout is longer than a second, and what was dropped is sent
//! again without a pause.

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// The settings of the network, as files of `/proc/sys/net/ipv4`.
const SETTINGS: [(&str, &str); 4] = [
    // The longest timeout for a retransmission, and for a probe of a peer whose window is closed,
    // in milliseconds. Linux has this setting since 6.15, and accepts no smaller value.
    ("tcp_rto_max_ms", "1000"),
    // How many timeouts in a row end a connection. The default of 15 would then be 13 s, but the
    // queues may stay full for minutes.
    ("tcp_retries2", "255"),
    ("tcp_orphan_retries", "255"),
    // An algorithm that every kernel has. One with pacing, such as BBR, would retransmit slowly,
    // because it takes the wait for memory for a slow link.
    ("tcp_congestion_control", "reno"),
];

/// Moves this thread, and the threads and processes that it starts later, to a network that has
/// only a loopback interface. Leaves them in the network of the machine if that is not permitted.
pub(crate) fn isolate() {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => return,
        moved => moved.unwrap(),
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success(), "`ip` of the package iproute2 cannot bring up a loopback interface");
    for (name, value) in SETTINGS {
        match fs::write(format!("/proc/sys/net/ipv4/{name}"), value) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            written => written.unwrap(),
        }
    }
}
