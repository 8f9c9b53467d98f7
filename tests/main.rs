//! Holds the real daemon to its promises: one module for each, every test a claim.
//!
//! Tests see what a client or an operator sees: bytes, exit codes, the log. They wait for events under a deadline, use
//! port 0 and folders of their own, run in parallel, and leave no process, socket or file behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]

mod support;

mod crashes;
mod handoff;
mod instants;
mod launch;
mod pid_file;
mod program;
mod signals;
