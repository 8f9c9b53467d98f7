//! Support for tests of the real daemon: start it, read its log, connect to it, and clean up.

mod backend;
pub(crate) mod callers;
mod client;
mod event;
mod impostor;
pub(crate) mod line;
mod line_log;
mod manager;
pub(crate) mod operator;
mod parent;
pub(crate) mod process;
mod record;
mod refusal;
mod storm;
mod stuck;
mod tally;
mod tracer;
pub(crate) mod view;

use std::time::Duration;

pub(crate) use backend::{Echoing, Upstream};
pub(crate) use callers::{Callers, Calls, SLOW_DRAIN};
pub(crate) use client::Client;
pub(crate) use event::Event;
pub(crate) use impostor::{Gate, REAL, example, install};
pub(crate) use line::Line;
pub(crate) use manager::{Manager, Told};
pub(crate) use operator::Operator;
pub(crate) use parent::{Parent, close, free_port};
pub(crate) use process::{adopt_orphans, exit_code, freeze, raise_descriptor_limit, signal, thaw};
pub(crate) use record::{Pattern, Record};
pub(crate) use refusal::Refusal;
pub(crate) use storm::{Handoffs, Storm};
pub(crate) use stuck::{Stuck, narrow};
pub(crate) use tally::Tally;
pub(crate) use tracer::Tracer;
pub(crate) use view::{
    accept, assert_becomes, children, defer_accept, environment, holds, holds_socket, kinds,
    threads,
};

/// How long to wait for any event before the test fails. Far above the usual time: a deadline, not
/// a measurement.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
