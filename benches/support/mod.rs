//! Holds what the benches share: the daemon they measure, the bare loop beside it, clients, figures
//! and a table.
//!
//! The daemon is the real binary, in processes of its own, and is watched from outside: by its log,
//! its sockets, its exit. Nothing here is a test and nothing fails for being slow; a figure that
//! misses its target says so in the table.
// Every bench uses a part of it; one that cannot go on has failed.
#![allow(dead_code, clippy::panic)]

pub(crate) mod bare;
pub(crate) mod clients;
pub(crate) mod daemon;
#[path = "../../tests/support/event.rs"]
pub(crate) mod event;
pub(crate) mod figures;
pub(crate) mod itself;
pub(crate) mod processor;
pub(crate) mod table;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Runs a bench. `cargo test --all-targets` starts benches too, without the argument that `cargo
/// bench` gives: then there is nothing to do, for nothing here is a test.
pub(crate) fn run(bench: impl FnOnce()) {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    // A successor is nobody's child: whoever watches over orphans must reap it, and that is us
    // while we measure.
    nix::sys::prctl::set_child_subreaper(true).expect("become the reaper of orphans");
    // A client's connection is a descriptor as well.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
    bench();
    // What ended without a word in the log.
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
