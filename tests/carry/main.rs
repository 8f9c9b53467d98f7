//! Holds the daemon to the promise of `--carry`: a connection that a handoff moves notices nothing.
//!
//! `cargo test --test carry`. Apart from the other tests, for it takes both cores for minutes:
//! thousands of connections, a thousand handoffs. `promises.rs` has the claims. The rest is the
//! load (`load.rs`): clients and upstreams that verify every byte by its place (`pattern.rs`) and
//! every end against what was said on the other side (`ends.rs`), and count what they met
//! (`tally.rs`). That they see what they have to see, `faults.rs` shows with a server that does
//! wrong.
//!
//! `sessions.rs` has the claims for programs of others: their servers (`servers.rs`), and their
//! clients (`talk.rs`). As root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]
#![allow(
    clippy::print_stdout,
    reason = "a load tells what it was made of; cargo shows it on request"
)]
#![allow(dead_code, unused_imports, reason = "of what the tests share, each uses a part")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod ends;
mod faults;
mod generations;
mod load;
mod pattern;
mod promises;
mod servers;
mod sessions;
mod talk;
mod tally;
mod upstream;
