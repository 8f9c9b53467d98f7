//! Starts the real daemon, reads its log, talks to it, and cleans up after it.

mod callers;
mod client;
mod impostor;
mod line;
mod process;
mod tracer;

use std::time::Duration;

pub(crate) use callers::{Callers, Calls, SLOW_DRAIN};
pub(crate) use client::Client;
pub(crate) use impostor::{Gate, REAL};
pub(crate) use line::{Line, Record};
pub(crate) use process::{exit_code, signal};
pub(crate) use tracer::Tracer;

/// How long any event may take before the test has failed. Far above what it does take: a deadline, not a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
