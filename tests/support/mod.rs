//! Starts the real daemon, reads its log, talks to it, and cleans up after it.

mod client;
mod gate;
mod line;
mod process;
mod storm;
mod stuck;

use std::time::Duration;

pub(crate) use client::Client;
pub(crate) use gate::{Gate, install};
pub(crate) use line::{Line, Record};
pub(crate) use process::{exit_code, freeze, raise_descriptor_limit, signal, thaw};
pub(crate) use storm::{Handoffs, Storm, Tally};
pub(crate) use stuck::{Stuck, narrow};

/// How long any event may take before the test has failed. Far above what it does take: a deadline, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
