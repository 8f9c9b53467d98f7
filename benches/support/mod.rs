//! Shared code of the benches: the measured daemon, the bare echo server, clients, figures and a
//! table.
//!
//! The daemon is the real binary in its own processes. The benches observe its log, its sockets and
//! its exit. No bench fails for being slow: a figure that misses its target is marked in the table.
// Each bench uses only a part of this module. A bench that cannot continue panics.
#![allow(dead_code, clippy::panic)]

pub(crate) mod bare;
pub(crate) mod clients;
pub(crate) mod daemon;
#[path = "../../tests/support/event.rs"]
pub(crate) mod event;
pub(crate) mod figures;
pub(crate) mod itself;
pub(crate) mod table;
pub(crate) mod usage;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Runs a bench. Does nothing without the argument that `cargo bench` passes: `cargo test
/// --all-targets` starts benches too, but they contain no tests.
pub(crate) fn run(bench: impl FnOnce()) {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    // A successor is an orphan, which the next subreaper must reap. During a bench, this process is
    // that subreaper.
    nix::sys::prctl::set_child_subreaper(true).expect("become the reaper of orphans");
    // Each client connection needs a descriptor.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
    bench();
    // Reaps processes that ended without a record in the log.
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
