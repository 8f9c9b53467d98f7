//! Starts the real daemon, reads its log, talks to it, and cleans up after it.

mod client;
mod line;
mod parent;
mod process;
mod program;
mod refusal;
mod view;

use std::time::Duration;

pub(crate) use client::Client;
pub(crate) use line::{Line, Record};
pub(crate) use parent::{Parent, free_port};
pub(crate) use process::signal;
pub(crate) use program::{Gate, replace_program, successor_gets};
pub(crate) use refusal::Refusal;
pub(crate) use view::{accept, assert_becomes, children, environment, holds, holds_socket, kinds, threads};

/// How long any event may take before the test has failed. Far above what it does take: a deadline, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
