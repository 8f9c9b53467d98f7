//! Tests of `--carry`: a connection that a handoff moves must not notice the move.
//!
//! Run with `cargo test --test carry`. These tests are separate from the others because they use
//! both cores for minutes: thousands of connections, a thousand handoffs. The variable `HANDOFFS`
//! is another number of handoffs, and shortens all loads in proportion. The claims are in
//! `promises.rs`. The rest is the load (`load.rs`). Its clients and upstreams verify every byte
//! (`pattern.rs`) and every end of stream (`ends.rs`), and count what they met (`tally.rs`). Each
//! load has a network of its own (`network.rs`). `faults.rs` uses a faulty server to show that they
//! detect faults.
//!
//! `sessions.rs` has the claims for other programs: their servers (`servers.rs`) and clients
//! (`talk.rs`). It must run as root.
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
mod network;
mod pattern;
mod promises;
mod servers;
mod sessions;
mod talk;
mod tally;
mod upstream;
